"""Images that are valid and odd, from a seed: layers with entries in every order, documents as many writers write them.

image = odd_image(17)
await store.import_archive(stream(image.archive))
assert seen(rootfs) == image.tree.facts()

Few names and many entries, so that entries meet: whiteouts before and behind what they hide, links where directories
were, paths through links, parents that nobody describes, layers without an entry or without a byte.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import tarfile
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import zstandard

from cri_shim.image.manifest import digest_of
from cri_shim.image.platforms import platform_of
from tests import images
from tests.oci_layers import InvalidEntryError, Tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.images import Entry

_NAMES = ("a", "b", "c", "a b", "\u00e9", "n" * 120)
_WEIGHTS = (9, 9, 6, 1, 1, 1)
_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2711, 0o000, 0o1777)
_TIMES = (0, 1_000_000_000, 1_600_000_000.5, 4_000_000_000, -100)
_OWNERS = (0, 0, 1000, 70_000, 4_000_000_000)
_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."


@dataclass(frozen=True)
class OddImage:
    """An image, and what its root file system must be."""

    name: str
    archive: bytes
    """An OCI layout in a tar, with its name."""
    tree: Tree
    chain_id: str
    """Of its topmost layer; empty without layers."""
    listing: tuple[str, ...]
    """Its layers' entries, for a message."""


def odd_image(seed: int) -> OddImage:
    """The image of that number; of every second one containerd should have the same root file system."""
    rng = random.Random(seed)
    same = seed % 2 == 0
    tree = Tree()
    blobs, listing = [], []
    diff_ids: list[str] = []
    for number in range(rng.choice((0, 1, 2, 2, 3, 3, 4))):
        entries: list[Entry] = []
        with tree.layer():
            for _ in range(rng.choice((0, 3, 6, 12, 20))):
                entry = _entry(rng)
                attempt = copy.deepcopy(tree)
                try:
                    attempt.apply(entry)
                except InvalidEntryError:
                    continue
                attempt.check_times()
                if same and attempt.departures:
                    continue
                tree.apply(entry)
                entries.append(entry)
        tar = _tar(rng, entries)
        blobs.append(_packed(rng, tar))
        diff_ids.append(digest_of(tar))
        listing += [f"{number}: {_told(entry)}" for entry in entries]
    name = f"odd.example/fuzz:{seed}"
    archive = _archive(rng, name, blobs, diff_ids)
    chain_id = ""
    for diff_id in diff_ids:
        chain_id = digest_of(f"{chain_id} {diff_id}".encode()) if chain_id else diff_id
    return OddImage(name, archive, tree, chain_id, tuple(listing))


# Layers


def _path(rng: random.Random) -> str:
    return "/".join(rng.choices(_NAMES, _WEIGHTS, k=rng.choice((1, 1, 2, 2, 3))))


def _spelled(rng: random.Random, path: str) -> str:
    match rng.randrange(8):
        case 0:
            return f"./{path}"
        case 1:
            return f"/{path}"
        case 2:
            return path.replace("/", "//")
        case 3:
            return f"z/../{path}"
    return path


def _entry(rng: random.Random) -> Entry:
    path = _path(rng)
    owner = {
        "uid": rng.choice(_OWNERS),
        "gid": rng.choice(_OWNERS),
        "mtime": rng.choice(_TIMES),
    }
    xattrs = {"user.odd": rng.randbytes(4)} if rng.random() < 0.1 else {}
    kinds: list[tuple[int, Callable[[], Entry]]] = [
        (6, lambda: images.directory(path, rng.choice(_MODES), xattrs=xattrs, **owner)),
        (6, lambda: _file(rng, path, xattrs, owner)),
        (4, lambda: images.symlink(path, _target(rng), **owner)),
        (2, lambda: images.hardlink(path, _path(rng), rng.choice(_MODES), **owner)),
        (5, lambda: images.whiteout(path)),
        (2, lambda: images.opaque(path)),
        (1, lambda: images.fifo(path)),
        (1, lambda: images.device(path, 1, 3, 0o666)),
        (1, lambda: images.device(path, 7, 0, block=True)),
        (1, lambda: images.directory(".", 0o700)),
        (1, lambda: images.file(".wh..wh.plnk/1.2", b"aufs")),
    ]
    [make] = rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])
    header, data = make()
    header.name = _spelled(rng, header.name)
    return header, data


def _file(rng: random.Random, path: str, xattrs: dict[str, bytes], owner: dict[str, Any]) -> Entry:
    data = rng.randbytes(rng.choice((0, 1, 511, 512, 5000)))
    return images.file(path, data, rng.choice(_MODES), xattrs=xattrs, **owner)


def _target(rng: random.Random) -> str:
    return rng.choice(("", "/", "../", "./", "../../../")) + _path(rng)


def _told(entry: Entry) -> str:
    header, data = entry
    kind = header.type.decode()
    link = f" -> {header.linkname}" if header.linkname else ""
    return f"{kind} {header.name!r}{link} {header.mode:o} {len(data)} bytes"


