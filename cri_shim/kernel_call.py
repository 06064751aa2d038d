"""Calls that take the kernel milliseconds, or for ever: a mount, an unmount, a namespace, a look at every process.

A thread that hangs in the kernel can be neither cancelled nor killed. Rules:
- Such a call has a deadline. After it nobody waits any more, not even the end of this process (`threads`).
- What is given up works by names. Once those are taken away, what it still does fails by itself; what can't be taken
  away because of it stays its owner's, who tries again.
- Whatever a request, an image or a container names may lie on a file system that never answers. So such calls have an
  owner, the pod, for whom at most `MAX_UNANSWERED` may be given up and still hang: further ones are refused at once.
  So are those on a path on which one hangs. A pod that is tried again for ever costs some threads, and no more.
- Pods come and go, each with two more. So from `MAX_UNANSWERED_OF_NODE` on those are refused that would work on a
  mount on which one hangs, and from twice as many on all that come to a path that a request names: a link may lead
  there. What the daemon does with its own files is never refused.
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
"""For what takes as long as there is much of it: a copy, the labelling of a volume."""
MAX_UNANSWERED = 2
"""Calls of one owner that were given up and still hang, each with a thread."""
MAX_UNANSWERED_OF_NODE = 256
"""Of all owners together, some 50 kB each."""
_LOOK = "see the kernel's log, and /proc/PID/task/*/stack of the daemon"


async def in_time(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a thread, as a step `what` of the operation under way, and return what it does.

    A cancellation is raised only after its end, or after the deadline. Raises what the function raises, DeadlineError.
    """
    return await _wait(_Call("", what), TIMEOUT_S, partial(function, *args, **kwargs))


async def in_time_for(
    owner: str, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `in_time`, for the pod or container `owner`, on what it names: bounded as the module says.

    Raises UnavailableError as well: too many calls for this owner hang, or one on a path it would work on.
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
    """In such a call: the next that may hang is on `path`, which `field` of the request names.

    Raises UnavailableError where another call hangs there, or too many hang on the node, as the module says.
    """
    call: _Call | None = getattr(_here, "call", None)
    if call is None:
        return
    hanging = _unanswered()
    for other in hanging:
        if other.path == path:
            raise UnavailableError(
                f"{field}: {quoted(path)}: a call on it has had no answer for {other.seconds():.0f} s: {_LOOK}"
            )
    if len(hanging) >= MAX_UNANSWERED_OF_NODE:
        _refuse_where_others_hang(field, path, hanging)
    call.field, call.path = field, path


class _Call:
    """One call under way, and what it works on."""

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
"""Those that still hang. Changed on loops' threads and read on all: each of both is one step for the interpreter."""


def _unanswered() -> list[_Call]:
    return list(_given_up)


def _refuse_another(owner: str, what: str) -> None:
    hanging = [call for call in _unanswered() if call.owner == owner]
    if len(hanging) >= MAX_UNANSWERED:
        oldest = max(hanging, key=_Call.seconds)
        raise UnavailableError(
            f"{what}: not tried: the kernel has not answered {len(hanging)} calls for {owner}, one for "
            f"{oldest.seconds():.0f} s: {oldest}: {_LOOK}"
        )


def _refuse_where_others_hang(field: str, path: str, hanging: list[_Call]) -> None:
    points = _mount_points()
    place = _deepest(points, path)
    if len(hanging) >= 2 * MAX_UNANSWERED_OF_NODE or any(
        other.path and _deepest(points, other.path) == place for other in hanging
    ):
        raise UnavailableError(
            f"{field}: {quoted(path)}: not tried: the kernel has not answered {len(hanging)} calls on this node, "
            f"some on the mount {quoted(place)}: {_LOOK}"
        )


def _mount_points() -> set[str]:
    """As proc(5) writes them in `mountinfo`: with three digits for a space, a tabulator, a newline, a backslash."""
    with open("/proc/self/mountinfo", "rb") as file:
        found = {line.split(b" ", 5)[4] for line in file}
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        found = {point.replace(code, char) for point in found}
    return {os.fsdecode(point) for point in found}


def _deepest(points: set[str], path: str) -> str:
    """The mount point that a path lies on, by its text."""
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
            _given_up.discard(call)  # should its loop have ended meanwhile

    with step(call.what):
        working = in_thread(work)
        cancelled = await end_of(working, timeout_s)
    if not working.done():
        _given_up.add(call)
        working.add_done_callback(partial(_answered_late, call))
        if cancelled is None:
            raise DeadlineError(
                f"{call}: the kernel has not answered within {timeout_s:g} s: {_LOOK}"
            )
    if cancelled is not None:
        if working.done():
            working.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return working.result()


def _answered_late(call: _Call, late: asyncio.Future[T]) -> None:
    _given_up.discard(call)
    error = late.exception()
    log.warning(
        "the kernel has answered late",
        what=str(call),
        seconds=round(call.seconds(), 1),
        error=str(error) if error else "",
    )
