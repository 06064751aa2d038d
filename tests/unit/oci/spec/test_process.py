from dataclasses import replace

import pytest

from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig, KeyValue
from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.inputs import ImageDefaults, ResolvedUser, Ulimit
from cri_shim.oci.spec.process import (
    DEFAULT_PATH,
    build_args,
    build_cwd,
    build_env,
    build_exec_process,
    build_rlimits,
    exec_base,
    undecodable_env,
)

IMAGE = ImageDefaults(name="app", entrypoint=("entry", "e1"), cmd=("cmd", "c1"))


def env_of(
    *pairs: tuple[str, bytes], image: tuple[str, ...] = (), home: str = "/root", tty: bool = False
) -> list[str]:
    config = ContainerConfig(envs=[KeyValue(key=key, value=value) for key, value in pairs], tty=tty)
    defaults = replace(IMAGE, env=image)
    return build_env(config, defaults, ResolvedUser(home=home), hostname="web")


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["entry", "e1", "cmd", "c1"]),
        ([], ["x"], ["entry", "e1", "x"]),
        (["run"], [], ["run"]),
        (["run"], ["x"], ["run", "x"]),
    ],
)
def test_command_replaces_the_entrypoint_and_the_images_cmd(
    command: list[str], args: list[str], expected: list[str]
) -> None:
    assert build_args(ContainerConfig(command=command, args=args), IMAGE) == expected


def test_image_with_only_a_cmd_runs_it() -> None:
    assert build_args(ContainerConfig(), ImageDefaults(cmd=("sh",))) == ["sh"]


def test_no_command_anywhere_is_an_error_and_never_a_shell() -> None:
    with pytest.raises(InvalidArgumentError, match="names a command"):
        build_args(ContainerConfig(), ImageDefaults(name="empty"))


@pytest.mark.parametrize(
    ("command", "args", "image", "said_in"),
    [
        (["", "x"], ["y"], IMAGE, "command"),
        ([], ["", "x"], ImageDefaults(), "args"),
        ([], ["x"], ImageDefaults(entrypoint=("",)), "image ENTRYPOINT"),
        ([], [], ImageDefaults(cmd=("",)), "image CMD"),
    ],
)
def test_empty_first_word_is_refused_where_it_stands(
    command: list[str], args: list[str], image: ImageDefaults, said_in: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{said_in}: .*empty"):
        build_args(ContainerConfig(command=command, args=args), image)


def test_nul_in_an_argument_is_refused_where_it_stands() -> None:
    with pytest.raises(InvalidArgumentError, match=r"command\[1\].*NUL"):
        build_args(ContainerConfig(command=["a", "b\0c"]), IMAGE)
    with pytest.raises(InvalidArgumentError, match=r"args\[0\].*NUL"):
        build_args(ContainerConfig(command=["a"], args=["\0"]), IMAGE)
    with pytest.raises(InvalidArgumentError, match=r"image ENTRYPOINT or CMD.*NUL"):
        build_args(ContainerConfig(), ImageDefaults(entrypoint=("a\0",)))


def test_environment_defaults_give_way_to_the_image_and_both_to_the_request() -> None:
    assert env_of() == [f"PATH={DEFAULT_PATH}", "HOSTNAME=web", "HOME=/root"]
    assert env_of(("B", b"pod"), image=("PATH=/x", "A=1=2", "B=image")) == [
        "PATH=/x",
        "HOSTNAME=web",
        "A=1=2",
        "B=pod",
        "HOME=/root",
    ]


def test_later_of_two_requested_variables_stays() -> None:
    assert "A=2" in env_of(("A", b"1"), ("A", b"2"))
    assert "A=1" not in env_of(("A", b"1"), ("A", b"2"))


def test_terminal_has_a_term_unless_the_image_chose_one() -> None:
    assert "TERM=xterm" in env_of(tty=True)
    assert "TERM=dumb" in env_of(image=("TERM=dumb",), tty=True)
    assert not any(entry.startswith("TERM") for entry in env_of())


def test_home_comes_from_the_request_the_image_or_the_user() -> None:
    assert "HOME=/h" in env_of(("HOME", b"/h"), image=("HOME=/i",))
    assert "HOME=/i" in env_of(image=("HOME=/i",))
    assert "HOME=/" in env_of(home="")


@pytest.mark.parametrize("entry", ["NOVALUE", "=x", "", "A=b\0c"])
def test_malformed_variable_of_an_image_is_skipped(entry: str) -> None:
    assert env_of(image=(entry,)) == env_of()


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_impossible_name_in_a_request_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="envs"):
        env_of((name, b"x"))


def test_nul_in_a_value_is_refused_and_the_value_not_told() -> None:
    with pytest.raises(InvalidArgumentError, match=r"envs\[0\]\.value: .*'A' .*NUL") as refused:
        env_of(("A", b"s3cret\0y"))
    assert "s3cret" not in str(refused.value)


