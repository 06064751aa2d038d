"""The result cache: what was added, so that this daemon or the next one can delete it.

Rules:
- One file per attachment, `<network>-<container ID>-<interface>`, in libcni's directory and format. Tools that read its
  cache can read ours, and other runtimes of the node have their entries beside ours.
- Write ahead: the entry is written before the first plugin runs, without a result, and holds the configuration in use.
  So DEL can undo an interrupted ADD, and one whose configuration file was changed or removed.
- Only files of the requested attachments are touched. One of ours that can't be read is renamed to a name that starts
  with a dot, for an operator to look at, and counts as absent.
- Files are replaced by rename and not synced. They must survive the daemon's death, not a power cut, after which the
  attachments they describe no longer exist.

CNI spec 1.1 §4 "DEL" (prevResult).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import structlog

from cri_shim.cni.attachment import Attachment
from cri_shim.errors import (
    UNREADABLE_DOCUMENT,
    CriShimError,
    InvalidArgumentError,
    ResourceExhaustedError,
    is_lack,
)
from cri_shim.host.files import TMP_SUFFIX, read_bounded, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger()

MAX_ENTRY_BYTES = 4 << 20
"""Room for a configuration and a result of 1 MiB each, and for the base64 of the former."""


class CacheEntry(msgspec.Struct, rename="camel", omit_defaults=True, frozen=True):
    """One file. `config` is the network list's JSON, base64 in the file. No `result` means that ADD has not ended."""

    kind: Literal["cniCacheV1"]
    container_id: str
    config: bytes
    if_name: str
    network_name: str
    netns: str = ""
    cni_args: list[tuple[str, str]] = []
    capability_args: dict[str, Any] = {}
    result: dict[str, Any] | None = None

    @classmethod
    def of(
        cls, attachment: Attachment, config: bytes, result: dict[str, Any] | None = None
    ) -> CacheEntry:
        """The entry of an attachment, before plugins have run (`result` None) or after."""
        return cls(
            kind="cniCacheV1",
            container_id=attachment.container_id,
            config=config,
            if_name=attachment.ifname,
            network_name=attachment.network,
            netns=attachment.netns,
            cni_args=list(attachment.args.items()),
            capability_args=dict(attachment.capability_args),
            result=result,
        )

    def attachment(self) -> Attachment:
        """The attachment as it was passed to ADD. Raises InvalidArgumentError for invalid names."""
        return Attachment(
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.if_name,
            network=self.network_name,
            args=dict(self.cni_args),
            capability_args=self.capability_args,
        )


class _EntryNames(msgspec.Struct, rename="camel"):
    container_id: str
    if_name: str
    network_name: str


class ResultCache:
    """The directory of entries. Every method raises CriShimError if the disk fails."""

    def __init__(self, cache_dir: Path) -> None:
        self._dir = cache_dir

    @property
    def directory(self) -> Path:
        """The directory of all entries, ours and other runtimes'."""
        return self._dir

    def load(self, attachment: Attachment) -> CacheEntry | None:
        """The entry of an attachment; None if there is none that can be read."""
        return self._read(self._file(attachment))

    def save(self, entry: CacheEntry) -> None:
        """Write or replace the entry of an attachment."""
        file = self._file(entry.attachment())
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(file, msgspec.json.encode(entry))
        except OSError as error:
            raise _disk_error("write", file, error) from error

    def remove(self, attachment: Attachment) -> None:
        """Remove the entry of an attachment, if there is one."""
        file = self._file(attachment)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise _disk_error("remove", file, error) from error

    def attachments(self, container_id: str) -> tuple[Attachment, ...]:
        """Every attachment of one container that has an entry, whether its network is still configured or not."""
        found = []
        for name in self._names():
            if name.startswith(".") or f"-{container_id}-" not in name:
                continue
            entry = self._read(self._dir / name)
            if entry is not None and entry.container_id == container_id:
                found.append(entry.attachment())
        return tuple(found)

    def attached_to(self, network: str) -> set[tuple[str, str]]:
        """Container ID and interface of each entry of a network, whichever runtime made it. Read-only; blocking.

        A file in an unknown format counts by its name, since it is somebody's attachment.
        """
        found = set()
        for name in self._names():
            if name.startswith("."):
                continue
            try:
                entry = msgspec.json.decode(
                    read_bounded(self._dir / name, MAX_ENTRY_BYTES), type=_EntryNames
                )
            except FileNotFoundError:
                continue
            except (OSError, *UNREADABLE_DOCUMENT):
                # A temporary file, of a write that goes on or was interrupted, is no attachment yet.
                if name.startswith(f"{network}-") and not name.endswith(TMP_SUFFIX):
                    found.add((name.removeprefix(f"{network}-"), ""))
                continue
            if entry.network_name == network:
                found.add((entry.container_id, entry.if_name))
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(file.name for file in self._dir.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _disk_error("list", self._dir, error) from error

    def _file(self, attachment: Attachment) -> Path:
        return self._dir / f"{attachment.network}-{attachment.container_id}-{attachment.ifname}"

    def _read(self, file: Path) -> CacheEntry | None:
        try:
            entry = self._decode(file, read_bounded(file, MAX_ENTRY_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, *UNREADABLE_DOCUMENT, InvalidArgumentError) as error:
            if isinstance(error, OSError) and is_lack(error):  # the node's fault: keep the entry
                raise _disk_error("read", file, error) from error
            self._set_aside(file, str(error))
            return None
        return entry

    def _decode(self, file: Path, data: bytes) -> CacheEntry:
        entry = msgspec.json.decode(data, type=CacheEntry)
        if self._file(entry.attachment()) != file:
            raise InvalidArgumentError("its content belongs to another attachment")
        return entry

    def _set_aside(self, file: Path, reason: str) -> None:
        aside = file.with_name(f".bad-{file.name}")
        try:
            if file.name.endswith(TMP_SUFFIX):  # a write that a former daemon's death interrupted
                file.unlink(missing_ok=True)
                return
            file.replace(aside)
        except OSError as error:  # the entry counts as absent all the same
            log.error(
                "an invalid cni cache entry can't be set aside", file=str(file), error=str(error)
            )
            return
        log.warning(
            "an invalid cni cache entry was set aside",
            file=str(file),
            aside=aside.name,
            reason=reason,
        )


def _disk_error(step: str, file: Path, error: OSError) -> CriShimError:
    kind = ResourceExhaustedError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CriShimError
    return kind(f"CNI result cache: can't {step} {file}: {error.strerror}")
