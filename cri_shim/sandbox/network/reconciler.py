"""The reconciler of pod networks: retries pending deletes, calls GC, and checks attachments after a start.

Rules:
- A pending delete is retried after a second, then with growing pauses, and at once when the configuration changes.
  After some failures of one network in a pass, its other pending deletes wait for a later pass.
- A DEL that must wait for a plugin that still runs, a former daemon's or a slow one, does not delay others. Plugins of
  a former daemon are killed at their deadline.
- Only a successful DEL ends a pending delete. GC allows plugins to release resources without it, but does not replace
  DEL: the specification says so, and common IPAM plugins do nothing in GC.
- The valid attachments of a GC are those of our pods, unfinished ones included, without the pending ones. Only the
  default network and networks that our pods or pending deletes name are collected.
- Failures here do not fail pods. They are logged and retried.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import for_each
from cri_shim.errors import CniPluginError, CriShimError, NotReadyError, WrongStateError
from cri_shim.sandbox.store.model import SandboxState

if TYPE_CHECKING:
    from cri_shim.background import Background
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from cri_shim.operations import Operations
    from cri_shim.sandbox.network.pending_deletes import PendingDelete, PendingDeletes
    from cri_shim.sandbox.network.pod_network import PodNetwork
    from cri_shim.sandbox.store.store import Sandbox, Store

log = structlog.get_logger()

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 120.0
FAILURES_PER_PASS = 3
"""Failures of one network in a pass, after which its other pending deletes wait for a later pass."""
PASS_PAUSE_S = 5.0
"""How long those wait."""
RETRIES_AT_ONCE = 8
"""Parallel DELs in `retry_all`, since each DEL of a plugin that hangs takes until its deadline."""
GC_INTERVAL_S = 3600.0
NAMESPACE_KEPT_S = 600.0
"""How long a pending delete keeps the pod's namespace. Plugins must support DEL without it, and it takes memory."""


