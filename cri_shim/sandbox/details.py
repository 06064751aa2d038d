"""What the verbose forms of the status calls tell an operator beyond CRI's fields.

Rules:
- A request and its runtime-spec have megabytes if their author likes. They are JSON already and pass as they are: taken
  apart and put together again, the largest would hold the loop for more than a tenth of a second.
- They are read from their files, in a thread, when somebody asks. What is damaged, or gone since, is left out. This
  comes first, for it takes a while: all that memory knows is then told of one moment.
- An answer has at most three times `MAX_SHOWN_BYTES` of them, for clients take answers of 16 MiB.
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
"""Of a record or a runtime-spec; in place of a larger one a text says where it is."""
_NONE = msgspec.Raw(b"[]")


@dataclass(frozen=True, slots=True)
class Documents:
    """What is read from an object's files: JSON, or a text in place of what is too large."""

    paths: ObjectPaths
    request: msgspec.Raw | str | None
    """None when it can't be read."""
    spec: msgspec.Raw | str | None
    """None when it can't be read, or the bundle is gone."""
    mounts: msgspec.Raw | str
    """Those of the runtime-spec."""


async def read_documents(paths: ObjectPaths) -> Documents:
    """The request and the runtime-spec of an object, as far as they are there, read in a thread."""
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
    """The file's bytes, none where they are no text or can't be read; a text where there are too many."""
    try:
        data = read_bounded(path, MAX_SHOWN_BYTES)
        data.decode()  # nothing else looks at every byte of it
    except UnicodeDecodeError:
        return b""
    except OSError as error:
        if error.errno == errno.EFBIG:
            return f"not shown: more than {MAX_SHOWN_BYTES} bytes; see {path}"
        return b""
    return data


class _Request(msgspec.Struct):
    """What is looked for in a record; the rest is only read over."""

    config: msgspec.Raw


class _Mounts(msgspec.Struct):
    """What is looked for in a runtime-spec; the rest is only read over."""

    mounts: msgspec.Raw = _NONE


def sandbox_details(
    sandbox: Sandbox,
    documents: Documents,
    networks: list[dict[str, object]],
    *,
    cgroup: str,
) -> dict[str, object]:
    """Processes, network, runtime-spec and request of a sandbox; `networks` are `network_details`."""
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
    """Processes, root file system, volumes, limits, runtime-spec and request of a container."""
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
