"""Runtimes of kind vm: which one it is, and what each is told in its own way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from structlog.testing import capture_logs

from cri_shim.config.model import HandlerKind
from cri_shim.errors import DeadlineError, RuntimeCommandError, UnsupportedError
from cri_shim.host.cgroups.placement import cgroup_path
from cri_shim.host.pidfd import start_time_ticks
from cri_shim.host.process import Reaper
from cri_shim.oci import guest_exec
from cri_shim.oci.guest_exec import mark
from cri_shim.oci.runsc_proxy import START, STARTED
from cri_shim.oci.runtime import ExecFiles, HandlerSettings
from cri_shim.oci.vm import KATA, PROXY, RUNSC, VmRuntime, _descendants, clear_kept
from tests.fakes.clock import turn_over

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tests.fakes.clock import MovableClock

ID, POD = "c" * 64, "a" * 64
T = TypeVar("T")
SPEC: dict[str, Any] = {
    "linux": {
        "namespaces": [
            {"type": "mount"},
            {"type": "pid", "path": "/proc/7/ns/pid"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"},
        ]
    }
}


def with_runtime(
    tmp_path: Path,
    name: str,
    use: Callable[[VmRuntime], Coroutine[object, object, T]],
    script: str = "exit 1",
) -> T:
    path = tmp_path / "runtime"
    said = "runsc version 1\\nspec: 1" if name == "runsc" else f"{name}  : 1.13.0"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) printf "{said}\\n"; exit;; esac\n{script}\n'
    )
    path.chmod(0o755)

    async def run() -> T:
        reaper = Reaper()
        reaper.open()
        try:
            settings = HandlerSettings("vm", str(path), tmp_path / "root", HandlerKind.VM)
            return await use(VmRuntime(settings, reaper, timeout_s=5))
        finally:
            reaper.close()

    return asyncio.run(run())


def a_runtime(tmp_path: Path, *, systemd: bool) -> VmRuntime:
    settings = HandlerSettings("kata", "kata-runtime", tmp_path, HandlerKind.VM)
    return VmRuntime(settings, Reaper(), timeout_s=5, systemd_cgroup=systemd)


def exec_files(tmp_path: Path) -> ExecFiles:
    return ExecFiles(tmp_path / "p", tmp_path / "i", tmp_path / "n")


@pytest.mark.parametrize(
    ("name", "dialect"), [("runsc", RUNSC), ("kata-runtime", KATA), ("another", KATA)]
)
def test_it_is_what_it_calls_itself(tmp_path: Path, name: str, dialect: object) -> None:
    assert with_runtime(tmp_path, name, VmRuntime.dialect) is dialect


def test_a_container_that_joins_a_runsc_sandbox_has_a_proxy_and_no_other_has(
    tmp_path: Path,
) -> None:
    async def prefixes(runtime: VmRuntime) -> tuple[list[str], list[str]]:
        return (
            await runtime.create_prefix(joins_sandbox=True),
            await runtime.create_prefix(joins_sandbox=False),
        )

    joining, pause = with_runtime(tmp_path, "runsc", prefixes)
    assert joining == [sys.executable, "-I", "-S", str(PROXY), *pause]
    assert PROXY.is_file()
    joining, pause = with_runtime(tmp_path, "kata-runtime", prefixes)
    assert joining == pause


def test_exec_is_attached_where_a_detached_one_had_no_streams(tmp_path: Path) -> None:
    files, console = exec_files(tmp_path), tmp_path / "s"

    marks = []

    async def commands(runtime: VmRuntime) -> tuple[bool, list[str], bool, list[str]]:
        plain = await runtime.exec_command(ID, files)
        marks.append(plain.env)
        tty = await runtime.exec_command(ID, files, console)
        return plain.attached, plain.argv[3:], tty.attached, tty.argv[3:]

    attached, argv, tty_attached, tty_argv = with_runtime(tmp_path, "kata-runtime", commands)
    both = ["--process", str(files.process), "--pid-file", str(files.pid)]
    assert (attached, argv) == (True, ["exec", *both, ID])
    assert (tty_attached, tty_argv) == (
        False,
        ["exec", "--detach", *both, "--console-socket", str(console), ID],
    )
    attached, argv, _, _ = with_runtime(tmp_path, "runsc", commands)
    inner = ["--internal-pid-file", str(files.inner_pid)]
    assert (attached, argv) == (False, ["exec", "--detach", *both, *inner, ID])
    assert marks == [(mark(files.process),), ()]


def test_runsc_is_told_of_the_pods_own_processes_by_no_word_about_them(tmp_path: Path) -> None:
    async def adapted(runtime: VmRuntime) -> list[list[dict[str, str]]]:
        return [
            (await runtime.adapted(SPEC, joins_sandbox=joins))["linux"]["namespaces"]
            for joins in (True, False)
        ]

    joining, pause = with_runtime(tmp_path, "runsc", adapted)
    assert [each["type"] for each in joining] == ["mount", "ipc"]
    assert [each["type"] for each in pause] == ["mount", "pid", "ipc"]
    assert with_runtime(tmp_path, "kata-runtime", adapted) == [SPEC["linux"]["namespaces"]] * 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"0\n", ""), (b"128\nno such command", "no such command"), (b"", "no answer within 5 s")],
)
def test_a_start_is_the_proxys_where_there_is_one(
    tmp_path: Path, clock: MovableClock, answer: bytes, error: str
) -> None:
    for name in (START, STARTED):
        os.mkfifo(tmp_path / name)
    start, started = (os.open(tmp_path / name, os.O_RDWR) for name in (START, STARTED))

    async def start_it(runtime: VmRuntime) -> None:
        starting = asyncio.ensure_future(runtime.start(ID, tmp_path))
        assert await asyncio.to_thread(os.read, start, 1) == b"\n"
        os.write(started, answer)
        if not answer:
            await turn_over()
            await clock.sleep(6)
        await starting

    try:
        if error:
            with pytest.raises((RuntimeCommandError, DeadlineError), match=error):
                with_runtime(tmp_path, "runsc", start_it)
        else:
            with_runtime(tmp_path, "runsc", start_it)
    finally:
        os.close(start)
        os.close(started)


def test_without_a_proxy_the_runtime_starts(tmp_path: Path) -> None:
    script = f'echo "$*" >{tmp_path}/said'
    with_runtime(tmp_path, "kata-runtime", lambda r: r.start(ID, tmp_path), script)
    assert (tmp_path / "said").read_text().endswith(f" start {ID}\n")


def test_an_update_that_fails_otherwise_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeCommandError, match="busy"):
        with_runtime(
            tmp_path, "runsc", lambda r: r.update(ID, tmp_path / "r"), "echo busy >&2; exit 1"
        )


def test_an_exec_without_a_number_inside_is_not_killed_by_another(tmp_path: Path) -> None:
    script = f'echo "$*" >>{tmp_path}/said'
    with_runtime(tmp_path, "runsc", lambda r: r.end_exec(ID, exec_files(tmp_path), 1), script)
    assert not (tmp_path / "said").exists()


def test_an_exec_that_cannot_be_ended_is_logged(tmp_path: Path) -> None:
    files = exec_files(tmp_path)
    files.inner_pid.write_text("11")
    with capture_logs() as said:
        with_runtime(tmp_path, "runsc", lambda r: r.end_exec(ID, files, 1), "sleep 600")
    assert [line["event"] for line in said if line["log_level"] == "warning"] == [
        "exec not ended in its sandbox"
    ]


def test_an_update_that_it_has_no_command_for_is_unsupported(tmp_path: Path) -> None:
    script = """
    i=0; while [ $i -lt 200 ]; do echo "	some command       explained" >&2; i=$((i+1)); done
    echo "	flags            describe all known top-level flags" >&2; exit 128"""
    with pytest.raises(UnsupportedError, match=ID):
        with_runtime(tmp_path, "runsc", lambda r: r.update(ID, tmp_path / "r"), script)


def test_an_exec_in_a_runsc_sandbox_is_killed_with_its_descendants_by_its_pids_there(
    tmp_path: Path,
) -> None:
    files = exec_files(tmp_path)
    files.inner_pid.write_text("11")
    script = f"""
    case "$*" in
        *" ps "*)
            printf "UID PID PPID C TTY STIME TIME CMD\\n0 11 0 0 ? 0 0 sh\\n0 12 11 0 ? 0 0 a\\n"
            printf "0 13 12 0 ? 0 0 b\\n0 14 1 0 ? 0 0 c\\n";;
        *) echo "$*" >>{tmp_path}/said;;
    esac"""
    with_runtime(tmp_path, "runsc", lambda r: r.end_exec(ID, files, 1), script)
    killed = [line.split(" kill ")[1] for line in (tmp_path / "said").read_text().splitlines()]
    assert killed == [f"--pid {pid} {ID} KILL" for pid in (11, 12, 13)]


@pytest.mark.parametrize("shell", ["exit 0", "exit 127", "exec sleep 600"])
def test_an_exec_in_a_guest_is_ended_by_another_or_by_signals(
    tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's file is a shell script: what it calls killing ends nothing here, so that signals have to."""
    hangs = "sleep" in shell
    monkeypatch.setattr(guest_exec, "KILLER_TIMEOUT_S", 0.2 if hangs else 60)
    monkeypatch.setattr(guest_exec, "KILLED_S", 0.1)
    files = exec_files(tmp_path)
    files.process.write_text('{"args": ["x"], "env": [], "terminal": false}')
    script = f"""case "$*" in *" exec "*) cp "$5" {tmp_path}/killer; echo "$*" >{tmp_path}/said; {shell};; esac"""
    with subprocess.Popen(["sleep", "600"]) as process:
        with_runtime(tmp_path, "kata-runtime", lambda r: r.end_exec(ID, files, process.pid), script)
        assert start_time_ticks(process.pid) is None
    if not hangs:
        assert mark(files.process) in (tmp_path / "killer").read_text()
        assert (tmp_path / "said").read_text().split()[2:4] == ["exec", "--process"]
    assert not files.process.with_suffix(".killer").exists()


