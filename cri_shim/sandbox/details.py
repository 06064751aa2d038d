"""The documents of verbose PodSandboxStatus and ContainerStatus responses.

Rules:
- A request and its runtime-spec can have megabytes. They are JSON already, and are passed on without decoding and
  encoding them again, which for the largest would block the loop for more than 0.1 s.
- They are read from their files, in a thread, at each call. Damaged or missing ones are left out. They are read first,
  since that takes a while; then the state in memory is read, at one moment.
- A response has at most three documents of `MAX_SHOWN_BYTES`, since clients accept responses of 16 MiB.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT
from cri_shim.host.files import read_bounded

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.paths import ObjectPaths
    from cri_shim.sandbox.store.store import Container, Sandbox

MAX_SHOWN_BYTES: Final = 4 << 20
"""The largest record or runtime-spec that is shown. A larger one is replaced by a text with its path."""
_NONE = msgspec.Raw(b"[]")


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents from an object's files: JSON, or a text for one that is too large."""

    paths: ObjectPaths
    request: msgspec.Raw | str | None
    """None if it cannot be read."""
    spec: msgspec.Raw | str | None
    """None if it cannot be read, or the bundle is removed."""
    mounts: msgspec.Raw | str
    """The mounts of the runtime-spec."""


async def read_documents(paths: ObjectPaths) -> Documents:
    """Read the request and the runtime-spec of an object in a thread."""
    return await asyncio.to_thread(_read_documents, paths)


def _read_documents(paths: ObjectPaths) -> Documents:
    record = _read(paths.record_file)
    request = record if isinstance(record, str) else _request_of(record)
    spec = _read(paths.spec_file)
    if isinstance(spec, str):
        return Documents(paths, request, spec, spec)
    try:
        mounts = msgspec.json.decode(spec, type=_Mounts).mounts
    except UNREADABLE_DOCUMENT:
        return Documents(paths, request, None, _NONE)
    return Documents(paths, request, msgspec.Raw(spec), mounts)


def _request_of(record: bytes) -> msgspec.Raw | None:
    try:
        return msgspec.json.decode(record, type=_Request).config
    except UNREADABLE_DOCUMENT:
        return None


def _read(path: Path) -> bytes | str:
    """The content of a file; b"" if it is not UTF-8 or cannot be read; a text if it is too large."""
    try:
        data = read_bounded(path, MAX_SHOWN_BYTES)
        data.decode()  # msgspec.Raw is not validated, and a protobuf string must be UTF-8
    except UnicodeDecodeError:
        return b""
    except OSError as error:
        if error.errno == errno.EFBIG:
            return f"not shown: more than {MAX_SHOWN_BYTES} bytes; see {path}"
        return b""
    return data


class _Request(msgspec.Struct):
    """The field of a record that is needed; the decoder skips the others."""

    config: msgspec.Raw


class _Mounts(msgspec.Struct):
    """The field of a runtime-spec that is needed; the decoder skips the others."""

    mounts: msgspec.Raw = _NONE


def sandbox_details(
    sandbox: Sandbox,
    documents: Documents,
    networks: list[dict[str, object]],
    *,
    cgroup: str,
) -> dict[str, object]:
    """The document of a sandbox: processes, network, runtime-spec, request."""
    status = sandbox.status
    return {
        "sandboxID": sandbox.id,
        "pid": status.process.pid if status.process else 0,
        "runtimeHandler": sandbox.record.handler,
        "image": sandbox.record.image_id,
        "snapshot": {
            "layers": list(sandbox.record.layers),
            "upper": str(documents.paths.upper_dir),
        },
        "hostname": sandbox.record.hostname,
        "cgroup": cgroup,
        "netns": sandbox.record.netns,
        "cgroupParent": sandbox.record.cgroup_parent,
        "attachments": [msgspec.to_builtins(a) for a in status.attachments],
        "ips": list(status.ips),
        "cniResult": networks,
        "readyAt": status.ready_at_ns,
        "notReadySince": status.stopped_at_ns,
        "reason": status.reason,
        "rootDirectory": str(documents.paths.root_dir),
        "resourcesUpdate": status.sizing,
        "runtimeSpec": documents.spec,
        "config": documents.request,
    }


def container_details(
    container: Container, documents: Documents, *, cgroup: str
) -> dict[str, object]:
    """The document of a container: processes, root file system, volumes, limits, runtime-spec, request."""
    status = container.status
    return {
        "sandboxID": container.sandbox_id,
        "pid": status.process.pid if status.process and not status.finished_at_ns else 0,
        "monitorPid": status.monitor.pid if status.monitor else 0,
        "runtimeHandler": container.record.handler,
        "image": container.record.image_id,
        "snapshot": {
            "layers": list(container.record.layers),
            "upper": str(documents.paths.upper_dir),
        },
        "mounts": documents.mounts,
        "imageVolumes": [msgspec.to_builtins(each) for each in container.record.image_volumes],
        "cgroup": cgroup,
        "resourcesUpdate": status.resources,
        "rootDirectory": str(documents.paths.root_dir),
        "runtimeSpec": documents.spec,
        "config": documents.request,
    }
