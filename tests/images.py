"""Small image archives for tests, made in memory: layers from entries, images from layers.

archive = oci_archive(layer(directory("etc"), file("etc/motd", b"hello\n")), name="example.org/a:1", cmd=["sh"])
await store.import_archive(stream(archive))
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard

from cri_shim.image.builtin import busybox_archive
from cri_shim.image.manifest import digest_of
from cri_shim.image.platforms import platform_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = [
    "LayerBlob",
    "busybox_archive",
    "config_of",
    "device",
    "directory",
    "docker_archive",
    "fifo",
    "file",
    "hardlink",
    "layer",
    "member_tar",
    "oci_archive",
    "opaque",
    "stream",
    "symlink",
    "tar_of",
    "whiteout",
]

MTIME = 1_600_000_000
Entry = tuple[tarfile.TarInfo, bytes]


def _header(name: str, kind: bytes, mode: int, **attributes: Any) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.mode = mode
    header.mtime = attributes.pop("mtime", MTIME)
    xattrs: Mapping[str, bytes] = attributes.pop("xattrs", {})
    header.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in xattrs.items()
    }
    for key, value in attributes.items():
        setattr(header, key, value)
    return header


def file(name: str, data: bytes = b"", mode: int = 0o644, **attributes: Any) -> Entry:
    """A regular file; attributes: uid, gid, mtime, xattrs."""
    header = _header(name, tarfile.REGTYPE, mode, **attributes)
    header.size = len(data)
    return header, data


def directory(name: str, mode: int = 0o755, **attributes: Any) -> Entry:
    """A directory."""
    return _header(name, tarfile.DIRTYPE, mode, **attributes), b""


def symlink(name: str, target: str, **attributes: Any) -> Entry:
    """A symbolic link."""
    return _header(name, tarfile.SYMTYPE, 0o777, linkname=target, **attributes), b""


def hardlink(name: str, target: str, mode: int = 0o644, **attributes: Any) -> Entry:
    """A hard link."""
    return _header(name, tarfile.LNKTYPE, mode, linkname=target, **attributes), b""


def device(name: str, major: int, minor: int, mode: int = 0o600, *, block: bool = False) -> Entry:
    """A device node."""
    kind = tarfile.BLKTYPE if block else tarfile.CHRTYPE
    return _header(name, kind, mode, devmajor=major, devminor=minor), b""


def fifo(name: str, mode: int = 0o600) -> Entry:
    """A FIFO."""
    return _header(name, tarfile.FIFOTYPE, mode), b""


def whiteout(path: str) -> Entry:
    """What hides `path` of the lower layers."""
    head, _, base = path.rpartition("/")
    return file(f"{head}/.wh.{base}" if head else f".wh.{base}")


def opaque(path: str) -> Entry:
    """What hides everything that lower layers have in the directory `path`."""
    return file(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def tar_of(entries: Sequence[Entry]) -> bytes:
    """The entries as a tar, in their order, names as they are."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as tar:
        for header, data in entries:
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


@dataclass(frozen=True)
class LayerBlob:
    """A layer as a registry would keep it."""

    blob: bytes
    diff_id: str
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.blob)


def layer(*entries: Entry, compression: str = "none", tar: bytes | None = None) -> LayerBlob:
    """A layer of `entries`, or of a whole `tar`; compression: none, gzip, zstd."""
    plain = tar_of(entries) if tar is None else tar
    media_type = "application/vnd.oci.image.layer.v1.tar"
    if compression == "gzip":
        return LayerBlob(gzip.compress(plain, mtime=0), digest_of(plain), f"{media_type}+gzip")
    if compression == "zstd":
        packed = zstandard.ZstdCompressor().compress(plain)
        return LayerBlob(packed, digest_of(plain), f"{media_type}+zstd")
    return LayerBlob(plain, digest_of(plain), media_type)


def config_of(layers: Sequence[LayerBlob], **config: Any) -> bytes:
    """An image configuration; `config` has the keys of its `config` object in snake case, and os, architecture."""
    platform = platform_of(os.uname().machine)
    names = {
        "user": "User",
        "env": "Env",
        "entrypoint": "Entrypoint",
        "cmd": "Cmd",
        "working_dir": "WorkingDir",
        "volumes": "Volumes",
        "stop_signal": "StopSignal",
        "labels": "Labels",
    }
    document = {
        "os": config.pop("os", platform.os),
        "architecture": config.pop("architecture", platform.architecture),
        "config": {names[key]: value for key, value in config.items()},
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    }
    return json.dumps(document).encode()


def oci_archive(
    *layers: LayerBlob,
    name: str | None = None,
    prefix: str = "",
    spoil: Mapping[str, bytes] | None = None,
    without: Sequence[str] = (),
    **config: Any,
) -> bytes:
    """An OCI layout as a tar. `spoil` replaces or adds members, `without` leaves some out; both by name."""
    config_bytes = config_of(layers, **config)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config_bytes),
            "layers": [_descriptor(each.media_type, each.blob) for each in layers],
        }
    ).encode()
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    if name is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    for blob in (manifest, config_bytes, *(each.blob for each in layers)):
        members["blobs/" + digest_of(blob).replace(":", "/")] = blob
    members.update(spoil or {})
    return member_tar({prefix + key: data for key, data in members.items() if key not in without})


def docker_archive(
    *layers: LayerBlob, tags: Sequence[str] = (), shared_by_links: bool = False, **config: Any
) -> bytes:
    """A `docker save` archive in the old form; `shared_by_links`: each layer is a link to where its bytes are."""
    config_bytes = config_of(layers, **config)
    config_name = digest_of(config_bytes)[7:] + ".json"
    entries: list[Entry] = [file(config_name, config_bytes)]
    names = []
    for number, each in enumerate(layers):
        name = f"{number:064x}/layer.tar"
        names.append(name)
        if shared_by_links:
            entries.append(symlink(name, f"../{each.diff_id[7:]}.tar"))
            entries.append(file(f"{each.diff_id[7:]}.tar", each.blob))
        else:
            entries.append(file(name, each.blob))
    document = [{"Config": config_name, "RepoTags": list(tags) or None, "Layers": names}]
    entries.append(file("manifest.json", json.dumps(document).encode()))
    return tar_of(entries)


def member_tar(members: Mapping[str, bytes]) -> bytes:
    """A tar of plain files."""
    return tar_of([file(name, data) for name, data in members.items()])


async def stream(data: bytes, chunk_bytes: int = 64 << 10) -> AsyncIterator[bytes]:
    """`data` in pieces, as an upload brings it."""
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
