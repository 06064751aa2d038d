"""Built-in images: reproducible, complete, and a clear word where their program is missing."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import CriShimError
from cri_shim.image import builtin

if TYPE_CHECKING:
    from pathlib import Path

STATIC = b"\x7fELF\x02\x01\x01" + bytes(57)
DYNAMIC = (
    b"\x7fELF\x02\x01\x01"
    + bytes(25)
    + (64).to_bytes(8, "little")
    + bytes(14)
    + (56).to_bytes(2, "little")
    + (1).to_bytes(2, "little")
    + bytes(6)
    + (3).to_bytes(4, "little")
    + bytes(52)
)


def documents(archive: bytes) -> tuple[dict[str, Any], tarfile.TarFile]:
    """The image configuration, and the layer."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        blobs = {member.name: _read(tar, member) for member in tar}
    entry = json.loads(blobs["index.json"])["manifests"][0]
    manifest = json.loads(blobs["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(blobs["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    layer = blobs["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")]
    return config, tarfile.open(fileobj=io.BytesIO(layer))


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()


def pause() -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in builtin.pause_archive()])

    return asyncio.run(collect())


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CATATONIT", "BUSYBOX"):
        (tmp_path / name).write_bytes(STATIC)
        monkeypatch.setattr(builtin, name, tmp_path / name)
    return tmp_path


@pytest.mark.usefixtures("programs")
def test_the_same_program_gives_the_same_archive() -> None:
    assert pause() == pause()
    assert builtin.busybox_archive() == builtin.busybox_archive()


@pytest.mark.usefixtures("programs")
def test_the_pause_image_has_every_directory_that_is_mounted_over() -> None:
    config, layer = documents(pause())
    assert config["config"]["Entrypoint"] == ["/catatonit", "-P"]
    with layer:
        names = {member.name: member for member in layer}
    assert {"catatonit", "dev", "etc", "proc", "sys", "run", "tmp"} <= names.keys()
    assert names["catatonit"].mode == 0o755
    assert {member.mtime for member in names.values()} == {0}


@pytest.mark.usefixtures("programs")
def test_the_busybox_image_has_its_applets_as_one_inode() -> None:
    config, layer = documents(builtin.busybox_archive("example.org/bb:1"))
    assert config["config"]["Cmd"] == ["sh"]
    with layer:
        members = {member.name: member for member in layer}
    assert members["bin/sh"].linkname == "bin/busybox"
    assert members["bin/sh"].islnk()
    assert list(members).index("bin/busybox") < list(members).index("bin/sh")


def test_a_missing_program_names_its_package(programs: Path) -> None:
    (programs / "CATATONIT").unlink()
    (programs / "BUSYBOX").unlink()
    with pytest.raises(CriShimError, match="install the package catatonit"):
        pause()
    with pytest.raises(CriShimError, match="install the package busybox-static"):
        builtin.busybox_archive()


def test_a_program_that_needs_a_linker_is_refused(programs: Path) -> None:
    (programs / "BUSYBOX").write_bytes(DYNAMIC)
    with pytest.raises(CriShimError, match="not a static program"):
        builtin.busybox_archive()


def test_static_and_dynamic_programs_are_told_apart() -> None:
    assert builtin.is_dynamic(DYNAMIC)
    assert not builtin.is_dynamic(STATIC)
    assert not builtin.is_dynamic(b"#!/bin/sh\n")
