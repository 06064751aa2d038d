"""Wipe: removes everything that a root owns, from a drained node, before an uninstall, or after a crash.

Rules:
- Pods and containers are removed as RemovePodSandbox does it, objects without a readable record by `orphans`.
- A failure does not stop the rest. It is reported, and the next wipe tries the object again.
- Only objects that this root's state names are removed, since other runtimes share the CNI cache, the networks and the
  cgroup hierarchies.
- The caller ensures that no new requests arrive meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cri_shim.background import for_each
from cri_shim.errors import CriShimError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.image.pull import Puller
    from cri_shim.image.store import ImageStore
    from cri_shim.sandbox.container_removal import ContainerRemoval
    from cri_shim.sandbox.containers import Containers
    from cri_shim.sandbox.network.pending_deletes import PendingDeletes
    from cri_shim.sandbox.network.pod_network import PodNetwork
    from cri_shim.sandbox.network.reconciler import NetworkReconciler
    from cri_shim.sandbox.pods import Pods
    from cri_shim.sandbox.recovery.orphans import Orphans
    from cri_shim.sandbox.store.store import Container, Sandbox, Store

    Tell = Callable[[str, int, int], None]

log = structlog.get_logger()
AT_ONCE = 8
CREATIONS_GRACE_S = 5.0
"""Time for the undo of creations in progress. Objects that remain after it are removed like the others."""


@dataclass(frozen=True, slots=True)
class Left:
    """An object that could not be removed."""

    what: str
    why: str


@dataclass(slots=True)
class Wiped:
    """The numbers of removed objects, and the objects that are left."""

    sandboxes: int = 0
    containers: int = 0
    leftovers: int = 0
    attachments: int = 0
    images: int = 0
    left: list[Left] = field(default_factory=list)


class Wipe:
    """Removes everything of one root."""

    def __init__(
        self,
        *,
        sandboxes: Store[Sandbox],
        containers: Store[Container],
        pods: Pods,
        container_service: Containers,
        removal: ContainerRemoval,
        orphans: Orphans,
        network: PodNetwork,
        pending_deletes: PendingDeletes,
        reconciler: NetworkReconciler,
        cgroups: Cgroups,
        own_cgroup: str,
        images: ImageStore,
        puller: Puller,
    ) -> None:
        """`own_cgroup` is the parent cgroup of pods that name none, or "" if it must not be removed."""
        self._sandboxes = sandboxes
        self._containers = containers
        self._pods = pods
        self._container_service = container_service
        self._removal = removal
        self._orphans = orphans
        self._network = network
        self._pending_deletes = pending_deletes
        self._reconciler = reconciler
        self._cgroups = cgroups
        self._own_cgroup = own_cgroup
        self._images = images
        self._puller = puller

    async def run(self, *, images: bool, tell: Tell) -> Wiped:
        """Remove all pods and containers, and with `images` all images. May be cancelled and repeated.

        `tell` is called with the name of the step, the number of objects done, and their total (0 if not counted).
        """
        wiped = Wiped()
        log.warning("wiping", sandboxes=len(self._sandboxes), containers=len(self._containers))
        # 1. Undo creations in progress.
        tell("undoing creations in progress", 0, 0)
        await asyncio.gather(
            self._pods.end_creations(CREATIONS_GRACE_S),
            self._container_service.end_creations(CREATIONS_GRACE_S),
        )
        # 2. Remove pods with their containers, then containers without a pod.
        sandboxes, containers = len(self._sandboxes), len(self._containers)
        pods = [
            (_pod_text(sandbox), partial(self._pods.remove_pod_sandbox, sandbox.id))
            for sandbox in self._sandboxes
        ]
        await self._each("removing pods", pods, wiped, tell)
        orphans = [
            (f"container {container.id}", partial(self._removal.destroy, container))
            for container in self._containers
            if self._sandboxes.get(container.sandbox_id) is None
        ]
        await self._each("removing containers without a pod", orphans, wiped, tell)
        wiped.sandboxes = sandboxes - len(self._sandboxes)
        wiped.containers = containers - len(self._containers)
        # 3. Remove orphans. Objects that step 2 could not remove are in the report already.
        known = {item.id for store in (self._sandboxes, self._containers) for item in store}
        lost = [object_id for object_id in await self._orphans.ids() if object_id not in known]
        work = [(f"leftovers of {each}", partial(self._orphans.remove, each)) for each in lost]
        wiped.leftovers = await self._each("removing leftovers", work, wiped, tell)
        # 4. Retry the pending deletes.
        await self._wipe_attachments(known, wiped, tell)
        # 5. Remove the parent cgroup, unless another program uses it as well.
        if self._own_cgroup and not known:
            self._cgroups.remove_if_empty(self._own_cgroup)
        if images:
            await self._wipe_images(wiped, tell)
        log.warning(
            "wiped",
            sandboxes=wiped.sandboxes,
            containers=wiped.containers,
            leftovers=wiped.leftovers,
            left=[left.what for left in wiped.left],
        )
        return wiped

    async def _wipe_attachments(self, known: Collection[str], wiped: Wiped, tell: Tell) -> None:
        """Retry the pending deletes. `known` are the IDs that still have a record."""
        deletes = list(self._pending_deletes)
        if deletes:
            tell(f"deleting network attachments ({len(deletes)})", 0, 0)
            await self._reconciler.retry_all()
        for pending in self._pending_deletes:
            pod = f" ({pending.pod})" if pending.pod else ""
            wiped.left.append(
                Left(
                    f"attachment of {pending.container_id}{pod} to {pending.network}", pending.error
                )
            )
            if pending.container_id not in known:
                # This was the last try in which plugins could use the namespace.
                await self._network.unpin_namespace(pending.container_id)
        wiped.attachments = len(deletes) - len(self._pending_deletes)

    async def _wipe_images(self, wiped: Wiped, tell: Tell) -> None:
        await self._puller.end_all(0)
        work = [
            (f"image {image.name}", partial(self._images.remove, image.id))
            for image in self._images.images()
        ]
        wiped.images = await self._each("removing images", work, wiped, tell)
        rest = [("layers and blobs", partial(self._images.collect, untagged=True))]
        await self._each("removing unused layers and blobs", rest, wiped, tell)

    async def _each(
        self,
        step: str,
        work: Sequence[tuple[str, Callable[[], Awaitable[object]]]],
        wiped: Wiped,
        tell: Tell,
    ) -> int:
        """Do the work, `AT_ONCE` items in parallel. Returns the number of successes; failures go to `wiped.left`."""
        done = 0

        async def do(item: tuple[str, Callable[[], Awaitable[object]]]) -> None:
            nonlocal done
            what, each = item
            try:
                await each()
            except (CriShimError, OSError) as error:
                log.error("cannot wipe", what=what, error=str(error))
                wiped.left.append(Left(what, str(error) or repr(error)))
            else:
                done += 1
            tell(step, done, len(work))

        if work:
            tell(step, 0, len(work))
        await for_each(work, do, at_once=AT_ONCE)
        return done


def _pod_text(sandbox: Sandbox) -> str:
    metadata = sandbox.record.metadata
    return f"sandbox {sandbox.id} ({metadata.namespace}/{metadata.name})"
