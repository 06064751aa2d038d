"""What is under way: which operation works on which object, at which step it stands, and since when.

An operation begins where work is owned (`single_flight`, an exit, recovery) and its steps wherever somebody waits: for
a command, a plugin, the kernel, an exit. Nobody passes an operation along: it is found by the context of the task,
which tasks that are started meanwhile inherit. Rules:
- A step is entered for everything that could hang. Its name takes few values, since it is a metric's label: a program
  and its verb, never an ID or a path.
- Outside of an operation a step costs next to nothing and is nowhere shown.
- Of steps inside each other the innermost counts; of those side by side, each. Between two steps, the effect that
  `rollback` was told of last.
- Durations are by the monotonic clock. Everything here happens on the loop's thread, looking included.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from cri_shim.ids import is_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

SLOW_S = 60.0
"""An operation that is older is worth a look."""


class StepView(NamedTuple):
    """What an operation does now."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class OperationView:
    """One operation as it stands when asked."""

    name: str
    """The RPC, or the daemon's own work in a few words."""
    object_id: str
    """The sandbox or container; "" as long as it has none, and for other things."""
    subject: str
    """What was asked for: an ID, a reserved name, an image."""
    seconds: float
    steps: tuple[StepView, ...]
    """At least one."""


class _Step:
    """One step while it is entered."""

    __slots__ = ("inner", "name", "operation", "outer", "started_s")

    def __init__(self, name: str, operation: _Operation, outer: _Step | None) -> None:
        self.name = name
        self.operation = operation
        self.outer = outer
        self.inner = 0
        self.started_s = time.monotonic()


class _Operation:
    """One operation while it is under way."""

    __slots__ = ("name", "object_id", "stage", "stage_s", "started_s", "steps", "subject")

    def __init__(self, name: str, subject: str) -> None:
        self.name = name
        self.subject = subject
        self.object_id = subject if is_id(subject) else ""
        self.started_s = self.stage_s = time.monotonic()
        self.stage = "beginning"
        self.steps: list[_Step] = []

    def view(self, now_s: float) -> OperationView:
        innermost = [
            StepView(step.name, now_s - step.started_s) for step in self.steps if not step.inner
        ]
        return OperationView(
            name=self.name,
            object_id=self.object_id,
            subject=self.subject,
            seconds=now_s - self.started_s,
            steps=tuple(innermost) or (StepView(self.stage, now_s - self.stage_s),),
        )


_here: ContextVar[tuple[_Operation, _Step | None] | None] = ContextVar("operation", default=None)


class Operations:
    """All operations of one daemon."""

    def __init__(self) -> None:
        self._all: dict[int, _Operation] = {}

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, name: str, subject: str) -> _Begun:
        """An operation for as long as the block runs; `subject` is an ID, or what the request named."""
        return _Begun(self._all, name, subject)

    def under_way(self, object_id: str | None = None) -> list[OperationView]:
        """Everything, or what concerns one object; the oldest first."""
        now_s = time.monotonic()
        return [
            operation.view(now_s)
            for operation in self._all.values()
            if object_id is None or operation.object_id == object_id
        ]

    def doing(self, object_id: str) -> str:
        """What is done to an object now, by the operation that began last: `killing the cgroup for 12 s`, or ""."""
        views = self.under_way(object_id)
        if not views:
            return ""
        innermost = views[-1].steps[0]
        return f"{innermost.name} for {duration_text(innermost.seconds)}"

    def standing_s(self, object_id: str) -> float:
        """For how long the operation on an object that began last has been at its newest step; 0 without one."""
        views = self.under_way(object_id)
        return min(each.seconds for each in views[-1].steps) if views else 0.0

    def slow(self, older_than_s: float = SLOW_S) -> list[OperationView]:
        """Those that are older than that."""
        return [view for view in self.under_way() if view.seconds > older_than_s]

    def slow_by_step(self) -> dict[str, int]:
        """How many of the slow ones stand at each step."""
        counts: dict[str, int] = {}
        for operation in self.slow():
            for name in {each.name for each in operation.steps}:
                counts[name] = counts.get(name, 0) + 1
        return counts


class _Begun:
    """The block of an operation."""

    __slots__ = ("_all", "_before", "_operation")

    def __init__(self, all_: dict[int, _Operation], name: str, subject: str) -> None:
        self._all = all_
        self._operation = _Operation(name, subject)

    def __enter__(self) -> None:
        self._before = _here.get()
        self._all[id(self._operation)] = self._operation
        _here.set((self._operation, None))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._all[id(self._operation)]
        # Not by a token: the block of a generator may be left in another context than it was entered in.
        _here.set(self._before)


class step:  # noqa: N801 - used as the statement that it is: `with step("cni ADD bridge"):`
    """Something that may take long, or for ever, for as long as the block runs."""

    __slots__ = ("_before", "_name", "_step")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Self:
        self._before = _here.get()
        self._step: _Step | None = None
        if self._before is not None:
            operation, outer = self._before
            if outer is not None and outer.name == self._name:
                return self  # still the same, for as long as that
            self._step = _Step(self._name, operation, outer)
            if outer is not None:
                outer.inner += 1
            operation.steps.append(self._step)
            _here.set((operation, self._step))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = self._step
        if ended is None:
            return
        ended.operation.steps.remove(ended)
        if ended.outer is not None:
            ended.outer.inner -= 1
        _here.set(self._before)


def concerns(object_id: str) -> None:
    """The operation under way here, if there is one, works on this sandbox or container: its ID is known now."""
    if (here := _here.get()) is not None:
        here[0].object_id = object_id


def reached(stage: str) -> None:
    """The operation under way here, if there is one, begins this effect."""
    if (here := _here.get()) is not None:
        here[0].stage, here[0].stage_s = stage, time.monotonic()


def duration_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min`, `2 h`: how long something takes, for a person."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def documents(operations: Sequence[OperationView]) -> list[dict[str, object]]:
    """Operations as verbose answers show them."""
    return [
        {
            "operation": operation.name,
            "forSeconds": round(operation.seconds, 3),
            "steps": [
                {"step": each.name, "forSeconds": round(each.seconds, 3)}
                for each in operation.steps
            ],
        }
        for operation in operations
    ]
