from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.config import Config, load_config
from cri_shim.config.document import MAX_BYTES
from cri_shim.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def complaint(file: Path | None, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides or [])
    return str(caught.value)


def test_a_default_file_that_is_missing_means_the_defaults(file: Path) -> None:
    assert load_config(default_file=file) == Config()


def test_a_named_file_that_is_missing_is_an_error(file: Path) -> None:
    assert complaint(file) == f"{file}: no such file"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "tls:\n", "\ufefflog: {level: info}\r\n"]
)
def test_a_file_that_says_nothing_new_means_the_defaults(file: Path, text: str) -> None:
    file.write_text(text)
    assert load_config(file) == Config()


def test_drop_ins_go_over_the_file_in_the_order_of_their_names(file: Path) -> None:
    file.write_text("log: {level: error, format: json}\ncni: {plugin_dirs: [/a, /b]}")
    drop_ins = file.with_name("config.d")
    drop_ins.mkdir()
    (drop_ins / "20.yaml").write_text("log: {level: debug}")
    (drop_ins / "10.yaml").write_text("log: {level: warning}\ncni: {plugin_dirs: [/c]}")
    (drop_ins / ".hidden.yaml").write_text("nonsense")
    (drop_ins / "README.txt").write_text("nonsense")
    config = load_config(file)
    assert (config.log.level, config.log.format) == ("debug", "json")
    assert config.cni.plugin_dirs == (Path("/c"),)


def test_drop_ins_work_without_the_file(file: Path) -> None:
    file.with_name("config.d").mkdir()
    (file.with_name("config.d") / "a.yaml").write_text("log: {level: debug}")
    assert load_config(default_file=file).log.level == "debug"


def test_a_handler_is_added_to_the_built_in_ones_and_one_can_be_changed_or_taken_away(
    file: Path,
) -> None:
    file.write_text(
        "runtime: {handlers: {runsc: {path: runsc, kind: vm}, runc: {args: [--debug]}, kata: null}}"
    )
    handlers = load_config(file).runtime.handlers
    assert list(handlers) == ["runc", "crun", "runsc"]
    assert (handlers["runc"].path, handlers["runc"].args) == ("runc", ("--debug",))  # type: ignore[index]


def test_overrides_go_over_everything_and_the_last_wins(file: Path) -> None:
    file.write_text("log: {level: error}")
    overrides = ["log.level=info", "log.level=debug", "streaming.port=10400"]
    config = load_config(file, overrides)
    assert (config.log.level, config.streaming.port) == ("debug", 10400)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("listen=[unix:///a, unix:///b]", "listen", ("unix:///a", "unix:///b")),
        ("metrics.address=", "metrics.address", None),
        ("metrics.address=127.0.0.1:0", "metrics.address", "127.0.0.1:0"),
        ("socket.mode=0600", "socket.mode", 0o600),
        ('socket.mode="0600"', "socket.mode", 0o600),
        ("events.enabled=false", "events.enabled", False),
        ("sandbox.image=a/b:c@sha256:d", "sandbox.image", "a/b:c@sha256:d"),
        ("cni.gc=off", "cni.gc", "off"),
        (
            "security.default_sysctls.net.ipv4.ip_forward=1",
            "security.default_sysctls",
            {"net.ipv4.ip_forward": "1"},
        ),
        (
            "security.default_ulimits={nofile: {soft: 1, hard: 2}}",
            "security.default_ulimits.nofile.hard",
            2,
        ),
        ("runtime.handlers.runc.path=/opt/a=b", "runtime.handlers.runc.path", "/opt/a=b"),
    ],
)
def test_an_override_takes_what_its_key_takes(
    file: Path, override: str, path: str, value: object
) -> None:
    found: object = load_config(default_file=file, overrides=[override])
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("log.level", "--set log.level: is not key=value"),
        ("log..level=x", "--set log..level=x: is not key=value"),
        ("log.level=loud", '--set: log.level: is an unknown word ("loud")'),
        ("streaming.prt=5", "--set: streaming.prt: unknown key, did you mean port?"),
        ("listen=[", "--set listen: line 1, column 2: is not YAML"),
    ],
)
def test_a_bad_override_is_told(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override], default_file=file)
    assert says in str(caught.value)


def test_each_mistake_names_the_source_it_is_in(file: Path) -> None:
    file.write_text("log: {level: loud}\nlisten: [unix:///a, tcp://1.2.3.4:5]")
    drop_in = file.with_name("config.d") / "x.yaml"
    drop_in.parent.mkdir()
    drop_in.write_text("streaming: {port: no}")
    assert complaint(file, ["root=x"]).splitlines() == [
        '--set: root: is not an absolute path ("x"), allowed: an absolute path without ..',
        f'{file}: log.level: is an unknown word ("loud"), allowed: debug, info, warning or error',
        f'{drop_in}: streaming.port: is text ("no"), allowed: a whole number from 0 to 65535',
        f'{file}: listen[1]: requires TLS ("tcp://1.2.3.4:5"): set tls.cert, tls.key and '
        "tls.client_ca, or use unix://",
    ]


def test_files_that_are_no_configuration_are_told_all_at_once(file: Path) -> None:
    file.write_text("[1]")
    drop_in = file.with_name("config.d") / "x.yaml"
    drop_in.parent.mkdir()
    drop_in.write_bytes(b"a: \xff")
    assert complaint(file).splitlines() == [
        f"{file}: is a list, allowed: a mapping of keys",
        f"{drop_in}: is not UTF-8 at byte 3",
    ]


def test_a_huge_file_is_not_read_whole(file: Path) -> None:
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert complaint(file) == f"{file}: has more than {MAX_BYTES} bytes"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_pipe_can_be_the_file(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"log: {level: debug}")
    os.close(write_end)
    try:
        assert load_config(Path(f"/dev/fd/{read_end}")).log.level == "debug"
    finally:
        os.close(read_end)
