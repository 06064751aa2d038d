from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from cri_shim.cli.archive_stream import CHUNK_BYTES, ArchiveStream, import_messages
from cri_shim.errors import BadArchiveError, CriShimError, NotFoundError


def layout(directory: Path) -> Path:
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text("{}")
    (blobs / "aa").write_bytes(b"a" * 512)
    (blobs / "bb").write_bytes(os.urandom(3 * CHUNK_BYTES + 17))
    (blobs / "cc").write_bytes(b"")
    return directory


def test_an_archive_is_sent_as_it_is_in_small_chunks(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(os.urandom(2 * CHUNK_BYTES + 5))
    archive = ArchiveStream(path)
    chunks = list(archive.chunks())
    assert b"".join(chunks) == path.read_bytes()
    assert archive.size_bytes == path.stat().st_size
    assert max(map(len, chunks)) <= CHUNK_BYTES


def test_a_layout_is_sent_as_a_tar_archive_of_its_files(tmp_path: Path) -> None:
    directory = layout(tmp_path / "layout")
    archive = ArchiveStream(directory)
    data = b"".join(archive.chunks())
    assert len(data) == archive.size_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert list(members)[:2] == ["index.json", "oci-layout"]
        assert set(members) == {
            *("oci-layout", "index.json"),
            *("blobs/sha256/aa", "blobs/sha256/bb", "blobs/sha256/cc"),
        }
        big = tar.extractfile("blobs/sha256/bb")
        assert big is not None
        assert big.read() == (directory / "blobs/sha256/bb").read_bytes()


def test_links_in_a_layout_are_not_followed(tmp_path: Path) -> None:
    directory = layout(tmp_path / "layout")
    (tmp_path / "secret").write_text("secret")
    (directory / "blobs" / "link").symlink_to(tmp_path / "secret")
    (directory / "blobs" / "dir").symlink_to(tmp_path)
    assert b"secret" not in b"".join(ArchiveStream(directory).chunks())


def test_a_directory_that_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchiveError, match="without the file oci-layout"):
        ArchiveStream(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.tar"):
        ArchiveStream(tmp_path / "none.tar")


@pytest.mark.parametrize("change", [b"longer than before" * 100, b""])
def test_a_layout_that_changes_while_it_is_sent_is_noticed(tmp_path: Path, change: bytes) -> None:
    directory = layout(tmp_path / "layout")
    archive = ArchiveStream(directory)
    (directory / "blobs/sha256/aa").write_bytes(change)
    with pytest.raises(BadArchiveError, match="aa changed"):
        list(archive.chunks())


def test_standard_input_is_sent_without_a_size() -> None:
    archive = ArchiveStream(Path("-"), stdin=io.BytesIO(b"abc"))
    assert (archive.size_bytes, list(archive.chunks())) == (0, [b"abc"])


def test_an_import_is_the_options_and_then_the_chunks(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(b"x" * (CHUNK_BYTES + 1))
    first, *others = import_messages(ArchiveStream(path), "a:1")
    assert (first.options.name, first.options.archive_bytes) == ("a:1", CHUNK_BYTES + 1)
    assert [len(message.chunk) for message in others] == [CHUNK_BYTES, 1]


def test_a_file_that_goes_away_is_an_error_of_the_import(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(b"x")
    messages = import_messages(ArchiveStream(path), "")
    next(messages)
    path.unlink()
    with pytest.raises(CriShimError, match="cannot read the image file: "):
        next(messages)
