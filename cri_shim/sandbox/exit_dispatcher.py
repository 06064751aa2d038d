"""Dispatches each exit to the handler for its kind of object.

An exit has only an ID. If no store has the object, it was removed, and its exit is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cri_shim.sandbox.exit_handling import ExitHandling
    from cri_shim.sandbox.exits import Exit
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.store.store import Container, Sandbox, Store


class ExitDispatcher:
    """Dispatches exits to pods and containers."""

    def __init__(
        self,
        *,
        sandboxes: Store[Sandbox],
        containers: Store[Container],
        pods: Pods,
        exit_handling: ExitHandling,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._pods = pods
        self._exit_handling = exit_handling

    def dispatch(self, object_id: str, exit_: Exit) -> None:
        """Handle the exit of the process of this container or pause container."""
        if (container := self._containers.get(object_id)) is not None:
            self._exit_handling.on_exit(container, exit_)
        elif (sandbox := self._sandboxes.get(object_id)) is not None:
            self._pods.on_exit(sandbox)
