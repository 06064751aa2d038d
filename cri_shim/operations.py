"""The registry of operations under way: the object of each, its present step, and durations.

An operation begins where work is owned (`single_flight`, an exit, recovery). Its steps are entered wherever code waits:
for a command, a plugin, the kernel, an exit. The operation is found through the task's context, which tasks started
meanwhile inherit, so it need not be passed along.

Rules:
- Everything that could hang is a step. Step names have few values, since they are metric labels: a program and its
  verb, never an ID or a path.
- A step outside of an operation costs little and is not shown.
- Of nested steps the innermost is shown, of parallel ones each. Between steps the last effect pushed to `rollback` is
  shown.
- Durations are of the monotonic clock. Everything, reading included, happens on the loop's thread.
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
"""Older operations count as slow."""


class StepView(NamedTuple):
    """A step at which an operation is now."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation at the time of the query."""

    name: str
    """The RPC's name, or a few words for the daemon's own work."""
    object_id: str
    """The ID of the sandbox or container; "" until it is known, and for other objects."""
    subject: str
    """The requested object: an ID, a reserved name, an image."""
    seconds: float
    steps: tuple[StepView, ...]
    """At least one step."""


class _Step:
    """A step that is entered."""

    __slots__ = ("inner", "name", "operation", "outer", "started_s")

    def __init__(self, name: str, operation: _Operation, outer: _Step | None) -> None:
        self.name = name
        self.operation = operation
        self.outer = outer
        self.inner = 0
        self.started_s = time.monotonic()


class _Operation:
    """An operation under way."""

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
    """The operations of one daemon."""

    def __init__(self) -> None:
        self._all: dict[int, _Operation] = {}

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, name: str, subject: str) -> _Begun:
        """Register an operation while the block runs. `subject` is an ID, or the name in the request."""
        return _Begun(self._all, name, subject)

    def under_way(self, object_id: str | None = None) -> list[OperationView]:
        """All operations, or those of one object, the oldest first."""
        now_s = time.monotonic()
        return [
            operation.view(now_s)
            for operation in self._all.values()
            if object_id is None or operation.object_id == object_id
        ]

    def doing(self, object_id: str) -> str:
        """The present step of the object's newest operation: `killing the cgroup for 12 s`; "" without one."""
        views = self.under_way(object_id)
        if not views:
            return ""
        innermost = views[-1].steps[0]
        return f"{innermost.name} for {duration_text(innermost.seconds)}"

    def standing_s(self, object_id: str) -> float:
        """Seconds for which the object's newest operation has been at its newest step; 0 without an operation."""
        views = self.under_way(object_id)
        return min(each.seconds for each in views[-1].steps) if views else 0.0

    def slow(self, older_than_s: float = SLOW_S) -> list[OperationView]:
        """The operations older than `older_than_s`."""
        return [view for view in self.under_way() if view.seconds > older_than_s]

    def slow_by_step(self) -> dict[str, int]:
        """The number of slow operations at each step."""
        counts: dict[str, int] = {}
        for operation in self.slow():
            for name in {each.name for each in operation.steps}:
                counts[name] = counts.get(name, 0) + 1
        return counts


class _Begun:
    """The context manager of an operation."""

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
        # No ContextVar token: an async generator may leave the block in another context than it entered it in.
        _here.set(self._before)


class step:  # noqa: N801 - used as the statement that it is: `with step("cni ADD bridge"):`
    """A context manager for a step of the present operation, which may take long or hang."""

    __slots__ = ("_before", "_name", "_step")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> Self:
        self._before = _here.get()
        self._step: _Step | None = None
        if self._before is not None:
            operation, outer = self._before
            if outer is not None and outer.name == self._name:
                return self  # the same step, entered again: its time goes on
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
    """Set the ID of the object of the present operation, if there is one, once it is known."""
    if (here := _here.get()) is not None:
        here[0].object_id = object_id


def reached(stage: str) -> None:
    """Note that the present operation, if there is one, begins this effect."""
    if (here := _here.get()) is not None:
        here[0].stage, here[0].stage_s = stage, time.monotonic()


def duration_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min`, `2 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def documents(operations: Sequence[OperationView]) -> list[dict[str, object]]:
    """Operations as documents of a verbose response."""
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
