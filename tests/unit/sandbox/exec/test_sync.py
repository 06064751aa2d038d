"""ExecSync with real processes: a real reaper, and a small program in the runtime's place."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.model import HandlerKind
from cri_shim.errors import (
    CriShimError,
    DeadlineError,
    InvalidArgumentError,
    RuntimeCommandError,
    UnsupportedError,
    WrongStateError,
)
from cri_shim.host.pidfd import parent_pid
from cri_shim.sandbox.exec import process as exec_process
from cri_shim.sandbox.exec.process import MAX_STARTS, MAX_STARTS_OF_ONE
from cri_shim.sandbox.exec.sync import ExecResult, cut_to_fit
from cri_shim.sandbox.store.model import ContainerStatus
from cri_shim.slots import Share, Slots
from tests.fakes import exec_runtime
from tests.fakes.clock import block_until, turn_over, until
from tests.unit.sandbox.exec_node import MAX_ANSWER, MAX_OUTPUT, Node, exec_node, is_alive, pid_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.oci.runtime import ExecCommand, ExecFiles
    from tests.fakes.clock import MovableClock


@pytest.fixture
def slots() -> Slots | None:
    """A test that wants others for starts of commands is parametrized with them."""
    return None


@pytest_asyncio.fixture
async def node(tmp_path: Path, slots: Slots | None) -> AsyncIterator[Node]:
    async with exec_node(tmp_path, slots) as made:
        yield made


# --- commands that run -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_output_and_exit_code_come_back(node: Node) -> None:
    result = await node.sh("echo out; echo err >&2; exit 3")
    assert result == ExecResult(b"out\n", b"err\n", 3)


@pytest.mark.asyncio
async def test_a_command_that_a_signal_kills_has_128_and_its_number(node: Node) -> None:
    assert (await node.sh("kill -9 $$")).exit_code == 137


@pytest.mark.asyncio
async def test_it_is_the_containers_own_process_with_other_arguments(node: Node) -> None:
    node.container.process_spec = {"args": ["sh"], "env": ["A=1"], "cwd": "/x", "user": {"uid": 7}}
    seen = []
    before = node.runtime.exec_command

    async def look(
        container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        asyncio.get_running_loop().call_soon(
            lambda: seen.append(json.loads(files.process.read_bytes()))
        )
        return await before(container_id, files)

    node.runtime.exec_command = look  # type: ignore[method-assign]
    await node.run("true")
    assert seen == [
        {"args": ["true"], "env": ["A=1"], "cwd": "/x", "user": {"uid": 7}, "terminal": False}
    ]


@pytest.mark.asyncio
async def test_what_a_runtime_finds_it_by_is_in_its_environment(node: Node) -> None:
    node.container.process_spec = {"args": ["sh"], "env": ["A=1"], "cwd": "/", "user": {}}
    node.runtime.env = ("MARK=x",)
    written = json.loads((await node.sh(f"cat {node.exec_dir}/*.json")).stdout)
    assert written["env"] == ["A=1", "MARK=x"]
    assert node.container.process_spec["env"] == ["A=1"]


@pytest.mark.asyncio
async def test_command_has_the_containers_umask_also_from_a_runtime_that_does_not_set_it(
    node: Node,
) -> None:
    node.container.process_spec = {"args": ["sh"], "env": [], "cwd": "/", "user": {"umask": 0o037}}
    assert (await node.sh("umask")).stdout == b"0037\n"


@pytest.mark.asyncio
async def test_thousands_of_words_are_pythons_no_longer_once_they_are_written(
    node: Node, tmp_path: Path
) -> None:
    words = 20_000
    request = api.ExecSyncRequest(
        cmd=["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60", *(["x" * 9] * words)]
    )
    tracemalloc.start()
    try:
        call = asyncio.ensure_future(node.execs.exec_sync(node.container, request.cmd, 60))
        pid = await pid_in(tmp_path / "pid")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > words * sys.getsizeof("x" * 9)
    assert held < words * sys.getsizeof("x" * 9) / 4
    os.kill(pid, signal.SIGKILL)
    await call


@pytest.mark.asyncio
async def test_after_a_restart_the_process_is_read_back_from_the_bundle(node: Node) -> None:
    node.container.process_spec = None
    spec_file = node.paths.container(node.container.id).spec_file
    spec_file.write_text(json.dumps({"process": {"args": ["sh"], "env": [], "cwd": "/"}}))
    assert (await node.run("true")).exit_code == 0
    assert node.container.process_spec is not None


@pytest.mark.asyncio
async def test_many_commands_at_once_keep_their_output_apart(node: Node) -> None:
    results = await asyncio.gather(*(node.sh(f"echo {number}") for number in range(8)))
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(8)]


@pytest.mark.asyncio
async def test_a_child_that_goes_on_with_the_pipe_holds_nobody_up(
    node: Node, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    result = await node.sh(f"sleep 600 & echo $! > {pid_file}; echo done")
    assert (result.stdout, result.exit_code) == (b"done\n", 0)
    os.kill(await pid_in(pid_file), signal.SIGKILL)


@pytest.mark.asyncio
async def test_output_is_cut_at_the_bound_and_the_command_still_succeeds(node: Node) -> None:
    result = await node.sh("head -c 100000 /dev/zero; echo err >&2; exit 5")
    assert result.stdout == b"\0" * MAX_OUTPUT
    assert (result.stderr, result.exit_code) == (b"err\n", 5)


@pytest.mark.asyncio
async def test_both_streams_together_fit_one_answer(node: Node) -> None:
    result = await node.sh("head -c 9000 /dev/zero; head -c 9000 /dev/zero >&2")
    assert len(result.stdout) + len(result.stderr) == MAX_ANSWER


def test_a_short_stream_leaves_its_room_to_the_other() -> None:
    assert cut_to_fit(b"o" * 10, b"e" * 10, 100) == (b"o" * 10, b"e" * 10)
    assert cut_to_fit(b"o" * 100, b"e" * 2, 10) == (b"o" * 8, b"e" * 2)
    assert cut_to_fit(b"o" * 2, b"e" * 100, 10) == (b"o" * 2, b"e" * 8)
    assert cut_to_fit(b"o" * 100, b"e" * 100, 10) == (b"o" * 5, b"e" * 5)


# --- commands that do not ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "status",
    [
        ContainerStatus(committed_at_ns=1),
        ContainerStatus(committed_at_ns=1, started_at_ns=2, finished_at_ns=3),
    ],
    ids=["created", "exited"],
)
async def test_only_a_running_container_runs_commands(node: Node, status: ContainerStatus) -> None:
    node.container.status = status
    with pytest.raises(WrongStateError, match="not running"):
        await node.run("true")


@pytest.mark.asyncio
@pytest.mark.parametrize("command", [[], [""], ["a\0b"]])
async def test_nothing_is_no_command(node: Node, command: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="cmd"):
        await node.run(*command)


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["refuse", "refuse-0"])
async def test_without_a_pid_the_runtime_refused_whatever_its_status(node: Node, how: str) -> None:
    with pytest.raises(RuntimeCommandError, match="exec failed: no such file"):
        await node.run(how)


@pytest.mark.asyncio
async def test_a_command_that_is_not_there_has_failed_as_in_a_shell(node: Node) -> None:
    result = await node.run("absent")
    assert (result.stdout, result.exit_code) == (b"", 127)
    assert result.stderr.endswith(b'exec: "absent": executable file not found in $PATH\n')
    assert list(node.exec_dir.iterdir()) == []


@pytest.mark.asyncio
async def test_a_torn_pid_file_names_nobody(node: Node) -> None:
    with pytest.raises(RuntimeCommandError):
        await node.run("torn")


@pytest.mark.asyncio
async def test_a_process_that_does_not_become_ours_is_left_alone(node: Node) -> None:
    with pytest.raises(UnsupportedError, match="is not a child of the daemon"):
        await node.run("stranger")


@pytest.mark.asyncio
async def test_a_runtime_that_is_not_there_is_said(node: Node) -> None:
    node.runtime.program = ["/nonexistent/runc"]
    with pytest.raises(RuntimeCommandError, match="could not be run"):
        await node.run("true")


@pytest.mark.asyncio
async def test_a_process_file_that_cannot_be_written_is_said(node: Node) -> None:
    node.exec_dir.rmdir()
    with pytest.raises(CriShimError, match="exec"):
        await node.run("true")
    node.exec_dir.mkdir()


# --- time, and callers that go away ------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_at_the_deadline_the_command_and_all_it_started_die(
    node: Node, tmp_path: Path
) -> None:
    own, child, apart = (tmp_path / name for name in ("own", "child", "apart"))
    script = (
        f"echo $$ > {own}; sleep 600 & echo $! > {child};"
        f" setsid sh -c 'echo $$ > {apart}; exec sleep 600' & wait"
    )
    if shutil.which("setsid") is None:
        pytest.skip("no setsid here")
    call = asyncio.ensure_future(node.sh(script, timeout_s=0.4))
    pids = [await pid_in(path) for path in (own, child, apart)]
    with pytest.raises(DeadlineError, match="did not end within"):
        await call
    await until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.asyncio
@pytest.mark.parametrize("falls_to", ["the container", "the daemon"])
async def test_at_the_deadline_who_lost_its_parent_dies_with_its_session(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, falls_to: str
) -> None:
    # Its parent ends at once. In a PID namespace it then is a child of the container's first process.
    script = f"(sleep 600 & echo $! > {tmp_path}/stray); sleep 600"
    call = asyncio.ensure_future(node.sh(script, timeout_s=0.6))
    stray = await pid_in(tmp_path / "stray")
    if falls_to == "the container":
        monkeypatch.setattr(node.reaper, "orphans", list)
        node.pids_in_container = [stray, os.getpid()]
    with pytest.raises(DeadlineError, match="did not end within"):
        await call
    await until(lambda: not is_alive(stray))


@pytest.mark.asyncio
async def test_a_runtime_that_does_not_answer_is_dead_when_its_caller_hears_of_the_deadline(
    node: Node,
) -> None:
    with pytest.raises(DeadlineError, match=r"runc did not start 'hang' within 0\.1 s"):
        await node.run("hang", timeout_s=0.1)
    assert node.runtimes() == []


@pytest.mark.asyncio
async def test_a_runtime_that_does_not_answer_is_killed_without_a_deadline_too(
    node: Node, clock: MovableClock
) -> None:
    limit_s = exec_process.RUNTIME_TIMEOUT_S
    for timeout_s in (0, 2 * limit_s):
        running = asyncio.ensure_future(node.run("hang", timeout_s=timeout_s))
        await until(node.runtimes)
        clock.move(limit_s)
        with pytest.raises(DeadlineError, match=f"did not start 'hang' within {limit_s:g} s"):
            await running
        assert node.runtimes() == []


@pytest.mark.asyncio
async def test_a_command_that_had_started_when_its_runtime_was_killed_dies_too(
    node: Node, tmp_path: Path
) -> None:
    # The runtime starts the command and then hangs itself, its pid file written.
    slow = tmp_path / "slow_runtime.py"
    slow.write_text(
        Path(exec_runtime.__file__)
        .read_text()
        .replace("sys.exit(main())", "main(); time.sleep(600)")
    )
    node.runtime.program = [sys.executable, "-SE", str(slow)]
    pid_file = tmp_path / "pid"
    call = asyncio.ensure_future(node.sh(f"echo $$ > {pid_file}; exec sleep 600", timeout_s=0.5))
    pid = await pid_in(pid_file)
    assert node.runtimes() != []
    with pytest.raises(DeadlineError):
        await call
    assert node.runtimes() == []
    assert not is_alive(pid)


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_takes_its_command_along(node: Node, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    call = asyncio.ensure_future(node.sh(f"echo $$ > {pid_file}; sleep 600"))
    pid = await pid_in(pid_file)
    await until(lambda: parent_pid(pid) == os.getpid())  # the runtime has left
    await turn_over()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await node.background.close(5)
    assert not is_alive(pid)


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_before_the_runtime_answers_takes_it_along(
    node: Node,
) -> None:
    call = asyncio.ensure_future(node.run("hang"))
    await until(node.runtimes)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await node.background.close(5)
    assert node.runtimes() == []


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_while_its_command_is_handed_over_takes_it_along(
    node: Node, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    call = asyncio.ensure_future(node.sh(f"echo $$ > {pid_file}; exec sleep 600"))
    await until(lambda: list(node.exec_dir.iterdir()))
    # The loop sees nothing while the runtime starts the command and leaves, and then everything at once.
    block_until(
        lambda: pid_file.exists() and pid_file.read_text().strip() and node.runtimes() == []
    )
    pid = int(pid_file.read_text())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await node.background.close(5)
    assert not is_alive(pid)


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_at_the_end_kills_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of what was collected may be somebody else's by then.
    killed: list[int] = []

    async def note(pid: int, start_ticks: int | None, **_: object) -> bool:
        killed.append(pid)
        return True

    monkeypatch.setattr(node.host, "kill_family", note)
    call = asyncio.ensure_future(node.run("true"))
    await until(lambda: node.background.tasks)
    [work] = node.background.tasks
    work.add_done_callback(lambda _: call.cancel())
    with pytest.raises(asyncio.CancelledError):
        await call
    await node.background.close(5)
    assert killed == []


@pytest.mark.asyncio
async def test_while_it_runs_a_file_names_the_command_for_recovery(
    node: Node, tmp_path: Path
) -> None:
    pid_file, go = tmp_path / "pid", tmp_path / "go"
    call = asyncio.ensure_future(
        node.sh(f"echo $$ > {pid_file}; while [ ! -e {go} ]; do sleep 0.01; done")
    )
    pid = await pid_in(pid_file)
    await until(lambda: list(node.exec_dir.glob("*.pid")))
    [named] = node.exec_dir.glob("*.pid")
    await until(lambda: named.read_text())
    assert int(named.read_text()) == pid
    go.touch()
    assert (await call).exit_code == 0


@pytest.mark.parametrize("slots", [Slots(2)], ids=["two"])
@pytest.mark.asyncio
async def test_a_bounded_number_is_started_at_a_time_and_who_waits_too_long_is_told(
    node: Node, slots: Slots
) -> None:
    hanging = [asyncio.ensure_future(node.run("hang", timeout_s=0.5)) for _ in range(2)]
    await until(lambda: slots.usage.with_slot == 2)
    with pytest.raises(DeadlineError, match=": 2 others are under way"):
        await node.run("true", timeout_s=0.1)
    waits = asyncio.ensure_future(node.run("true", timeout_s=20))
    for call in hanging:
        with pytest.raises(DeadlineError):
            await call
    assert (await waits).exit_code == 0


@pytest.mark.parametrize("slots", [Slots(MAX_STARTS)], ids=["all"])
@pytest.mark.asyncio
async def test_a_container_whose_starts_hang_takes_no_turn_from_others(
    node: Node, slots: Slots
) -> None:
    hanging = [
        asyncio.ensure_future(node.run("hang", timeout_s=1)) for _ in range(2 * MAX_STARTS_OF_ONE)
    ]
    await until(lambda: slots.usage.with_slot == MAX_STARTS_OF_ONE)
    with pytest.raises(DeadlineError, match=f"{MAX_STARTS_OF_ONE} others of container c"):
        await node.run("true", timeout_s=0.1)
    mine, node.container = node.container, node.another_container()
    assert (await node.run("true", timeout_s=20)).exit_code == 0
    node.container = mine
    assert not any(call.done() for call in hanging)
    for call in hanging:
        with pytest.raises(DeadlineError):
            await call
    assert (await node.run("true", timeout_s=20)).exit_code == 0


@pytest.mark.parametrize(
    "slots", [Slots(2, slow_total=6, slow_after_s=0.2)], ids=["six may be slow"]
)
@pytest.mark.asyncio
async def test_pods_whose_starts_hang_take_no_slot_from_others(node: Node, slots: Slots) -> None:
    hanging = [
        asyncio.ensure_future(node.execs.exec_sync(container, ["hang"], 60))
        for container in (node.another_container(letter, pod=letter) for letter in "123")
        for _ in range(2)
    ]
    # Three times as many as there are slots.
    for _ in range(3):
        assert (await node.run("true", timeout_s=20)).exit_code == 0
    assert not any(call.done() for call in hanging)
    assert slots.usage.slow >= 2  # as many as there are slots: they gave them back
    for call in hanging:
        call.cancel()
    await asyncio.wait(hanging)


@pytest.mark.parametrize(
    "slots", [Slots(1, slow_total=1, slow_after_s=0.1, patience_s=0.2)], ids=["one may be slow"]
)
@pytest.mark.asyncio
async def test_a_start_that_is_given_up_for_others_is_killed(node: Node) -> None:
    one, other = (node.another_container(letter, pod=letter) for letter in "12")
    first = asyncio.ensure_future(node.execs.exec_sync(one, ["hang"], 60))
    second = asyncio.ensure_future(node.execs.exec_sync(other, ["hang"], 60))
    with pytest.raises(DeadlineError, match="was given up after"):
        await first
    assert (await node.run("true", timeout_s=20)).exit_code == 0
    second.cancel()
    await asyncio.wait([second])
    assert second.cancelled() or isinstance(second.exception(), DeadlineError)  # on a slow machine


@pytest.mark.parametrize("slots", [Slots(1)], ids=["one"])
@pytest.mark.asyncio
async def test_one_who_goes_away_while_it_waits_for_its_turn_starts_nothing(
    node: Node, tmp_path: Path, slots: Slots
) -> None:
    async with slots.slot("another", Share("pod", 1)):
        call = asyncio.ensure_future(node.sh(f"touch {tmp_path}/ran"))
        await until(lambda: slots.usage.waiting)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await node.background.close(5)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def attached(node: Node) -> Node:
    """Of a handler of kind vm, whose detached execs have no streams."""
    node.runtime.attached = True
    node.runtime.settings = replace(node.runtime.settings, kind=HandlerKind.VM)
    return node


@pytest.mark.asyncio
async def test_an_attached_exec_has_streams_and_a_code_and_leaves_no_files(attached: Node) -> None:
    result = await attached.sh("echo out; echo err >&2; exit 7")
    assert result == ExecResult(b"out\n", b"err\n", 7)
    assert list(attached.exec_dir.iterdir()) == []
    assert attached.cgroups.gathered == [], "what entered it is not among the node's processes"


@pytest.mark.asyncio
async def test_an_attached_exec_that_is_refused_says_so(attached: Node) -> None:
    with pytest.raises(RuntimeCommandError, match="exec failed: no such file"):
        await attached.run("refuse")
    assert (await attached.run("absent")).exit_code == 127


@pytest.mark.asyncio
async def test_an_attached_exec_past_its_deadline_is_ended_where_it_runs_and_here(
    attached: Node,
) -> None:
    with pytest.raises(DeadlineError, match="did not end within 1 s"):
        await attached.run("sleep", "600", timeout_s=1)
    assert len(attached.runtime.ended) == 1
    assert not is_alive(attached.runtime.ended[0])