def test_cgroups_are_named_after_the_object_beside_the_one_that_was_told(tmp_path: Path) -> None:
    told = f"pods/{ID}"
    found = a_runtime(tmp_path, systemd=False).cgroup_dirs(ID, told)
    assert found == (told, f"pods/kata_{ID}")
    assert a_runtime(tmp_path, systemd=False).cgroup_dirs(ID, ID) == (ID, f"kata_{ID}")


def test_with_systemd_they_are_in_the_slice_or_at_the_root_by_the_whole_path(
    tmp_path: Path,
) -> None:
    path = cgroup_path("/a.slice/a-b.slice", ID, systemd=True)
    found = a_runtime(tmp_path, systemd=True).cgroup_dirs(ID, path.relative_dir)
    assert found == (
        f"a.slice/a-b.slice/cri-shim-{ID}.scope",
        f"a.slice/a-b.slice/kata_{ID}",
        f"a.slice/a-b.slice/kata_cri-shim-{ID}.scope",
        f"kata_{ID}",
        path.spec_path,
        f"kata_{path.spec_path}",
    )
    root = cgroup_path("-.slice", ID, systemd=True)
    assert root.spec_path in a_runtime(tmp_path, systemd=True).cgroup_dirs(ID, root.relative_dir)


def test_descendants_are_found_in_any_order_and_once() -> None:
    table = "UID PID PPID C\n0 5 4 0\n0 4 3 0\n0 9 1 0\n0 3 1 0\n"
    assert _descendants(table, 3) == [4, 5]
    assert _descendants("", 3) == []


def test_what_is_kept_of_an_object_goes_and_what_is_of_others_stays(tmp_path: Path) -> None:
    other = "b" * 64
    for name in (ID, other):
        (tmp_path / POD / name).mkdir(parents=True)
        (tmp_path / POD / f"{name}-1234-hosts").touch()
        (tmp_path / f"{name}_sandbox:{POD}.state").touch()
    clear_kept(ID, POD, (tmp_path, tmp_path / "nothing"))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == [
        POD,
        f"{POD}/{other}",
        f"{POD}/{other}-1234-hosts",
        f"{other}_sandbox:{POD}.state",
    ]
    clear_kept(POD, POD, (tmp_path,))
    assert list(tmp_path.iterdir()) == []
