"""What all handlers of kind `shim` share: connections to shims, the held streams, and who waits for containers' ends.

Rules:
- One connection per shim, which all its containers' calls share; it is made anew when it breaks.
- Each container, pause containers too, is waited for from its creation on, and by each later daemon. How it ended is
  written to an exit file, as a monitor writes it, when the rest of its output is in the log. So whoever learns of
  exits need not know who runs the container (`sandbox/exits`).
- A shim that dies is noticed by its process, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CriShimError, UnavailableError
from cri_shim.host.files import remove_tree
from cri_shim.host.mounts import unmount_below
from cri_shim.kernel_call import in_time
from cri_shim.oci.shim.bootstrap import NAMESPACE, Bootstrapped
from cri_shim.oci.shim.records import read_record
from cri_shim.oci.shim.task import Task
from cri_shim.ttrpc.client import Client
from cri_shim.ttrpc.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.background import Background
    from cri_shim.oci.shim.records import ShimRecord
    from cri_shim.oci.shim.streams import StreamsHolder

log = structlog.get_logger()
RECONNECT_PAUSE_S = 0.5
METADATA = {"containerd-namespace-ttrpc": NAMESPACE}


class Shims:
    """The shims of this node."""

    def __init__(self, *, streams: StreamsHolder, background: Background, exits_dir: Path) -> None:
        self.streams = streams
        self.background = background
        self._exits_dir = exits_dir
        self._tasks: dict[str, Task] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, Task] = {}
        streams.on_size = self._resize
        streams.on_input_end = self._end_input

    @property
    def connections(self) -> int:
        """How many shims are connected."""
        return len(self._tasks)

    @property
    def following(self) -> tuple[str, ...]:
        """Whose end is waited for."""
        return tuple(self._following)

    async def task(self, record: ShimRecord, *, handler: str, timeout_s: float) -> Task:
        """The calls of a shim. Raises UnavailableError for one that is gone."""
        return await self.connect(
            Bootstrapped(record.socket, record.version), handler=handler, timeout_s=timeout_s
        )

    async def connect(self, shim: Bootstrapped, *, handler: str, timeout_s: float) -> Task:
        """As `task`, for a shim that has just said where it is."""
        known = self._tasks.get(shim.socket)
        if known is not None and not known.closed:
            return known
        try:
            client = await Client.connect(Path(shim.socket), METADATA)
        except ConnectionLostError as error:
            self._tasks.pop(shim.socket, None)
            raise UnavailableError(f"the shim of handler {handler!r}: {error}") from error
        other = self._tasks.get(shim.socket)
        if other is not None and not other.closed:  # made meanwhile
            client.close()
            return other
        made = Task(client, shim.service, handler=handler, timeout_s=timeout_s)
        self._tasks[shim.socket] = made
        return made

    def disconnect(self, socket: str) -> None:
        """The shim is gone, or has to go."""
        task = self._tasks.pop(socket, None)
        if task is not None:
            task.close()

    async def clear(self, root_dir: Path, object_id: str) -> None:
        """Take away what is kept of an object whose processes are gone, below its handler's `root_dir`.

        The handler need not be configured any more. Raises OSError, DeadlineError.
        """
        record = read_record(root_dir, object_id)
        with contextlib.suppress(CriShimError):
            await self.streams.finish(object_id, at_once=True)
        if record is not None and record.pod_id == object_id:
            self.disconnect(record.socket)
            if record.socket.startswith("/"):
                Path(record.socket).unlink(missing_ok=True)
        await in_time("clearing what a shim left", _clear, root_dir, object_id)

    def follow(
        self,
        object_id: str,
        task: Task,
        reconnect: Callable[[], Awaitable[Task]],
        *,
        has_streams: bool,
    ) -> None:
        """Wait for the container's end, and leave an exit file. A broken connection is made anew."""
        if object_id in self._following:
            return
        self._followed[object_id] = task
        following = self.background.keep(
            f"waiting for the end of {object_id}", self._follow(object_id, reconnect, has_streams)
        )
        self._following[object_id] = following
        following.add_done_callback(lambda _: self._unfollow(object_id))

    def _unfollow(self, object_id: str) -> None:
        self._following.pop(object_id, None)
        self._followed.pop(object_id, None)

    async def _follow(
        self, object_id: str, reconnect: Callable[[], Awaitable[Task]], has_streams: bool
    ) -> None:
        ended = None
        while ended is None:
            try:
                ended = await self._followed[object_id].wait(object_id, timeout_s=None)
            except UnavailableError:
                await asyncio.sleep(RECONNECT_PAUSE_S)
                try:
                    self._followed[object_id] = await reconnect()
                except CriShimError:
                    return  # the shim is dead, of which its process tells
            except CriShimError as error:
                # Deleted: somebody else has seen to it.
                log.debug("no longer waiting for an exit", id=object_id, error=str(error))
                return
        if has_streams:
            try:
                await self.streams.finish(object_id)
            except CriShimError as error:
                log.warning("output may be missing", id=object_id, error=str(error))
        at_ns = ended.exited_at.seconds * 1_000_000_000 + ended.exited_at.nanos
        try:
            self._write_exit(object_id, ended.exit_status, at_ns)
        except OSError as error:
            log.error("exit not written down", id=object_id, error=str(error))

    def _write_exit(self, object_id: str, code: int, at_ns: int) -> None:
        written = self._exits_dir / f"{object_id}.new"
        written.write_text(str(code))
        if at_ns > 0:
            os.utime(written, ns=(at_ns, at_ns))
        written.rename(self._exits_dir / object_id)

    # --- what clients of held streams ask for

    def _resize(self, container_id: str, width: int, height: int) -> None:
        if (task := self._followed.get(container_id)) is not None:
            self._tell(
                "resize a terminal", container_id, task.resize(container_id, "", width, height)
            )

    def _end_input(self, container_id: str) -> None:
        if (task := self._followed.get(container_id)) is not None:
            self._tell("end an input", container_id, task.close_input(container_id))

    def _tell(self, what: str, container_id: str, work: object) -> None:
        async def told() -> None:
            try:
                await work  # type: ignore[misc]
            except CriShimError as error:  # it ended meanwhile
                log.debug(f"could not {what}", container_id=container_id, error=str(error))

        self.background.start(f"{what} of {container_id}", told())

    def close(self) -> None:
        """Close connections; shims and the held streams go on."""
        for socket in list(self._tasks):
            self.disconnect(socket)
        self.streams.close()


def _clear(root_dir: Path, object_id: str) -> None:
    left = root_dir / "runc" / NAMESPACE / object_id
    if left.is_dir():
        unmount_below(left)
        remove_tree(left)
    (root_dir / f"{object_id}.json").unlink(missing_ok=True)
