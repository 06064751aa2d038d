"""Pending deletes: attachments whose DEL failed, kept on disk until a DEL succeeds.

A plugin that fails must not prevent the end of a pod, and the plugin's resources (an IP address) must not leak when the
pod ends. So a failed DEL becomes a pending delete, the pod is stopped, and `reconciler` retries the DEL.

Rules:
- One file per attachment, `<network>-<container ID>-<interface>.json`, with all arguments of DEL. It is synced, since
  leases of plugins survive a power cut. It is written before the attachment leaves the pod's record.
- While a pod has a pending delete, its network namespace stays pinned, since plugins use it to find their devices.
- A file that cannot be read is renamed to `.bad-…` and left out.
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
"""Arguments may contain all annotations of a pod."""


class PendingDelete(msgspec.Struct, frozen=True, kw_only=True):
    """The content of one file."""

    format: int = 1
    pod: str
    """`namespace/name`, for messages. "" if only the ID is known."""
    container_id: str
    network: str
    ifname: str
    netns: str
    args: dict[str, str] = {}
    capability_args: dict[str, Any] = {}
    since_ns: int
    """The time when DEL failed first."""
    error: str
    """The error of that DEL."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Network, container and interface, which identify an attachment."""
        return self.network, self.container_id, self.ifname

    @property
    def attachment(self) -> Attachment:
        """The attachment to delete. Raises InvalidArgumentError for invalid names."""
        return Attachment(
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            network=self.network,
            args=self.args,
            capability_args=self.capability_args,
        )


class PendingDeletes:
    """The pending deletes in memory and on disk. On the loop's thread only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pending_deletes: dict[tuple[str, str, str], PendingDelete] = {}
        self.added: Callable[[PendingDelete], None] = lambda _: None
        """Called after each new pending delete."""

    def __len__(self) -> int:
        return len(self._pending_deletes)

    def __iter__(self) -> Iterator[PendingDelete]:
        """The current pending deletes, the oldest first."""
        return iter(sorted(self._pending_deletes.values(), key=lambda pending: pending.since_ns))

    def holds(self, container_id: str) -> bool:
        """Whether this pod has a pending delete."""
        return any(
            pending.container_id == container_id for pending in self._pending_deletes.values()
        )

    def load(self) -> None:
        """Read the files of the former daemon."""
        self._pending_deletes = {
            pending.key: pending
            for pending in read_pending_deletes(self._directory, set_aside=True)
        }
        if self._pending_deletes:
            log.warning("CNI DELs are still pending", count=len(self._pending_deletes))

    def add(self, attachment: Attachment, *, pod: str, error: str) -> None:
        """Record that the DEL of an attachment failed. It is durable on return.

        Raises CriShimError if writing fails. Then the pod's record must keep the attachment.
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
        with host_step(f"writing the pending delete of {attachment}"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._file(pending), msgspec.json.encode(pending), fsync=True)
        self._pending_deletes[pending.key] = pending
        log.warning(
            "cni DEL failed and is pending", attachment=str(attachment), pod=pod, error=error
        )
        self.added(pending)

    def remove(self, pending: PendingDelete) -> None:
        """Remove a pending delete whose DEL succeeded. Raises CriShimError, and keeps it, if that fails."""
        with host_step(f"removing the pending delete of {pending.attachment}"):
            self._file(pending).unlink(missing_ok=True)
        self._pending_deletes.pop(pending.key, None)

    def _file(self, pending: PendingDelete) -> Path:
        return self._directory / file_name(pending)


def file_name(pending: PendingDelete) -> str:
    """The name of a pending delete's file."""
    return f"{'-'.join(pending.key)}.json"


def read_pending_deletes(directory: Path, *, set_aside: bool = False) -> list[PendingDelete]:
    """Read the pending deletes in a directory, which may be missing. Damaged files are left out, or set aside."""
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
                raise InvalidArgumentError("the file's name is not that of its attachment")
        except (OSError, msgspec.MsgspecError, CriShimError, RecursionError, ValueError) as error:
            log.error(
                "cannot read a pending delete",
                file=str(file),
                error=str(error),
                set_aside=set_aside,
            )
            if set_aside:
                file.replace(file.with_name(f".bad-{name}"))
        else:
            found.append(pending)
    return found
