"""The admin service: what the command line needs and CRI has no call for. Unix sockets only.

Rules are those of `runtime_service`. An import belongs to its call: nobody would come back for its result, so a call
that is cut off undoes it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.errors import BadArchiveError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from cri_shim.image.model import Image, ImportProgress

    Send = Callable[[admin.ImportImageResponse], Awaitable[None]]

PROGRESS_INTERVAL_S: Final = 0.1


class Importer(Protocol):
    """The part of the image store that takes archives."""

    async def import_archive(
        self,
        source: AsyncIterator[bytes],
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Sequence[Image]:
        """Store an archive's images.

        Raises BadArchiveError, BadImageReferenceError, ResourceExhaustedError.
        """


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon is and works with."""

    root: str
    state: str
    config_json: str
    cgroup_driver: str
    handlers: Sequence[tuple[str, str]]
    """Name and version of each runtime handler, the default first."""


@dataclass(slots=True)
class _Latest:
    """The last thing that an import said; what comes faster than it is sent is skipped."""

    progress: admin.ImportProgress | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, step: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        """The import has come this far."""
        self.progress = admin.ImportProgress(
            step=step, done_bytes=done_bytes, total_bytes=total_bytes
        )
        self.news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self.over.set()
        self.news.set()

    async def send_each(self, send: Send) -> None:
        """Pass on what is new, at most every `PROGRESS_INTERVAL_S`, until the end."""
        while not self.over.is_set():
            await self.news.wait()
            self.news.clear()
            progress, self.progress = self.progress, None
            if progress is not None:
                await send(admin.ImportImageResponse(progress=progress))
            try:
                async with asyncio.timeout(PROGRESS_INTERVAL_S):
                    await self.over.wait()
            except TimeoutError:
                pass  # not over yet


@dataclass(frozen=True, slots=True)
class AdminService:
    """The RPCs of `cri_shim.admin.v1.Admin`."""

    images: Importer
    describe: Callable[[], Awaitable[DaemonInfo]]

    async def import_image(
        self, requests: AsyncIterator[admin.ImportImageRequest], send: Send
    ) -> None:
        """Store the images of the archive that the client sends, and tell how far that has come."""
        first = await anext(requests, None)
        if first is None or not first.HasField("options"):
            raise InvalidArgumentError("ImportImageRequest: the first message must carry `options`")
        latest = _Latest()

        async def work() -> Sequence[Image]:
            try:
                return await self.images.import_archive(
                    _chunks(requests, first.options.archive_bytes, latest),
                    first.options.name or None,
                    lambda progress: latest.note(step_text(progress)),
                )
            finally:
                latest.end()

        # Not a task group: a failing import would cancel the sender, and grpc never ends a call of which a write was
        # cut off. This way the sender sees the end and finishes its last one.
        sent, imported = await asyncio.gather(
            latest.send_each(send), work(), return_exceptions=True
        )
        if isinstance(imported, BaseException):
            raise imported
        if isinstance(sent, BaseException):
            raise sent
        await send(
            admin.ImportImageResponse(
                imported=admin.ImportedImages(
                    images=[
                        admin.ImportedImage(id=image.id, names=image.repo_tags)
                        for image in imported
                    ]
                )
            )
        )

    async def info(self, request: admin.InfoRequest) -> admin.InfoResponse:
        """What this daemon is."""
        facts = await self.describe()
        return admin.InfoResponse(
            version=cri_shim.__version__,
            pid=os.getpid(),
            root=facts.root,
            state=facts.state,
            config_json=facts.config_json,
            cgroup_driver=facts.cgroup_driver,
            handlers=[
                admin.HandlerInfo(name=name, version=version) for name, version in facts.handlers
            ],
        )


def step_text(progress: ImportProgress) -> str:
    """A step of the image store in words."""
    match progress.step:
        case "received":
            return "archive received"
        case "layer":
            return f"{progress.image}: layer {progress.done} of {progress.total} unpacked"
        case _:
            return f"{progress.image}: {progress.step}" if progress.image else progress.step


async def _chunks(
    requests: AsyncIterator[admin.ImportImageRequest], total_bytes: int, latest: _Latest
) -> AsyncIterator[bytes]:
    received = 0
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidArgumentError(
                "ImportImageRequest: after the first message, each must carry a `chunk`"
            )
        received += len(request.chunk)
        latest.note("receiving the archive", received, total_bytes)
        yield request.chunk
    # To grpc a client that went away looks at first like one that has sent everything.
    if total_bytes and received != total_bytes:
        raise BadArchiveError(
            f"the archive ended after {received} of {total_bytes} bytes: import it again"
        )