class NetworkReconciler:
    """Runs in one endless task, `run`. On the loop's thread only."""

    def __init__(
        self,
        *,
        cni: Cni,
        leftovers: LeftoverPlugins,
        network: PodNetwork,
        sandboxes: Store[Sandbox],
        pending_deletes: PendingDeletes,
        operations: Operations,
        background: Background,
        collects_garbage: bool,
    ) -> None:
        self._cni = cni
        self._leftovers = leftovers
        self._network = network
        self._sandboxes = sandboxes
        self._pending_deletes = pending_deletes
        self._operations = operations
        self._background = background
        self._collects_garbage = collects_garbage
        self._next_try: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._next_gc = 0.0
        self._gc_problems: dict[str, str] = {}
        self._woken = asyncio.Event()
        pending_deletes.added = self._note_added
        network.plugin_ended = self._woken.set

    def _note_added(self, pending: PendingDelete) -> None:
        """Schedule a new pending delete. Its plugin has just failed, so the retry waits, unless the DEL never ran."""
        if not self._has_to_wait(pending):
            self._next_try[pending.key] = (time.monotonic() + FIRST_RETRY_S, FIRST_RETRY_S * 2)
        self._woken.set()

    def wake(self) -> None:
        """Retry every pending delete now, since the configuration has changed."""
        self._next_try.clear()
        self._woken.set()

    async def run(self) -> None:
        """Run until cancelled. Start it after recovery."""
        for container_id in self._leftovers.containers():
            self._background.keep(f"plugins of {container_id}", self._outlast(container_id))
        while True:
            self._woken.clear()
            try:
                await self.retry_due()
                if self._collects_garbage and time.monotonic() >= self._next_gc:
                    self._next_gc = time.monotonic() + GC_INTERVAL_S
                    await self.collect_garbage()
            except Exception:
                log.exception("a pass of the network reconciler failed; it will be repeated")
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _pause_s(self) -> float:
        due = [self._due(d) for d in self._pending_deletes if not self._has_to_wait(d)]
        if self._collects_garbage:
            due.append(self._next_gc)
        return max(min(due, default=time.monotonic() + GC_INTERVAL_S) - time.monotonic(), 0.1)

    # --- pending deletes -----------------------------------------------------------------------------------------

    async def retry_due(self) -> None:
        """Call DEL for each pending delete that is due, except for those that wait for a running plugin."""
        due: dict[str, list[PendingDelete]] = {}
        for pending in self._pending_deletes:
            if not self._has_to_wait(pending) and self._due(pending) <= time.monotonic():
                due.setdefault(pending.network, []).append(pending)
        # Those that the last pass did not try come first, so that three that always fail do not block the rest.
        await asyncio.gather(
            *(
                self._retry(sorted(pending_deletes, key=self._due))
                for pending_deletes in due.values()
            )
        )

    async def _outlast(self, container_id: str) -> None:
        """Wait for a former daemon's plugins that work on this container. Then its pending deletes can be retried."""
        while self._leftovers.at_work(container_id):
            try:
                with self._operations.begin("cni plugins of a former daemon", container_id):
                    await self._cni.outlast_leftovers(container_id)
            except CriShimError as error:
                log.warning(
                    "plugins of a former daemon still run",
                    container_id=container_id,
                    error=str(error),
                )
                await asyncio.sleep(MAX_RETRY_S)
        self._woken.set()

    async def retry_all(self) -> None:
        """Call DEL once for every pending delete, due or not. Plugins of a former daemon are killed first."""
        await for_each(self._pending_deletes, self._retry_now, at_once=RETRIES_AT_ONCE)

    async def _retry_now(self, pending: PendingDelete) -> None:
        await self._end_former_plugins(pending.container_id)
        if await self._retry_as_operation(pending):
            self._next_try.pop(pending.key, None)

    async def _end_former_plugins(self, container_id: str) -> None:
        try:
            await self._leftovers.end(container_id)
        except CriShimError as error:
            log.warning(
                "cannot kill plugins of a former daemon",
                container_id=container_id,
                error=str(error),
            )

    def _has_to_wait(self, pending: PendingDelete) -> bool:
        return self._network.is_busy(pending.container_id)

    def _due(self, pending: PendingDelete) -> float:
        return self._next_try.get(pending.key, (0.0, 0.0))[0]

    async def _retry(self, pending_deletes: list[PendingDelete]) -> None:
        failures = 0
        for pending in pending_deletes:
            _, pause_s = self._next_try.get(pending.key, (0.0, FIRST_RETRY_S))
            if failures == FAILURES_PER_PASS:
                self._next_try[pending.key] = (time.monotonic() + PASS_PAUSE_S, pause_s)
            elif await self._retry_as_operation(pending):
                self._next_try.pop(pending.key, None)
            else:
                failures += 1
                self._next_try[pending.key] = (
                    time.monotonic() + pause_s,
                    min(pause_s * 2, MAX_RETRY_S),
                )

    async def _retry_as_operation(self, pending: PendingDelete) -> bool:
        with self._operations.begin("pending cni DEL", pending.container_id):
            return await self._retry_one(pending)

    async def _retry_one(self, pending: PendingDelete) -> bool:
        try:
            if time.time_ns() - pending.since_ns > NAMESPACE_KEPT_S * 1e9:
                await self._unpin_namespace(pending.container_id)
            await self._cni.delete(pending.attachment)
            if not any(
                d.container_id == pending.container_id
                for d in self._pending_deletes
                if d != pending
            ):
                # Before the removal: no later pass would unpin a namespace without a pending delete.
                await self._unpin_namespace(pending.container_id)
            self._pending_deletes.remove(pending)
            log.info("pending cni DEL done", attachment=str(pending.attachment), pod=pending.pod)
        except (CriShimError, OSError) as error:
            log.info(
                "cni DEL is still pending", attachment=str(pending.attachment), error=str(error)
            )
            return False
        return True

    async def _unpin_namespace(self, sandbox_id: str) -> None:
        """Unpin a pod's namespace, unless its Stop still has a DEL to call. The Stop then unpins it."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or not sandbox.status.attachments:
            await self._network.unpin_namespace(sandbox_id)

    # --- garbage -------------------------------------------------------------------------------------------------

    async def collect_garbage(self) -> None:
        """Call GC for our networks. Then pending deletes of these are due, since DEL may succeed after a GC."""
        for name in self._our_networks():
            problem = ""
            try:
                with self._operations.begin("cni GC", name):
                    done = await self._cni.collect_garbage(
                        name, valid=partial(self._valid, name), known=partial(self._pending, name)
                    )
                if not done:
                    continue
                log.info("cni garbage collected", network=name)
                for pending in self._pending_deletes:
                    if pending.network == name:
                        self._next_try.pop(pending.key, None)
            except TimeoutError:
                problem = "no pause between ADDs and DELs of this network; GC is retried later"
            except (CniPluginError, WrongStateError) as error:
                problem = str(error)
            if problem and self._gc_problems.get(name) != problem:
                log.warning("cni GC failed", network=name, problem=problem)
            self._gc_problems[name] = problem

    def _our_networks(self) -> list[str]:
        names = {a.network for sandbox in self._sandboxes for a in sandbox.status.attachments}
        names.update(pending.network for pending in self._pending_deletes)
        try:
            names.add(self._cni.default_network().name)
        except NotReadyError:
            pass
        return sorted(names)

    def _valid(self, network: str) -> set[tuple[str, str]]:
        attached = {
            (sandbox.id, attachment.ifname)
            for sandbox in self._sandboxes
            for attachment in sandbox.status.attachments
            if attachment.network == network
        }
        return attached - self._pending(network)

    def _pending(self, network: str) -> set[tuple[str, str]]:
        return {
            (pending.container_id, pending.ifname)
            for pending in self._pending_deletes
            if pending.network == network
        }

    # --- checks --------------------------------------------------------------------------------------------------

    async def check_attachments(self) -> None:
        """Call CHECK for every running pod, and log failures. The daemon runs this once, after its start."""
        for sandbox in list(self._sandboxes):
            if sandbox.state is SandboxState.READY and not self._leftovers.at_work(sandbox.id):
                try:
                    await self._network.check(sandbox)
                except (CriShimError, OSError) as error:
                    log.warning(
                        "cni CHECK of a running pod failed",
                        sandbox_id=sandbox.id,
                        problem=str(error),
                    )
        log.debug("network checks done")
