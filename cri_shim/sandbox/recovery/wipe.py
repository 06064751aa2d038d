"""Taking away everything that a root owns: for a drained node, an uninstall, or what a crash has left.

Rules:
- Nothing here undoes anything itself: pods and containers go the way that RemovePodSandbox takes, what has no readable
  record goes by its ID (`orphans`).
- One thing that can't be taken away never stops the rest; it is in the report, and the next wipe tries it again.
- Only what this root's own state names is touched: CNI's cache, networks and cgroup hierarchies are shared with others.
- The caller sees to it that nothing new is asked for meanwhile.
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
"""For pods and containers that are being made: then they are undone, else removed like the others."""


@dataclass(frozen=True, slots=True)
class Left:
    """One thing that could not be taken away."""

    what: str
    why: str


@dataclass(slots=True)
class Wiped:
    """What went, and what did not."""

    sandboxes: int = 0
    containers: int = 0
    leftovers: int = 0
    attachments: int = 0
    images: int = 0
    left: list[Left] = field(default_factory=list)


class Wipe:
    """Everything of one root, taken away."""

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
        """`own_cgroup` is the parent of pods that name none; "" if it is not ours to remove."""
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
        """Take it away, with `images` those as well; what went and what did not. May be repeated, and cut off.

        `tell` hears each step in a few words, how much of it is done, and of how much (0: nothing to count).
        """
        wiped = Wiped()
        log.warning("wiping", sandboxes=len(self._sandboxes), containers=len(self._containers))
        # 1. Nothing is being made any more.
        tell("ending what is being made", 0, 0)
        await asyncio.gather(
            self._pods.end_creations(CREATIONS_GRACE_S),
            self._container_service.end_creations(CREATIONS_GRACE_S),
        )
        # 2. Pods with their containers, and containers whose pod is gone.
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
        # 3. What has no readable record. What has one and is still here stands in the report.
        known = {item.id for store in (self._sandboxes, self._containers) for item in store}
        lost = [object_id for object_id in await self._orphans.ids() if object_id not in known]
        work = [(f"what is left of {each}", partial(self._orphans.remove, each)) for each in lost]
        wiped.leftovers = await self._each("removing leftovers", work, wiped, tell)
        # 4. The pending deletes.
        await self._wipe_attachments(known, wiped, tell)
        # 5. Our cgroup, unless others use it as well.
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
        """`known` are the IDs with a record. A namespace is of no use to plugins once even this try has failed."""
        deletes = list(self._pending_deletes)
        if deletes:
            tell(f"giving back network attachments ({len(deletes)})", 0, 0)
            await self._reconciler.retry_all()
        for pending in self._pending_deletes:
            pod = f" ({pending.pod})" if pending.pod else ""
            wiped.left.append(
                Left(
                    f"attachment of {pending.container_id}{pod} to {pending.network}", pending.error
                )
            )
            if pending.container_id not in known:
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
        await self._each("removing what images left", rest, wiped, tell)

    async def _each(
        self,
        step: str,
        work: Sequence[tuple[str, Callable[[], Awaitable[object]]]],
        wiped: Wiped,
        tell: Tell,
    ) -> int:
        """Do it all, some at once; how much of it succeeded. What did not is in `wiped.left`."""
        done = 0

        async def do(item: tuple[str, Callable[[], Awaitable[object]]]) -> None:
            nonlocal done
            what, each = item
            try:
                await each()
            except (CriShimError, OSError) as error:
                log.error("not wiped", what=what, error=str(error))
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
