"""The Wipe call of the admin service. The daemon serves it, and the command line itself where no daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.rpc.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Left(Protocol):
    """One object that could not be removed."""

    @property
    def what(self) -> str:
        """The object's kind, ID and name."""

    @property
    def why(self) -> str:
        """The error of the removal."""


class Wiped(Protocol):
    """Counts of what was removed, and the list of what was not."""

    sandboxes: int
    containers: int
    leftovers: int
    attachments: int
    images: int

    @property
    def left(self) -> Sequence[Left]:
        """The objects that could not be removed."""


class Wipe(Protocol):
    """Removes everything of one root."""

    async def run(self, *, images: bool, tell: Callable[[str, int, int], None]) -> Wiped:
        """Remove pods, containers and leftovers, with `images` also images. Calls `tell(step, done, total)`."""


async def answer_wipe(
    wipe: Wipe,
    request: admin.WipeRequest,
    send: Callable[[admin.WipeResponse], Awaitable[None]],
) -> None:
    """Wipe; send progress meanwhile, then each object that is left, then the sums."""
    relay: Relay[admin.WipeResponse] = Relay()

    def tell(step: str, done: int, total: int) -> None:
        progress = admin.WipeProgress(step=step, done=done, total=total)
        relay.tell(step, admin.WipeResponse(progress=progress))

    wiped = await relay.run(lambda: wipe.run(images=request.images, tell=tell), send)
    for left in wiped.left:
        await send(admin.WipeResponse(left=admin.WipeLeft(what=left.what, why=left.why)))
    sums = admin.WipeSums(
        sandboxes=wiped.sandboxes,
        containers=wiped.containers,
        leftovers=wiped.leftovers,
        attachments=wiped.attachments,
        images=wiped.images,
    )
    await send(admin.WipeResponse(sums=sums))
