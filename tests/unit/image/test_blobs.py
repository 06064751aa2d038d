"""Blobs: kept by digest, checked when read, swept when nothing refers to them."""

from __future__ import annotations

import os
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CorruptStateError
from cri_shim.image.blobs import BlobStore
from cri_shim.image.manifest import digest_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path)
    store.open()
    return store


def test_a_blob_comes_back_by_its_digest(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put(b"data")
    assert digest == digest_of(b"data")
    assert blobs.read(digest, 10) == b"data"
    again = BlobStore(tmp_path)
    again.open()
    assert digest in again
    assert (again.used_bytes, again.inodes) == (4096, 1)


def test_a_changed_blob_is_noticed(blobs: BlobStore) -> None:
    digest = blobs.put(b"data")
    blobs.path(digest).write_bytes(b"date")
    with pytest.raises(CorruptStateError, match="digest"):
        blobs.read(digest, 10)
    assert digest not in blobs
    assert blobs.read(blobs.put(b"data"), 10) == b"data"
    blobs.path(digest).unlink()
    with pytest.raises(CorruptStateError):
        blobs.read(digest, 10)


def test_a_spooled_file_is_taken_in_but_nothing_else(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "m1").write_bytes(b"data")
    (tmp_path / "m2").symlink_to("/etc/passwd")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        blobs.adopt(fd, "m1", digest_of(b"data"))
        with pytest.raises(OSError, match="not a regular file"):
            blobs.adopt(fd, "m2", digest_of(b"other"))
        blobs.adopt(fd, "m3", digest_of(b"data"))  # known already: not even looked at
    finally:
        os.close(fd)
    assert blobs.read(digest_of(b"data"), 10) == b"data"
    assert digest_of(b"other") not in blobs


def test_a_sweep_keeps_what_is_referred_to(blobs: BlobStore) -> None:
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone")
    assert blobs.sweep({kept}) == 1
    assert kept in blobs
    assert gone not in blobs
    assert not blobs.path(gone).exists()


def test_a_write_that_was_cut_short_is_removed_at_start(blobs: BlobStore, tmp_path: Path) -> None:
    left = blobs.path(digest_of(b"x")).with_suffix(".1-0.tmp")
    left.write_bytes(b"half")
    BlobStore(tmp_path).open()
    assert not left.exists()


def test_blobs_are_counted_while_another_thread_stores_one(blobs: BlobStore) -> None:
    here = [blobs.put(data) for data in (b"one", b"two")]

    class StoresMeanwhile(list[str]):
        """As a thread does that is given its turn in the middle of the walk."""

        def __contains__(self, digest: object) -> bool:
            thread = Thread(target=blobs.put, args=(b"new %r" % digest,))
            thread.start()
            thread.join()
            return False

    assert blobs.unneeded(StoresMeanwhile()) == here
    assert (blobs.inodes, blobs.used_bytes) == (4, 4 * 4096)
