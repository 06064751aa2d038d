"""The images that the pull benchmark makes: this machine's programs, many files, many layers, and a large one.

They are the same on every run on one machine: the random bytes have a fixed seed.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from isal import igzip

from cri_shim.image.manifest import digest_of
from tests import images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.registry import DockerRegistry

USERLAND_DIRS = ("/usr/lib", "/usr/bin", "/usr/sbin", "/usr/share")
USERLAND_LAYERS = 7
USERLAND_LAYER_BYTES = 40 << 20
SMALL_FILES = 20_000
MANY_LAYERS = 61
LARGE_LAYERS = 8
LARGE_LAYER_BYTES = 128 << 20
MEDIUM_LAYERS = 4
MEDIUM_LAYER_BYTES = 16 << 20
_MIX_BYTES = 1 << 20
_GZIP_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def push_userland(registry: DockerRegistry, repository: str, tag: str, compression: str) -> None:
    """Some 280 MB of this machine's programs, libraries and documents, in seven layers."""
    files = _files_of(USERLAND_DIRS)
    layers = [_tree_layer(files, compression) for _ in range(USERLAND_LAYERS)]
    registry.push(repository, tag, *layers)


def push_small_files(registry: DockerRegistry, repository: str, tag: str) -> None:
    """20,000 files of some hundred bytes."""
    entries = [images.directory(f"d{number}") for number in range(200)]
    entries += [
        images.file(f"d{number % 200}/f{number}", b"%08d\n" % number * (number % 64))
        for number in range(SMALL_FILES)
    ]
    registry.push(repository, tag, images.layer(*entries, compression="gzip"))


def push_many_layers(registry: DockerRegistry, repository: str, tag: str) -> None:
    """61 layers of next to nothing."""
    layers = [
        images.layer(images.file(f"layer-{number}", b"%d\n" % number * 500), compression="gzip")
        for number in range(MANY_LAYERS)
    ]
    registry.push(repository, tag, *layers)


def push_large(registry: DockerRegistry, repository: str, tag: str) -> None:
    """1 GiB in eight layers, half of it incompressible."""
    layers = [_mixed_layer(number, LARGE_LAYER_BYTES) for number in range(LARGE_LAYERS)]
    registry.push(repository, tag, *layers)


def push_medium(registry: DockerRegistry, repository: str, tag: str, *, seed: int) -> None:
    """64 MiB in four layers of the same kind; images of different seeds have no layer in common."""
    first = LARGE_LAYERS + seed * MEDIUM_LAYERS
    layers = [
        _mixed_layer(number, MEDIUM_LAYER_BYTES) for number in range(first, first + MEDIUM_LAYERS)
    ]
    registry.push(repository, tag, *layers)


def _mixed_layer(number: int, layer_bytes: int) -> images.LayerBlob:
    """Files of 1 to 16 MiB, turn by turn noise and text."""
    source = random.Random(number)
    text = b"".join(b"%d %d\n" % (source.getrandbits(20), line) for line in range(100_000))
    entries = []
    left = layer_bytes
    for count in itertools.count():
        size = min(left, _MIX_BYTES * source.randint(1, 16))
        data = source.randbytes(size) if count % 2 else (text * (size // len(text) + 1))[:size]
        entries.append(images.file(f"layer-{number}/file-{count}", data))
        left -= size
        if not left:
            break
    return _packed(images.tar_of(entries), "gzip")


def _files_of(directories: tuple[str, ...]) -> Iterator[Path]:
    for directory in directories:
        for parent, below, names in os.walk(directory):
            below.sort()
            for name in sorted(names):
                yield Path(parent, name)


def _tree_layer(files: Iterator[Path], compression: str) -> images.LayerBlob:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            kind = path.lstat().st_mode
            if stat.S_ISREG(kind) or stat.S_ISLNK(kind):
                tar.add(path, recursive=False)
            if stream.tell() > USERLAND_LAYER_BYTES:
                break
    plain = stream.getvalue()
    return _packed(plain, compression)


def _packed(plain: bytes, compression: str) -> images.LayerBlob:
    if compression != "gzip":
        return images.layer(tar=plain, compression=compression)
    # Several times as fast as zlib, and as fast to inflate.
    packed = igzip.compress(plain, 2, mtime=0)
    return images.LayerBlob(packed, digest_of(plain), _GZIP_TYPE)
