"""The Wipe call of the admin service, whoever serves it: the daemon, or the command line itself where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.rpc.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class Left(Protocol):
    """One thing that could not be taken away."""

    @property
    def what(self) -> str:
        """Its kind, ID and name."""

    @property
    def why(self) -> str:
        """What failed."""


class Wiped(Protocol):
    """What went, and what did not."""

    sandboxes: int
    containers: int
    leftovers: int
    attachments: int
    images: int

    @property
    def left(self) -> Sequence[Left]:
        """What did not."""


class Wipe(Protocol):
    """Everything of one root, to be taken away."""

    async def run(self, *, images: bool, tell: Callable[[str, int, int], None]) -> Wiped:
        """Take it away; `tell` hears a step, how much of it is done, and of how much."""


async def answer_wipe(
    wipe: Wipe,
    request: admin.WipeRequest,
    send: Callable[[admin.WipeResponse], Awaitable[None]],
) -> None:
    """Wipe, and tell how far that has come, what is left and the sums."""
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
