"""What the node has of a pod with a kernel of its own: told from the rest, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cri_shim.config.model import HandlerKind
from cri_shim.errors import DeadlineError, RuntimeCommandError
from cri_shim.host import syscalls
from cri_shim.host.port import Host
from cri_shim.host.procstat import process_entry
from cri_shim.sandbox.vm_processes import asks_to_delete, asks_to_kill, kill_strays, signal_inside
from tests.fakes.kernel import Kernel
from tests.fakes.points import Points
from tests.fakes.runtime import Entry, FakeRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.asyncio
ID = "d5" * 32


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """Orphans come to us."""
    before = syscalls.is_child_subreaper()
    syscalls.set_child_subreaper(enabled=True)
    yield
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    syscalls.set_child_subreaper(enabled=before)


def orphan(*words: str) -> int:
    """A process that lost its parent, with these words in its command line."""
    script = (
        "import os, sys\n"
        "pid = os.fork()\n"
        "if pid: print(pid); os._exit(0)\n"
        "os.close(1); os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout)


def is_alive(pid: int) -> bool:
    entry = process_entry(pid)
    return entry is not None and not entry.zombie


@pytest.fixture
def others() -> Iterator[tuple[int, int]]:
    """An orphan that names another object, and a child of ours that names none."""
    stranger = orphan("-name", "sandbox-else")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield stranger, child.pid
    child.kill()
    child.wait()
    os.kill(stranger, signal.SIGKILL)
    os.waitpid(stranger, 0)


async def test_orphans_that_name_the_object_are_killed_and_no_others(
    others: tuple[int, int],
) -> None:
    hypervisor = orphan("-name", f"sandbox-{ID}")
    await kill_strays(Host(), ID)
    assert not is_alive(hypervisor)
    assert all(map(is_alive, others))
    await kill_strays(Host(), ID)  # nothing is there any more


@pytest.fixture
def runtime() -> FakeRuntime:
    """A runtime of kind vm with one container."""
    kernel = Kernel(Points())
    made = FakeRuntime(kernel, "kata", HandlerKind.VM)
    made.containers[ID] = Entry("running", kernel.spawn(("shim",)))
    return made


async def test_a_runtime_that_answers_has_answered(runtime: FakeRuntime) -> None:
    assert await asks_to_kill(runtime, ID)
    assert await asks_to_delete(runtime, ID)
    assert await asks_to_kill(runtime, ID), "also of what it does not know"
    assert await asks_to_delete(runtime, ID)


async def test_a_signal_that_is_refused_is_logged(runtime: FakeRuntime) -> None:
    await signal_inside(runtime, ID, signal.SIGUSR1)
    assert runtime.sent == [signal.SIGUSR1]
    runtime.points.fail("runtime.kill", DeadlineError("no answer"))
    with capture_logs() as logs:
        await signal_inside(runtime, ID, signal.SIGUSR1)
    assert [(line["id"], line["error"]) for line in logs] == [(ID, "no answer")]


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (DeadlineError("no answer"), False),
        (RuntimeCommandError("killing", ["kata"], "failed", "no"), True),
    ],
)
async def test_only_silence_is_no_answer(
    runtime: FakeRuntime, error: Exception, *, answered: bool
) -> None:
    for point, ask in (("runtime.kill", asks_to_kill), ("runtime.delete", asks_to_delete)):
        runtime.points.fail(point, error)
        assert await ask(runtime, ID) is answered
