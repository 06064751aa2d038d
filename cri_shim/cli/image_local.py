"""The image calls without a daemon (`image_calls.ImageCalls`): opens the store in this process.

Rules:
- The root's lock is held meanwhile. A daemon that starts then fails with an error that names the lock's holder.
- Each call runs on an event loop of this object, on the main thread. Ctrl-C cancels the call, and the command ends when
  the store has undone the partial work.
- Only errors are logged. The command reports results.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cri_shim import log
from cri_shim.cli.archive_stream import import_messages
from cri_shim.daemon.images import Images, open_offline
from cri_shim.errors import AlreadyExistsError, CriShimError, UnavailableError
from cri_shim.rpc.admin_images import ImageCalls
from cri_shim.rpc.client import local_errors_of
from cri_shim.rpc.translate_images import image_entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from cri_shim._pb.admin.v1 import admin_pb2 as admin
    from cri_shim._pb.cri.v1 import api_pb2 as api
    from cri_shim.cli.archive_stream import ArchiveStream
    from cri_shim.config import Config

T = TypeVar("T")
M = TypeVar("M")


class LocalImages:
    """The store of a root, opened by `with LocalImages(config, ...) as images`."""

    def __init__(self, config: Config, *, no_daemon: str) -> None:
        """`no_daemon` is why the daemon is not used; it is part of the error if the store cannot be opened either."""
        self._config = config
        self._no_daemon = no_daemon
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def __enter__(self) -> Self:
        """Open the store. Raises UnavailableError if another process has the root, or this one may not use it."""
        # Warnings, e.g. of retries, would break the progress bars. If they lead to a failure, its error is shown.
        log.configure(level="error", format=self._config.log.format)
        try:
            opened: Images = self._run(self._stack.enter_async_context(open_offline(self._config)))
        except CriShimError as error:
            self._runner.close()
            hint = ""
            if isinstance(error, AlreadyExistsError):
                hint = ". If that is the daemon, it is starting, stopping or hanging: retry, and check its log"
            raise UnavailableError(
                f"{self._no_daemon}; the image store cannot be opened without it either: {error}{hint}"
            ) from error
        except BaseException:
            self._runner.close()
            raise
        self._store = opened.store
        self._calls = ImageCalls(opened.store, opened.puller)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._run(self._stack.aclose())
        finally:
            self._runner.close()

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Convert errors as the daemon would."""
        return local_errors_of(doing)

    def list_images(self) -> Sequence[api.Image]:
        """All images."""
        return [image_entry(image) for image in self._store.images()]

    def find_image(self, name: str) -> api.Image | None:
        """The image with that name, digest or ID, or None."""
        found = self._store.find(name)
        return None if found is None else image_entry(found)

    def remove_image(self, name: str) -> None:
        """Remove an image with all its names."""
        self._run(self._store.remove(name))

    def import_image(
        self,
        archive: ArchiveStream,
        name: str,
        tell: Callable[[admin.ImportImageResponse], None],
    ) -> None:
        """Import an archive."""
        requests = _drawn_in_threads(import_messages(archive, name))
        self._run(self._calls.import_image(requests, _sender(tell)))

    def pull_image(
        self, request: admin.PullImageRequest, tell: Callable[[admin.PullImageResponse], None]
    ) -> None:
        """Pull an image."""
        self._run(self._calls.pull_image(request, _sender(tell)))

    def export_image(
        self, request: admin.ExportImageRequest, tell: Callable[[admin.ExportImageResponse], None]
    ) -> None:
        """Export images as an archive."""
        self._run(self._calls.export_image(request, _sender(tell)))

    def check_images(
        self, request: admin.CheckImagesRequest, tell: Callable[[admin.CheckImagesResponse], None]
    ) -> None:
        """Check images for damage."""
        self._run(self._calls.check_images(request, _sender(tell)))

    def collect_images(self, request: admin.CollectImagesRequest) -> admin.CollectImagesResponse:
        """Remove unused images and leftovers."""
        return self._run(self._calls.collect_images(request))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)


def _sender(tell: Callable[[M], None]) -> Callable[[M], Coroutine[Any, Any, None]]:
    async def send(message: M) -> None:
        tell(message)

    return send


async def _drawn_in_threads(
    messages: Iterator[admin.ImportImageRequest],
) -> AsyncIterator[admin.ImportImageRequest]:
    """Iterate the messages in a thread: a read from a pipe may block, and the loop must not."""
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message
