"""Pending deletes: attachments whose DEL failed, on disk until a DEL succeeds.

A pod must not hang because a plugin does, and what a plugin holds must not be forgotten because its pod is. So a failed
DEL becomes a pending delete, the pod goes on to its end, and `reconciler` tries the DEL again.

Rules:
- One file per attachment, `<network>-<container ID>-<interface>.json`, complete in itself and synced: leases of plugins
  outlive a power cut, so must this. Written before the pod's record forgets the attachment.
- While a pod has a pending delete, its network namespace stays pinned: plugins find what to take away through it.
- A file that can't be read is set aside under a name that starts with a dot; the rest goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cri_shim.cni.attachment import Attachment
from cri_shim.errors import CriShimError, InvalidArgumentError, host_step
from cri_shim.host.files import TMP_SUFFIX, read_bounded, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = structlog.get_logger()

MAX_FILE_BYTES = 4 << 20
"""Arguments may hold a pod's annotations."""


class PendingDelete(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    format: int = 1
    pod: str
    """`namespace/name`, for people; "" where only the ID is known."""
    container_id: str
    network: str
    ifname: str
    netns: str
    args: dict[str, str] = {}
    capability_args: dict[str, Any] = {}
    since_ns: int
    """When the DEL failed first."""
    error: str
    """What it said then."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Network, container and interface: what an attachment is known by."""
        return self.network, self.container_id, self.ifname

    @property
    def attachment(self) -> Attachment:
        """What DEL is to be called for. Raises InvalidArgumentError for names that can't be one."""
        return Attachment(
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            network=self.network,
            args=self.args,
            capability_args=self.capability_args,
        )


class PendingDeletes:
    """The list; on the loop's thread only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pending_deletes: dict[tuple[str, str, str], PendingDelete] = {}
        self.added: Callable[[PendingDelete], None] = lambda _: None
        """Called after each new pending delete."""

    def __len__(self) -> int:
        return len(self._pending_deletes)

    def __iter__(self) -> Iterator[PendingDelete]:
        """Oldest first; of what was there when asked."""
        return iter(sorted(self._pending_deletes.values(), key=lambda pending: pending.since_ns))

    def holds(self, container_id: str) -> bool:
        """Whether this pod has a pending delete."""
        return any(
            pending.container_id == container_id for pending in self._pending_deletes.values()
        )

    def load(self) -> None:
        """Read what a predecessor left pending."""
        self._pending_deletes = {
            pending.key: pending
            for pending in read_pending_deletes(self._directory, set_aside=True)
        }
        if self._pending_deletes:
            log.warning("CNI DELs are still pending", count=len(self._pending_deletes))

    def add(self, attachment: Attachment, *, pod: str, error: str) -> None:
        """Note that this attachment's DEL failed; durable when it returns.

        Raises CriShimError where the disk fails: then the pod's record must keep the attachment.
        """
        pending = PendingDelete(
            pod=pod,
            container_id=attachment.container_id,
            network=attachment.network,
            ifname=attachment.ifname,
            netns=attachment.netns,
            args=dict(attachment.args),
            capability_args=dict(attachment.capability_args),
            since_ns=time.time_ns(),
            error=error,
        )
        if pending.key in self._pending_deletes:
            return
        with host_step(f"noting that the DEL of {attachment} is pending"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._file(pending), msgspec.json.encode(pending), fsync=True)
        self._pending_deletes[pending.key] = pending
        log.warning(
            "cni DEL failed and is pending", attachment=str(attachment), pod=pod, error=error
        )
        self.added(pending)

    def remove(self, pending: PendingDelete) -> None:
        """Forget one whose DEL succeeded. Raises CriShimError where the disk fails; it stays then."""
        with host_step(f"forgetting that the DEL of {pending.attachment} was pending"):
            self._file(pending).unlink(missing_ok=True)
        self._pending_deletes.pop(pending.key, None)

    def _file(self, pending: PendingDelete) -> Path:
        return self._directory / file_name(pending)


def file_name(pending: PendingDelete) -> str:
    """The name of a pending delete's file."""
    return f"{'-'.join(pending.key)}.json"


def read_pending_deletes(directory: Path, *, set_aside: bool = False) -> list[PendingDelete]:
    """The pending deletes in a directory; it may be missing. What can't be read is left out, or set aside."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if name.startswith(".") or name.endswith(TMP_SUFFIX):
            continue
        file = directory / name
        try:
            pending = msgspec.json.decode(read_bounded(file, MAX_FILE_BYTES), type=PendingDelete)
            if pending.attachment and file_name(pending) != name:
                raise InvalidArgumentError("it speaks of another attachment")
        except (OSError, msgspec.MsgspecError, CriShimError, RecursionError, ValueError) as error:
            log.error(
                "a pending delete can't be read",
                file=str(file),
                error=str(error),
                set_aside=set_aside,
            )
            if set_aside:
                file.replace(file.with_name(f".bad-{name}"))
        else:
            found.append(pending)
    return found
