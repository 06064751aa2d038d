from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.oci.runtime_errors import (
    MAX_MESSAGE_CHARS,
    device_not_made,
    program_exit_code,
    refused_limit,
    runtime_message,
    says_no_directory,
    says_not_found,
    says_not_running,
    says_too_little_memory,
)

ID = "ab12" * 16


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("", ""),
        (
            'time="2026-11-22T08:55:11Z" level=error msg="container does not exist"\n',
            "container does not exist",
        ),
        ("time=2026 level=error msg=EOF\n", "EOF"),
        (
            'time="x" level=error msg="exec: \\"/none\\": stat: no such file\\n\\tat all"\n',
            'exec: "/none": stat: no such file at all',
        ),
        ('time="x" level=error msg="\\u00e9\\x41\\U0001f600"', "éA😀"),
        (
            'time="x" level=warning msg="a warning"\ntime="x" level=fatal msg="the cause"\nnoise\n',
            "the cause",
        ),
        (
            'time="x" level=error msg="first"\ntime="x" level=error msg="then"\n'
            'time="x" level=error msg="first"\n',
            "first; then",
        ),
        ('{"level":"error","msg":"from json","time":"x"}', "from json"),
        ('{"level": broken', '{"level": broken'),
        ("loading container: file does not exist\n", "loading container: file does not exist"),
        ("2026-11-22T08:55:11.123Z: crun says\n", "crun says"),
        ('time="x" level=error msg="sandbox gone" arch=amd64 name=kata-runtime', "sandbox gone"),
    ],
)
def test_runtimes_own_error_comes_without_its_wrapping(stderr: str, message: str) -> None:
    assert runtime_message(stderr) == message


def test_long_output_is_cut_at_its_front() -> None:
    message = runtime_message("x" * 5000 + "END")

    assert len(message) == MAX_MESSAGE_CHARS
    assert message.endswith("END")


@given(st.text())
def test_any_text_gives_some_message(text: str) -> None:
    assert len(runtime_message(text)) <= MAX_MESSAGE_CHARS


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Zs"))))
def test_quoted_message_comes_back_as_it_was(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')

    assert runtime_message(f'time="x" level=error msg="{quoted}"') == text[-MAX_MESSAGE_CHARS:]


@pytest.mark.parametrize(
    "message",
    [
        "container does not exist",
        f'container "{ID}" does not exist',
        f"container `{ID}` does not exist",
        f"Container ID ({ID}) does not exist",
        f"error opening file `/run/cri-shim/runtime/crun/{ID}/status`: No such file or directory",
        f"cannot open directory '/run/crun/{ID}': No such file or directory",
        "loading container: file does not exist",
        f'loading container "{ID}": file does not exist',
    ],
)
def test_every_runtimes_not_found_is_understood(message: str) -> None:
    assert says_not_found(message, ID)
    assert not says_not_running(message, ID)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "container does not exist; and something else failed",
        'container "another" does not exist',
        "error opening file `/run/crun/another/status`: No such file or directory",
        f"error opening file `/run/crun/{ID}/config.json`: No such file or directory",
        f"unable to remove cgroup {ID}: file does not exist",
        "open /proc/self/ns: no such file or directory",
    ],
)
def test_other_failures_are_never_taken_for_not_found(message: str) -> None:
    assert not says_not_found(message, ID)


@pytest.mark.parametrize(
    "message",
    [
        "container not running",
        f"the container `{ID}` is not running",
        f"kill container: container `{ID}` is not running",
        "kill container: No such process",
        f"Container {ID} not ready, running or paused, cannot send a signal",
        f"Container {ID} not ready or running, cannot send a signal",
    ],
)
def test_every_runtimes_not_running_is_understood(message: str) -> None:
    assert says_not_running(message, ID)
    assert not says_not_found(message, ID)


def test_other_failures_are_never_taken_for_not_running() -> None:
    assert not says_not_running("permission denied", ID)
    assert not says_not_running("the container `another` is not running", ID)


def test_limit_too_small_for_the_runtime_itself_is_told_from_other_failures() -> None:
    for words in (
        "error setting cgroup config: unable to set memory limit to 1 (current usage: 2, peak usage: 3)",
        "runc create failed: container init was OOM-killed (memory limit too low?)",
    ):
        assert says_too_little_memory(words)
    assert not says_too_little_memory("unable to start container process: no such file: memory")


