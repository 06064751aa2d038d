"""Ways to interrupt a creation, shared by the tests of pods and of containers."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from cri_shim import threads
from cri_shim.host.files import write_atomic
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path
    from typing import Any

    import pytest

    from tests.unit.conftest import Observe

THREAD_POINTS = ("netns", "overlay", "tmpfs", "accounts")
"""Beginnings of the names of points that are passed in a thread."""
UNDO_EFFECTS = {
    "netns": "netns.remove",
    "network": "cni.del",
    "bundle": "remove_tree state",
    "rootfs": "unmount",
    "process": "cgroup.kill",
}
"""An effect that the undo of each step needs."""


async def outcome_of(call: Awaitable[Any]) -> Any:
    """What a call returned or raised."""
    try:
        return await call
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return error


def stop_at(observe: Observe, wanted: str) -> None:
    """Have every creation fail as it notes the undo of this step."""

    def stop(_what: str, step: str) -> None:
        if step == wanted:
            raise RuntimeError(f"stopped at {step}")

    observe(stop)


def record_steps(observe: Observe) -> list[str]:
    """The steps that creations note from now on."""
    seen: list[str] = []
    observe(lambda _what, step: seen.append(step))
    return seen


async def let_an_undo_run(point: str) -> None:
    """Turns enough for an undo that does not wait for what stands at `point`, and its threads' ends."""
    standing = 1 if point.startswith(THREAD_POINTS) else 0
    for _ in range(len(UNDO_EFFECTS)):
        await turn_over()
        await until(lambda: threads.under_way() <= standing)
    await turn_over()


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on there is no room for files of this name."""

    def write(path: Path, data: bytes, *, mode: int = 0o600, fsync: bool = False) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, data, mode=mode, fsync=fsync)

    def over(path: Path, data: bytes) -> None:
        write(path, data)

    for module in ("store.store", "spec.pod_files", "launch", "store.processes"):
        monkeypatch.setattr(f"cri_shim.sandbox.{module}.write_atomic", write)
    monkeypatch.setattr("cri_shim.sandbox.store.store.write_over", over)