def _tar(rng: random.Random, entries: list[Entry]) -> bytes:
    if not entries and rng.random() < 0.5:
        return b""  # not even the two blocks of an end
    small = all(
        header.mtime == int(header.mtime) and not header.pax_headers for header, _ in entries
    )
    # GNU's form has whole seconds and no attributes.
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)) if small else tarfile.PAX_FORMAT
    stream = BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=form, errors="surrogateescape", encoding="utf-8"
    ) as tar:
        for header, data in entries:
            tar.addfile(header, BytesIO(data))
    made = stream.getvalue()
    match rng.randrange(6):
        case 0:
            return made + bytes(rng.choice((512, 10_240)))
        case 1:
            return made.rstrip(b"\0") + bytes(-len(made.rstrip(b"\0")) % 512 + 1024)
    return made


def _packed(rng: random.Random, tar: bytes) -> tuple[str, bytes]:
    docker = rng.random() < 0.3
    base = f"{_DOCKER}image.rootfs.diff.tar" if docker else f"{_OCI}layer.v1.tar"
    match rng.choice(("none", "gzip", "gzip", "zstd")):
        case "gzip":
            half = len(tar) // 2
            if rng.random() < 0.2:  # two members are one stream
                data = gzip.compress(tar[:half], mtime=0) + gzip.compress(tar[half:], mtime=0)
            else:
                data = gzip.compress(tar, mtime=0)
            return (f"{base}.gzip" if docker else f"{base}+gzip"), data
        case "zstd":
            return f"{_OCI}layer.v1.tar+zstd", zstandard.ZstdCompressor().compress(tar)
    return base, tar


# Documents


def _archive(
    rng: random.Random, name: str, blobs: list[tuple[str, bytes]], diff_ids: list[str]
) -> bytes:
    members: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    platform = platform_of(os.uname().machine)
    config = {
        "created": rng.choice((None, "2020-01-02T03:04:05Z", "2020-01-02T03:04:05.678+01:00")),
        "author": None,
        "os": platform.os,
        "architecture": platform.architecture,
        "config": rng.choice(
            (
                None,
                {},
                {"Env": None, "Cmd": None, "Labels": None, "Volumes": None, "User": None},
                {"Env": ["A=1"], "Labels": {"a": None}, "Volumes": {"/v": None}, "Odd": [{}]},
                {"Entrypoint": None, "WorkingDir": None, "StopSignal": None, "ExposedPorts": None},
            )
        ),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": rng.choice((None, [], [{"empty_layer": True}])),
    }
    layers = [_added(rng, members, media_type, data) for media_type, data in blobs]
    for layer in layers:
        layer |= rng.choice(
            (
                {},
                {"urls": None, "annotations": None, "data": None, "platform": None},
                {"annotations": {"a": None}, "unknown": {"x": [1]}},
            )
        )
    docker = rng.random() < 0.3
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_DOCKER}distribution.manifest.v2+json"
        if docker
        else f"{_OCI}manifest.v1+json",
        "config": _added(
            rng,
            members,
            f"{_DOCKER}container.image.v1+json" if docker else f"{_OCI}config.v1+json",
            json.dumps(_thinned(rng, config)).encode(),
        ),
        "layers": layers,
        "annotations": rng.choice((None, {}, {"a": "b", "c": None})),
        "subject": None,
        "artifactType": None,
    }
    if not layers:
        manifest["layers"] = rng.choice(([], None))
    if not docker and rng.random() < 0.3:
        manifest["mediaType"] = None
    entry = _added(
        rng,
        members,
        f"{_DOCKER}distribution.manifest.v2+json" if docker else f"{_OCI}manifest.v1+json",
        json.dumps(_thinned(rng, manifest)).encode(),
    )
    entry["platform"] = rng.choice(
        (
            None,
            {"os": platform.os, "architecture": platform.architecture},
            {
                "os": platform.os,
                "architecture": platform.architecture,
                "variant": None,
                "os.features": None,
            },
        )
    )
    entry = _thinned(rng, entry)
    if rng.random() < 0.3:
        inner = {"schemaVersion": 2, "mediaType": f"{_OCI}index.v1+json", "manifests": [entry]}
        entry = _added(rng, members, f"{_OCI}index.v1+json", json.dumps(inner).encode())
    entry["annotations"] = {"io.containerd.image.name": name, "x": None}
    index = {"schemaVersion": 2, "mediaType": None, "manifests": [entry], "annotations": None}
    members["index.json"] = json.dumps(_thinned(rng, index)).encode()
    return images.member_tar(members)


def _thinned(rng: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """Each null is there or isn't: that makes no difference."""
    return {
        key: value for key, value in document.items() if value is not None or rng.random() < 0.5
    }


def _added(
    rng: random.Random, members: dict[str, bytes], media_type: str, data: bytes
) -> dict[str, Any]:
    digest = digest_of(data)
    members["blobs/" + digest.replace(":", "/")] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