@pytest.mark.parametrize(
    ("words", "blamed"),
    [
        ("error during container init: mkdir /data/x: read-only file system", True),
        ("error during container init: mkdir /data: not a directory", True),
        ("chdir to `/data/x/y`: Permission denied", True),
        ('mkdir "/data/x": no', True),
        ("error during container init: mkdir /dat: read-only file system", False),
        ("error during container init: mkdir /data/x/y/z: read-only file system", False),
        ("open /data/x/y: no such file", False),
    ],
)
def test_working_directory_that_can_not_be_is_told_from_other_failures(
    words: str, blamed: bool
) -> None:
    assert says_no_directory(words, "/data/x/y") is blamed


NO_START = "runc create failed: unable to start container process: "
NO_EXEC = "exec failed: unable to start container process: "


@pytest.mark.parametrize(
    ("words", "code"),
    [
        # runc, at a creation
        (f'{NO_START}exec: "nope": executable file not found in $PATH', 127),
        (f'{NO_START}exec: "/no/such": stat /no/such: no such file or directory', 127),
        (f'{NO_START}exec: "/etc": permission denied', 126),
        (f'{NO_START}exec: "/etc": is a directory', 126),
        (f'{NO_START}exec: "/a/b": stat /a/b: not a directory', 126),
        (f'{NO_START}exec: "/loop": stat /loop: too many levels of symbolic links', 126),
        (f'{NO_START}error during container init: exec: "/x: y": permission denied', 126),
        ('starting container process caused: exec: "x": executable file not found in $PATH', 127),
        (f"{NO_START}error during container init: mkdir /data: not a directory", 126),
        (f"{NO_START}error during container init: mkdir /data/x: read-only file system", 126),
        (f'{NO_START}chdir to cwd ("/data/x/y") set in config.json failed: permission denied', 126),
        # runc, at an exec
        (f'{NO_EXEC}exec: "nope": executable file not found in $PATH', 127),
        (
            f'{NO_EXEC}chdir to cwd ("/data/x/y") set in config.json failed: no such file or directory',
            127,
        ),
        # crun
        ("executable file `nope` not found in $PATH: No such file or directory", 127),
        ("executable file `/nope` not found: No such file or directory", 127),
        ("open executable: Permission denied", 126),
        ("exec container process `/script`: Exec format error", 126),
        ("chdir to `/data/x/y`: Permission denied", 126),
        # others
        ("", 0),
        (f"{NO_START}error during container init: mkdir /other: not a directory", 0),
        (
            f"{NO_START}error during container init: open /proc/self/exec: no such file or directory",
            0,
        ),
        (f"{NO_START}container init was OOM-killed (memory limit too low?)", 0),
        ("runc create failed: unable to apply cgroup configuration: permission denied", 0),
        ("mount `/exec: x`: No such file or directory", 0),
    ],
)
def test_program_that_can_not_be_run_is_told_from_other_failures(words: str, code: int) -> None:
    assert program_exit_code(words, "/data/x/y") == code


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (
            'failed to write "7": write /sys/fs/cgroup/cpuset/x/c0/cpuset.cpus: numerical result out of range',
            "cpuset.cpus",
        ),
        ("write /sys/fs/cgroup/cpu/c0/cpu.cfs_quota_us: invalid argument", "cpu.cfs_quota_us"),
        ("write `cpuset.mems`: Permission denied", "cpuset.mems"),
        ("write /sys/fs/cgroup/memory/c0/memory.limit_in_bytes: device or resource busy", ""),
        ("open /sys/fs/cgroup/cpu/c0/cpu.shares: permission denied", ""),
        ("write /proc/self/attr/exec: invalid argument", ""),
    ],
)
def test_limit_that_the_kernel_does_not_take_is_told_from_other_failures(
    words: str, file: str
) -> None:
    assert refused_limit(words) == file


def test_device_that_could_not_be_made_is_told_from_other_failures() -> None:
    words = "error creating device nodes: mknod /run/c0/rootfs/opt/device: read-only file system"
    assert device_not_made(words) == "/run/c0/rootfs/opt/device"
    assert device_not_made("mknod `/dev/x`: Operation not permitted") == "/dev/x"
    assert device_not_made("open /opt/device: read-only file system") == ""


def test_what_a_request_made_the_runtime_repeat_moves_no_terminal_and_begins_no_line() -> None:
    message = runtime_message(
        'level=error msg="exec: \\"a\\x1b[2J\\r\\nroot\\u009b\\": no such file"\n'
    )
    assert message == 'exec: "a [2J root ": no such file'
