"""States and the steps between them, for every pair there is."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from cri_shim.errors import WrongStateError
from cri_shim.sandbox.store.model import (
    CONTAINER_STEPS,
    SANDBOX_STEPS,
    ContainerMetadata,
    ContainerState,
    ContainerStatus,
    PodMetadata,
    Process,
    SandboxState,
    SandboxStatus,
    Step,
    User,
)

PROCESS, MONITOR = Process(10, 100), Process(9, 99)
ROOT = User(0, 0, (0,))

CONTAINERS = {
    ContainerState.CREATING: ContainerStatus(),
    ContainerState.CREATED: ContainerStatus(committed_at_ns=10),
    ContainerState.RUNNING: ContainerStatus(committed_at_ns=10, started_at_ns=20),
    ContainerState.EXITED: ContainerStatus(
        committed_at_ns=10, started_at_ns=20, finished_at_ns=30, exit_code=7, reason="Error"
    ),
}
SANDBOXES = {
    SandboxState.CREATING: SandboxStatus(),
    SandboxState.READY: SandboxStatus(ready_at_ns=10),
    SandboxState.NOT_READY: SandboxStatus(ready_at_ns=10, stopped_at_ns=20, reason="first"),
}


def take_container_step(status: ContainerStatus, step: Step) -> ContainerStatus:
    if step is Step.COMMIT:
        return status.committed(40, PROCESS, MONITOR, ROOT)
    if step is Step.START:
        return status.started(40)
    return status.exited(40, 1, reason="Error", message="why")


def take_sandbox_step(status: SandboxStatus, step: Step) -> SandboxStatus:
    if step is Step.COMMIT:
        return status.committed(40, PROCESS)
    return status.stopped(40, "second")


def test_every_state_is_the_one_its_times_amount_to() -> None:
    assert {state: status.state for state, status in CONTAINERS.items()} == {
        state: state for state in ContainerState
    }
    assert {state: status.state for state, status in SANDBOXES.items()} == {
        state: state for state in SandboxState
    }


@pytest.mark.parametrize(
    ("state", "step"), list(product(ContainerState, (Step.COMMIT, Step.START, Step.EXIT)))
)
def test_a_container_takes_the_steps_of_the_table_and_no_others(
    state: ContainerState, step: Step
) -> None:
    status = CONTAINERS[state]
    wanted = CONTAINER_STEPS.get((state, step))
    if wanted is not None:
        assert take_container_step(status, step).state is wanted
    elif state is ContainerState.EXITED and step is Step.EXIT:
        assert take_container_step(status, step) is status
    else:
        with pytest.raises(WrongStateError, match=f"is {state}; {step} is not possible"):
            take_container_step(status, step)


@pytest.mark.parametrize(("state", "step"), list(product(SandboxState, (Step.COMMIT, Step.STOP))))
def test_a_sandbox_takes_the_steps_of_the_table_and_no_others(
    state: SandboxState, step: Step
) -> None:
    status = SANDBOXES[state]
    wanted = SANDBOX_STEPS.get((state, step))
    if wanted is not None:
        assert take_sandbox_step(status, step).state is wanted
    elif step is Step.STOP:
        # A creation that failed is kept not ready; a second reason doesn't hide the first.
        stopped = take_sandbox_step(status, step)
        assert stopped.state is SandboxState.NOT_READY
        assert (stopped is status) == (state is SandboxState.NOT_READY)
    else:
        with pytest.raises(WrongStateError, match=f"is {state}; {step} is not possible"):
            take_sandbox_step(status, step)


def test_the_tables_name_every_step_once() -> None:
    steps = {step for _, step in (*CONTAINER_STEPS, *SANDBOX_STEPS)}
    assert steps == set(Step)


def test_a_commit_notes_processes_and_user() -> None:
    container = ContainerStatus().committed(5, PROCESS, MONITOR, ROOT)
    assert (container.process, container.monitor, container.user) == (PROCESS, MONITOR, ROOT)
    sandbox = SandboxStatus().committed(5, PROCESS)
    assert (sandbox.process, sandbox.ready_at_ns) == (PROCESS, 5)


def test_an_exit_keeps_its_circumstances() -> None:
    status = CONTAINERS[ContainerState.RUNNING].exited(99, 137, reason="OOMKilled", message="m")
    assert (status.exit_code, status.reason, status.message) == (137, "OOMKilled", "m")
    assert status.finished_at_ns == 99


@pytest.mark.parametrize("at_ns", [0, 1, 19])
def test_a_clock_set_back_shows_no_end_before_the_start(at_ns: int) -> None:
    status = CONTAINERS[ContainerState.RUNNING].exited(at_ns, 0, reason="Completed")
    assert status.finished_at_ns == 20
    assert CONTAINERS[ContainerState.CREATED].exited(at_ns, 0, reason="x").finished_at_ns >= 10


def test_a_status_never_changes() -> None:
    status = ContainerStatus()
    with pytest.raises(AttributeError):
        status.exit_code = 1  # type: ignore[misc]


def test_statuses_survive_their_files() -> None:
    for container in CONTAINERS.values():
        raw = msgspec.json.encode(container)
        assert msgspec.json.decode(raw, type=ContainerStatus) == container
    for sandbox in SANDBOXES.values():
        raw = msgspec.json.encode(sandbox)
        assert msgspec.json.decode(raw, type=SandboxStatus) == sandbox


def test_reserved_names_differ_where_any_part_does() -> None:
    pods = [
        PodMetadata("a", "b", "c", 0),
        PodMetadata("a", "b", "c", 1),
        PodMetadata("a_b", "", "c", 0),
        PodMetadata("a", "b_c", "", 0),
        PodMetadata('a","b', "c", "d", 0),
    ]
    assert len({pod.reserved_name for pod in pods}) == len(pods)
    main = ContainerMetadata("main", 0)
    assert main.reserved_name("1") != main.reserved_name("2")
    assert main.reserved_name("1") != ContainerMetadata("main", 1).reserved_name("1")
    assert main.reserved_name("1") == ContainerMetadata("main", 0).reserved_name("1")