def test_bytes_that_are_not_utf8_become_replacement_characters_and_are_reported() -> None:
    assert "RAW=a\ufffd\ufffd" in env_of(("RAW", b"a\xff\xfe"))
    pairs = [KeyValue(key="RAW", value=b"\xff"), KeyValue(key="TEXT", value="ä".encode())]
    assert undecodable_env(ContainerConfig(envs=pairs)) == ["RAW"]


@pytest.mark.parametrize("home", ["/h\nroot:x:0:0::/:/bin/sh", "/h\r", "/h\x1b"])
def test_cve_2022_4318_home_with_the_real_newline_byte_is_refused(home: str) -> None:
    with pytest.raises(InvalidArgumentError, match="envs: HOME"):
        env_of(("HOME", home.encode()))
    with pytest.raises(InvalidArgumentError, match="image /etc/passwd: HOME"):
        env_of(home=home)
    with pytest.raises(InvalidArgumentError, match="image ENV: HOME"):
        env_of(image=(f"HOME={home}",))


def test_home_with_a_backslash_and_an_n_is_a_name_like_any_other() -> None:
    assert r"HOME=/h\n" in env_of(("HOME", rb"/h\n"))


def test_working_dir_is_the_requests_or_the_images_or_the_root() -> None:
    image = replace(IMAGE, working_dir="/image")
    assert build_cwd(ContainerConfig(working_dir="/pod"), image) == "/pod"
    assert build_cwd(ContainerConfig(), image) == "/image"
    assert build_cwd(ContainerConfig(), IMAGE) == "/"


@pytest.mark.parametrize(
    "cwd",
    [
        "/proc/self/fd/7",
        "/proc/self/fd",
        "//proc//self//fd//7/..",
        "/proc/1/cwd",
        "/proc/thread-self/root/etc",
        "/proc/12/task/13/fd/8",
        "/dev/fd/7",
        "/./proc/self/./fd/7",
        "/x/../proc/self/fd/7",
        "/proc/x/../self/fd/7/../../../../etc",
        "/../proc/self/fd/7",
    ],
)
def test_cve_2024_21626_working_dir_through_a_descriptor_is_refused(cwd: str) -> None:
    with pytest.raises(InvalidArgumentError, match="working_dir"):
        build_cwd(ContainerConfig(working_dir=cwd), IMAGE)
    with pytest.raises(InvalidArgumentError, match="WORKDIR"):
        build_cwd(ContainerConfig(), replace(IMAGE, working_dir=cwd))


@pytest.mark.parametrize("cwd", ["/proc", "/proc/self", "/proc/self/fdinfo", "/data/proc/self/fd"])
def test_other_places_in_proc_are_allowed(cwd: str) -> None:
    assert build_cwd(ContainerConfig(working_dir=cwd), IMAGE) == cwd


def test_working_dir_has_one_spelling() -> None:
    assert build_cwd(ContainerConfig(working_dir="//usr/./../srv/"), IMAGE) == "/srv"


def test_relative_working_dir_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="absolute"):
        build_cwd(ContainerConfig(working_dir="app"), IMAGE)


def test_rlimits_write_infinity_as_the_kernel_does() -> None:
    assert build_rlimits({"nofile": Ulimit(1024, 4096), "core": Ulimit(0, -1)}) == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
    ]


def test_exec_keeps_everything_but_arguments_and_terminal() -> None:
    process = {"args": ["a"], "env": ["A=1"], "terminal": False, "user": {"uid": 5}}
    made = build_exec_process(process, ["ls", "-l"], tty=True)
    assert made == {
        "args": ["ls", "-l"],
        "env": ["A=1", "TERM=xterm"],
        "terminal": True,
        "user": {"uid": 5},
    }
    assert process["env"] == ["A=1"]
    kept = build_exec_process({**process, "env": ["TERM=vt100"]}, ["ls"], tty=True)
    assert kept["env"] == ["TERM=vt100"]
    assert build_exec_process(process, ["ls"], tty=False)["env"] == ["A=1"]
    sized = build_exec_process(process, ["ls"], tty=True, size=(100, 30))
    assert sized["consoleSize"] == {"height": 30, "width": 100}
    assert "consoleSize" not in build_exec_process(process, ["ls"], tty=False, size=(100, 30))


@pytest.mark.parametrize("argv", [[], [""], ["ls", "\0"]])
def test_exec_of_nothing_is_refused(argv: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="cmd"):
        build_exec_process({"env": []}, argv, tty=False)


def test_what_is_kept_for_execs_has_everything_but_the_words() -> None:
    process = {"args": ["a"] * 1000, "env": ["A=1"], "cwd": "/"}
    assert exec_base(process) == {"args": [], "env": ["A=1"], "cwd": "/"}
    assert build_exec_process(exec_base(process), ["ls"], tty=False)["args"] == ["ls"]
