"""Attachments whose DEL failed: what is still owed to the plugins, on disk until it is paid.

A pod must not hang because a plugin does, and what a plugin holds must not be forgotten because its pod is. So a failed
DEL becomes a debt, the pod goes on to its end, and `upkeep` tries the DEL again.

Rules:
- One file per attachment, `<network>-<container ID>-<interface>.json`, complete in itself and synced: leases of plugins
  outlive a power cut, so must this. Written before the pod's record forgets the attachment.
- While a pod owes, its network namespace stays pinned: plugins find what to take away through it.
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


class Debt(msgspec.Struct, frozen=True, kw_only=True):
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


class Debts:
    """The list; on the loop's thread only."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._debts: dict[tuple[str, str, str], Debt] = {}
        self.owed: Callable[[Debt], None] = lambda _: None
        """Called after each new debt."""

    def __len__(self) -> int:
        return len(self._debts)

    def __iter__(self) -> Iterator[Debt]:
        """Oldest first; of what was there when asked."""
        return iter(sorted(self._debts.values(), key=lambda debt: debt.since_ns))

    def holds(self, container_id: str) -> bool:
        """Whether anything is owed for this pod."""
        return any(debt.container_id == container_id for debt in self._debts.values())

    def load(self) -> None:
        """Read what a predecessor owed."""
        self._debts = {debt.key: debt for debt in read_debts(self._directory, set_aside=True)}
        if self._debts:
            log.warning("network attachments are still owed their DEL", count=len(self._debts))

    def owe(self, attachment: Attachment, *, pod: str, error: str) -> None:
        """Note that this attachment's DEL failed; durable when it returns.

        Raises CriShimError where the disk fails: then the pod's record must keep the attachment.
        """
        debt = Debt(
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
        if debt.key in self._debts:
            return
        with host_step(f"noting that the DEL of {attachment} is owed"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._file(debt), msgspec.json.encode(debt), fsync=True)
        self._debts[debt.key] = debt
        log.warning("cni DEL failed and is owed", attachment=str(attachment), pod=pod, error=error)
        self.owed(debt)

    def paid(self, debt: Debt) -> None:
        """Forget one whose DEL succeeded. Raises CriShimError where the disk fails; it stays then."""
        with host_step(f"forgetting that the DEL of {debt.attachment} was owed"):
            self._file(debt).unlink(missing_ok=True)
        self._debts.pop(debt.key, None)

    def _file(self, debt: Debt) -> Path:
        return self._directory / file_name(debt)


def file_name(debt: Debt) -> str:
    """The name of a debt's file."""
    return f"{'-'.join(debt.key)}.json"


def read_debts(directory: Path, *, set_aside: bool = False) -> list[Debt]:
    """The debts that stand in a directory; it may be missing. What can't be read is left out, or set aside."""
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
            debt = msgspec.json.decode(read_bounded(file, MAX_FILE_BYTES), type=Debt)
            if debt.attachment and file_name(debt) != name:
                raise InvalidArgumentError("it speaks of another attachment")
        except (OSError, msgspec.MsgspecError, CriShimError, RecursionError, ValueError) as error:
            log.error("a debt can't be read", file=str(file), error=str(error), set_aside=set_aside)
            if set_aside:
                file.replace(file.with_name(f".bad-{name}"))
        else:
            found.append(debt)
    return found
