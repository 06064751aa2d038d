"""A thread for one function that changes what its thread is: its namespaces, its working directory.

Rules: the thread ends with the function and never returns to a pool, so nothing else can run in what it became. The
caller blocks meanwhile; from a coroutine, call through `kernel_call`.
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
    """Run `function` in a new thread and give back its result; blocking. Raises what it raised."""
    outcome: _Outcome[T] = _Outcome()

    def body() -> None:
        try:
            outcome.value = function()
        except BaseException as error:  # noqa: BLE001 - carried to the caller whole
            outcome.error = error

    # A daemon thread: one that hangs in the kernel must not keep the process from exiting.
    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    thread.join()
    if outcome.error is not None:
        try:
            raise outcome.error
        finally:
            del outcome  # the error's traceback holds this frame: no cycle
    return outcome.value
