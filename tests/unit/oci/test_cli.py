"""With runtimes that are shell scripts; real ones are in tests/integration/oci."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from cri_shim.errors import DeadlineError, NotFoundError, RuntimeCommandError
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.runtime import ExecFiles, HandlerSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
ID = "c0ffee"


def _scripted(directory: Path, script: str) -> str:
    path = directory / "runtime"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def _with_runtime(
    directory: Path, script: str, use: Callable[[CliRuntime], Awaitable[T]], **changes: Any
) -> T:
    async def main() -> T:
        reaper = Reaper()
        reaper.open()
        try:
            settings = HandlerSettings(
                "fake", _scripted(directory, script), directory / "root", **changes
            )
            return await use(CliRuntime(settings, reaper, timeout_s=5))
        finally:
            reaper.close()

    return asyncio.run(main())


def test_every_command_line_begins_with_root_and_the_handlers_options(tmp_path: Path) -> None:
    said = tmp_path / "said"
    _with_runtime(
        tmp_path,
        f'echo "$@" "[$SECRET]" >> {said}',
        lambda runtime: runtime.kill(ID, 15, all_processes=True),
        args=("--debug",),
        env={"SECRET": "x"},
    )

    assert said.read_text() == f"--root {tmp_path}/root --debug kill --all {ID} 15 [x]\n"


def test_systemd_cgroups_are_asked_for_on_every_command_line(tmp_path: Path) -> None:
    settings = HandlerSettings("fake", _scripted(tmp_path, ""), tmp_path / "root")
    runtime = CliRuntime(settings, Reaper(), timeout_s=5, systemd_cgroup=True)

    assert runtime.command_prefix() == [
        str(tmp_path / "runtime"),
        "--root",
        str(tmp_path / "root"),
        "--systemd-cgroup",
    ]


def test_exec_is_detached_and_names_its_files(tmp_path: Path) -> None:
    settings = HandlerSettings("fake", _scripted(tmp_path, ""), tmp_path / "root")
    runtime = CliRuntime(settings, Reaper(), timeout_s=5)
    files, socket = ExecFiles(tmp_path / "p", tmp_path / "i", tmp_path / "n"), tmp_path / "s"

    command = asyncio.run(runtime.exec_command(ID, files))
    with_terminal = asyncio.run(runtime.exec_command(ID, files, socket)).argv

    assert not command.attached
    argv = command.argv
    assert argv[3:] == [
        *("exec", "--detach", "--process", str(files.process), "--pid-file", str(files.pid)),
        ID,
    ]
    assert with_terminal[-3:] == ["--console-socket", str(socket), ID]


def _run(
    directory: Path,
    script: str,
    *,
    timeout_s: float = 20,
    then: Callable[[], object] = lambda: None,
) -> int:
    """What `run` says of a runtime that is this script; `then` is called while the reaper still is there."""

    async def use(runtime: CliRuntime) -> int:
        bundle, pid_file = directory / "bundle", directory / "pid"
        pid = await runtime.run(ID, bundle_dir=bundle, pid_file=pid_file, timeout_s=timeout_s)
        then()
        return pid

    return _with_runtime(directory, script, use)


def test_run_leaves_a_process_with_nobody_to_read_for_it(tmp_path: Path) -> None:
    said, pid_file = tmp_path / "said", tmp_path / "pid"

    pid = _run(
        tmp_path,
        f'echo "$@" > {said}; umask >> {said}; setsid sleep 600 & echo $! > {pid_file}',
        then=lambda: os.kill(int(pid_file.read_text()), signal.SIGKILL),
    )

    assert pid == int(pid_file.read_text())
    options, umask = said.read_text().splitlines()
    assert options == (
        f"--root {tmp_path}/root run --detach --bundle {tmp_path}/bundle --pid-file {pid_file} {ID}"
    )
    assert umask == "0022"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no space left' >&2; exit 1", "exited with status 1: no space left"),
        ("exit 0", "left no pid"),
        ("echo x > {pid}", "left no pid"),
        (
            'sh -c "(while [ ! -e {pid}.left ]; do sleep 0.01; done; exit 3) & echo \\$! > {pid}"\n'
            "touch {pid}.left; while kill -0 $(cat {pid}) 2>/dev/null; do sleep 0.01; done",
            "ended at once: exited with status 3",
        ),
    ],
)
def test_a_run_that_left_no_process_says_why(tmp_path: Path, script: str, words: str) -> None:
    with pytest.raises(RuntimeCommandError, match=words) as caught:
        _run(tmp_path, script.format(pid=tmp_path / "pid"))

    assert f"creating container {ID} (runtime handler 'fake')" in str(caught.value)


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = tmp_path / "started"

    with pytest.raises(DeadlineError, match=f"creating container {ID}.*not finish within 0.2 s"):
        _run(tmp_path, f"echo $$ > {started}; sleep 600", timeout_s=0.2)

    assert start_time_ticks(int(started.read_text())) is None


def test_failure_names_object_step_ending_and_the_runtimes_words(tmp_path: Path) -> None:
    script = """echo 'time="x" level=error msg="no \\"space\\" left"' >&2; exit 1"""

    with pytest.raises(RuntimeCommandError) as caught:
        _with_runtime(tmp_path, script, lambda runtime: runtime.start(ID, Path("/nonexistent")))

    assert str(caught.value) == (
        f"starting container {ID} (runtime handler 'fake'): {tmp_path}/runtime exited with status 1: "
        'no "space" left'
    )


def test_what_is_not_there_is_an_error_for_start_only(tmp_path: Path) -> None:
    script = "echo 'container does not exist' >&2; exit 1"

    with pytest.raises(NotFoundError):
        _with_runtime(tmp_path, script, lambda runtime: runtime.start(ID, Path("/nonexistent")))
    _with_runtime(tmp_path, script, lambda runtime: runtime.delete(ID))
    assert _with_runtime(tmp_path, script, lambda runtime: runtime.state(ID)) is None
    assert not _with_runtime(tmp_path, script, lambda runtime: runtime.kill(ID, 9))


def test_other_failures_of_delete_kill_and_state_are_errors(tmp_path: Path) -> None:
    script = "echo 'device or resource busy' >&2; exit 1"

    for use in (
        lambda runtime: runtime.delete(ID, force=True),
        lambda runtime: runtime.kill(ID, 9),
        lambda runtime: runtime.state(ID),
        lambda runtime: runtime.version(),
    ):
        with pytest.raises(RuntimeCommandError, match="device or resource busy"):
            _with_runtime(tmp_path, script, use)


def test_unreadable_state_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeCommandError, match="printed a state that can't be parsed"):
        _with_runtime(tmp_path, "echo '{\"id\": 3}'", lambda runtime: runtime.state(ID))


def test_hanging_runtime_is_killed_at_the_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        reaper = Reaper()
        reaper.open()
        try:
            settings = HandlerSettings("fake", _scripted(tmp_path, "sleep 60"), tmp_path)
            await CliRuntime(settings, reaper, timeout_s=0.2).delete(ID)
        finally:
            reaper.close()

    with pytest.raises(DeadlineError, match=rf"deleting container {ID} .* within 0\.2 s"):
        asyncio.run(main())


def test_runtime_that_cannot_be_run_is_an_error_with_its_cause(tmp_path: Path) -> None:
    path = tmp_path / "runtime"
    path.write_text("#!/no/such/interpreter\n", encoding="ascii")
    path.chmod(0o755)

    async def main() -> None:
        reaper = Reaper()
        reaper.open()
        try:
            settings = HandlerSettings("fake", str(path), tmp_path)
            await CliRuntime(settings, reaper, timeout_s=5).start(ID, tmp_path)
        finally:
            reaper.close()

    with pytest.raises(RuntimeCommandError, match="could not be run: No such file or directory"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "runc version 1.1.5+ds1\ncommit: x\nspec: 1.0.2-dev\ngo: go1.19",
            ("1.1.5+ds1", "1.0.2-dev"),
        ),
        ("crun version 1.8.1\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD", ("1.8.1", "1.0.0")),
        (
            "kata-runtime  : 1.13.0\n   commit   : ab\n   OCI specs: 1.0.1-dev",
            ("1.13.0", "1.0.1-dev"),
        ),
        ("odd", ("", "")),
    ],
)
def test_versions_of_all_runtimes_are_read(
    tmp_path: Path, output: str, expected: tuple[str, str]
) -> None:
    found = _with_runtime(
        tmp_path, f"cat <<'END'\n{output}\nEND", lambda runtime: runtime.version()
    )

    assert (found.version, found.spec_version) == expected
    assert found.name == output.split()[0]


@pytest.mark.parametrize("script", ["echo unknown command >&2; exit 1", "echo not json"])
def test_runtime_without_features_says_nothing(tmp_path: Path, script: str) -> None:
    assert _with_runtime(tmp_path, script, lambda runtime: runtime.features()) is None


def test_update_names_the_file_with_the_new_limits(tmp_path: Path) -> None:
    said = tmp_path / "said"
    file = tmp_path / "resources.json"
    _with_runtime(tmp_path, f'echo "$@" > {said}', lambda runtime: runtime.update(ID, file))
    assert said.read_text() == f"--root {tmp_path}/root update --resources {file} {ID}\n"
    with pytest.raises(RuntimeCommandError, match=r"changing the resources of container .*: busy"):
        _with_runtime(
            tmp_path, "echo busy >&2; exit 1", lambda runtime: runtime.update(ID, tmp_path / "x")
        )
