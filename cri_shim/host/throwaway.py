"""Runs a function that changes its thread's namespaces or working directory in a thread of its own.

The thread ends with the function and never returns to a pool, so no other code runs in the changed thread. The caller
blocks meanwhile; a coroutine calls through `kernel_call`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Outcome(Generic[T]):
    value: T
    error: BaseException | None = None


def in_throwaway_thread(function: Callable[[], T], *, name: str) -> T:
    """Run `function` in a new thread and return its result; blocking. Raises what it raises."""
    outcome: _Outcome[T] = _Outcome()

    def body() -> None:
        try:
            outcome.value = function()
        except BaseException as error:  # noqa: BLE001 - carried to the caller whole
            outcome.error = error

    # A daemon thread, since the interpreter waits for other threads at exit, and this one may hang in the kernel.
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    thread.join()
    if outcome.error is not None:
        try:
            raise outcome.error
        finally:
            del (
                outcome
            )  # the traceback refers to this frame, and this frame to the error: break the cycle
    return outcome.value
