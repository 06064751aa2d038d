"""What the daemon does with a spooled archive: it trusts neither the files nor the names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.archive_feed import ArchiveFeed, open_spooled, put_document, with_names
from cri_shim.image.blobs import BlobStore
from cri_shim.image.manifest import ImageConfig, digest_of
from cri_shim.image.planned import PlannedDocument, PlannedImage
from cri_shim.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim.image.model import ImportProgress

IMAGE = PlannedImage(
    names=(),
    manifest=PlannedDocument(digest_of(b"m"), 1, "m1"),
    manifest_type="",
    annotations={},
    config_document=PlannedDocument(digest_of(b"c"), 1, "m2"),
    config=ImageConfig(),
    layers=(),
    by_digest=True,
)


def called(*names: str) -> PlannedImage:
    return msgspec.structs.replace(IMAGE, names=tuple(map(parse_reference, names)))


@pytest.fixture
def spool_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "spool").mkdir()
    fd = os.open(tmp_path / "spool", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_planted_link_is_not_opened(tmp_path: Path, spool_fd: int) -> None:
    (tmp_path / "spool/m1").symlink_to("/etc/passwd")
    (tmp_path / "spool/m2").mkdir()
    os.mkfifo(tmp_path / "spool/m3")
    with pytest.raises(OSError, match="symbolic link"):
        open_spooled(spool_fd, "m1")
    for name in ("m2", "m3", "../etc/passwd", ""):
        with pytest.raises(BadArchiveError):
            open_spooled(spool_fd, name)


def test_a_document_that_is_another_by_now_is_refused(tmp_path: Path, spool_fd: int) -> None:
    blobs = BlobStore(tmp_path)
    blobs.open()
    (tmp_path / "spool/m1").write_bytes(b"m")
    (tmp_path / "spool/m2").write_bytes(b"not c")
    put_document(IMAGE.manifest, spool_fd, blobs)
    assert blobs.read(IMAGE.manifest.digest, 10) == b"m"
    with pytest.raises(BadArchiveError, match="its bytes have"):
        put_document(IMAGE.config_document, spool_fd, blobs)
    assert IMAGE.config_document.digest not in blobs


def test_a_given_name_replaces_the_archive_s() -> None:
    planned = [called("r.example/a:1")]
    named = with_names(planned, parse_reference("b:2"))
    assert [str(name) for name in named[0].names] == ["docker.io/library/b:2"]
    assert with_names(planned, None) == planned
    with pytest.raises(BadArchiveError, match="an archive of one image"):
        with_names([*planned, *planned], parse_reference("b:2"))


@pytest.mark.parametrize("name", ["cri-shim.local/pause:1", "r.example/a@sha256:" + "0" * 64])
def test_an_archive_cannot_take_a_reserved_name_or_claim_a_digest(name: str) -> None:
    with pytest.raises(BadArchiveError):
        with_names([called(name)], None)


def test_progress_names_a_few_images_only() -> None:
    told: list[ImportProgress] = []
    unpacker: Any = None
    planned = [called(f"r.example/a:{number}") for number in range(500)]
    ArchiveFeed(unpacker, -1, planned, told.append)
    assert told[0].image == "r.example/a:0, r.example/a:1, r.example/a:2 and 497 more"
