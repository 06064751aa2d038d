from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cri_shim import __main__ as program
from cri_shim import __version__
from cri_shim.errors import CriShimError

REPOSITORY = Path(__file__).parents[2]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cri_shim", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "cri-shim: no command given; commands: serve, check, config"),
        (["chek"], "cri-shim: unknown command 'chek'; did you mean 'check'?"),
        (["xyzzy"], "cri-shim: unknown command 'xyzzy'; known are: serve, check"),
        (["config"], "cri-shim config: the following arguments are required: COMMAND"),
        (["config", "show", "--frob"], "cri-shim config: unknown argument '--frob'"),
        (
            ["config", "show", "--set", "x"],
            "cri-shim config show: argument --set: 'x' is not KEY=VALUE",
        ),
        (["version", "--js"], "cri-shim version: unknown argument '--js'"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith(says)
    assert err.count("\n") == 1


def test_a_bad_configuration_is_a_line_per_mistake_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: loud}\nroot: x")
    assert program.main(["config", "check", str(file)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(file), "root"],
        [str(file), "log.level"],
    ]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            CriShimError("pod x: step y:\n  plugin's words"),
            1,
            "cri-shim: pod x: step y: plugin's words\n",
        ),
        (PermissionError(13, "Permission denied", "/x"), 1, "cri-shim: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(
    error: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr("cri_shim.cli.config.run_default", fail)
    assert program.main(["config", "default"]) == code
    assert capsys.readouterr().err == says


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("cri_shim.cli.config.run_default", fail)
    with pytest.raises(ZeroDivisionError):
        program.main(["config", "default"])


def test_a_reader_that_stops_early_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "cri_shim", "config", "default"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version_is_quick_because_it_loads_neither_grpc_nor_the_daemon() -> None:
    code = (
        "import sys; from cri_shim.__main__ import main; main(['version', '--json']);"
        "heavy = {'grpc', 'structlog', 'prometheus_client', 'cri_shim.daemon', 'cri_shim.rpc'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    loaded = done.stderr.strip()
    assert "grpc" not in loaded
    assert "daemon" not in loaded
    assert "rpc" not in loaded


def test_version_as_an_option_answers_too() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"cri-shim {__version__}\n")


@pytest.mark.parametrize("name", program.COMMANDS)
def test_each_command_explains_itself_on_one_screen(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0
    assert len(lines) <= 24
    assert lines[0].startswith(f"usage: cri-shim {name}")


@pytest.mark.parametrize("name", program.COMMANDS)
def test_each_command_can_be_run(name: str) -> None:
    module = import_module(program.COMMANDS[name].module)
    assert callable(module.configure)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    out = capsys.readouterr().out
    assert all(command.summary in out for command in program.COMMANDS.values())
    assert len(out.splitlines()) <= 24
