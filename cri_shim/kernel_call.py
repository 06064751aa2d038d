"""Runs blocking kernel calls in threads with a deadline: mounts, namespaces, scans of processes.

A thread that hangs in the kernel (on a dead network file system, for instance) can be neither cancelled nor killed.

Rules:
- Each call has a deadline. After it nobody waits for the thread, not even the end of this process (`threads`).
- An abandoned call works on names. Once its owner has removed them, the rest of the call fails. If the hanging call
  makes the removal fail, the owner keeps the object and retries.
- A path that a request, an image or a container names may be on a file system that never answers. So calls on such
  paths have an owner, the pod. If `MAX_UNANSWERED` abandoned calls of an owner still hang, its further calls are
  refused at once, and so is any call on a path on which one hangs. A pod that is retried for ever costs a few threads
  at most.
- New pods come with new threads. So from `MAX_UNANSWERED_OF_NODE` hanging calls on, calls on a mount on which one hangs
  are refused, and from twice as many all calls on a path that a request names, since a link may lead to such a mount.
  Calls on the daemon's own files are never refused.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from cri_shim.background import end_of
from cri_shim.errors import DeadlineError, UnavailableError
from cri_shim.operations import step
from cri_shim.quoting import quoted
from cri_shim.threads import in_thread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")

TIMEOUT_S = 30.0
LONG_TIMEOUT_S = 600.0
"""For work proportional to the data: a copy, the labelling of a volume."""
MAX_UNANSWERED = 2
"""Abandoned calls of one owner that still hang, each with a thread."""
MAX_UNANSWERED_OF_NODE = 256
"""Abandoned calls of all owners that still hang. Each takes some 50 kB."""
_LOOK = "see the kernel's log and the daemon's /proc/PID/task/*/stack"


async def in_time(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a thread, as the step `what` of the present operation, and return its result.

    A cancellation is raised only after the end of the call or after the deadline of 30 s. Raises what the function
    raises, DeadlineError.
    """
    return await _wait(_Call("", what), TIMEOUT_S, partial(function, *args, **kwargs))


async def in_time_for(
    owner: str, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `in_time`, for a call on paths that `owner`, a pod or container, names.

    Also raises UnavailableError, if too many calls of this owner hang, or one on the same path (see the module).
    """
    _refuse_another(owner, what)
    return await _wait(_Call(owner, what), TIMEOUT_S, partial(function, *args, **kwargs))


async def at_length_for(
    owner: str, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `in_time_for`, with a deadline of `LONG_TIMEOUT_S`."""
    _refuse_another(owner, what)
    return await _wait(_Call(owner, what), LONG_TIMEOUT_S, partial(function, *args, **kwargs))


def working_on(field: str, path: str) -> None:
    """Note that the present call now works on `path`, the value of the request's `field`. Call it in the thread.

    Raises UnavailableError if another call hangs on that path, or too many hang on the node (see the module).
    """
    call: _Call | None = getattr(_here, "call", None)
    if call is None:
        return
    hanging = _hanging()
    for other in hanging:
        if other.path == path:
            raise UnavailableError(
                f"{field}: {quoted(path)}: refused, since a kernel call on it has hung for {other.seconds():.0f} s: "
                f"{_LOOK}"
            )
    if len(hanging) >= MAX_UNANSWERED_OF_NODE:
        _refuse_where_others_hang(field, path, hanging)
    call.field, call.path = field, path


class _Call:
    """A call under way, and the path that it works on."""

    __slots__ = ("field", "owner", "path", "since_s", "what")

    def __init__(self, owner: str, what: str) -> None:
        self.owner = owner
        self.what = what
        self.field = self.path = ""
        self.since_s = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.since_s

    def __str__(self) -> str:
        return f"{self.what}: {self.field}: {quoted(self.path)}" if self.path else self.what


_here = threading.local()
_given_up: set[_Call] = set()
"""Abandoned calls that still hang. Changed on the loops' threads and read on all; both are atomic under the GIL."""


def unanswered(owner: str | None = None) -> int:
    """How many calls were given up and still hang: on behalf of one pod, or all of them."""
    return sum(owner is None or call.owner == owner for call in _hanging())


def _hanging() -> list[_Call]:
    return list(_given_up)


def _refuse_another(owner: str, what: str) -> None:
    hanging = [call for call in _hanging() if call.owner == owner]
    if len(hanging) >= MAX_UNANSWERED:
        oldest = max(hanging, key=_Call.seconds)
        raise UnavailableError(
            f"{what}: refused, since {len(hanging)} kernel calls for {owner} hang, one for "
            f"{oldest.seconds():.0f} s: {oldest}: {_LOOK}"
        )


def _refuse_where_others_hang(field: str, path: str, hanging: list[_Call]) -> None:
    points = mount_points()
    place = mount_of(points, path)
    if len(hanging) >= 2 * MAX_UNANSWERED_OF_NODE or any(
        other.path and mount_of(points, other.path) == place for other in hanging
    ):
        raise UnavailableError(
            f"{field}: {quoted(path)}: refused, since {len(hanging)} kernel calls on this node hang, "
            f"some of them possibly on the mount {quoted(place)}: {_LOOK}"
        )


def mount_points() -> set[str]:
    """All mount points, with the octal escapes of /proc/self/mountinfo (proc(5)) decoded."""
    with open("/proc/self/mountinfo", "rb") as file:
        found = {line.split(b" ", 5)[4] for line in file}
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        found = {point.replace(code, char) for point in found}
    return {os.fsdecode(point) for point in found}


def mount_of(points: set[str], path: str) -> str:
    """The deepest of `points` above `path`, compared as text: resolving the path could hang."""
    place = os.path.normpath(path)
    while place not in points and place != "/":
        place = os.path.dirname(place)
    return place


async def _wait(call: _Call, timeout_s: float, function: Callable[[], T]) -> T:
    def work() -> T:
        _here.call = call
        try:
            return function()
        finally:
            _here.call = None
            _given_up.discard(call)  # here as well, since its loop may have ended meanwhile

    with step(call.what):
        working = in_thread(work)
        cancelled = await end_of(working, timeout_s)
    if not working.done():
        _given_up.add(call)
        working.add_done_callback(partial(_answered_late, call))
        if cancelled is None:
            raise DeadlineError(
                f"{call}: the kernel call did not return within {timeout_s:g} s: {_LOOK}"
            )
    if cancelled is not None:
        if working.done():
            working.exception()  # retrieved, so that asyncio does not warn; the cancellation is raised instead
        raise cancelled
    return working.result()


def _answered_late(call: _Call, late: asyncio.Future[T]) -> None:
    _given_up.discard(call)
    error = late.exception()
    log.warning(
        "an abandoned kernel call returned",
        what=str(call),
        seconds=round(call.seconds(), 1),
        error=str(error) if error else "",
    )
