"""Reading tar: names stay the bytes they are, attributes whole, damage refused."""

from __future__ import annotations

import io
import locale
import os
import subprocess
import tarfile
import tempfile
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.unpack import tar
from cri_shim.image.unpack.protocol import InputError
from cri_shim.image.unpack.tar import TarReader, show
from tests.images import directory, file, hardlink, member_tar, symlink, tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.image.unpack.tar import Entry


@pytest.fixture(autouse=True)
def c_locale() -> Iterator[None]:
    before = locale.setlocale(locale.LC_CTYPE)
    tar.prepare()
    yield
    locale.setlocale(locale.LC_CTYPE, before)


def read(data: bytes) -> list[Entry]:
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        return list(TarReader(source.fileno()).entries())


def test_composed_and_decomposed_names_stay_two_names() -> None:
    names = ["caf\u00e9", "cafe\u0301"]
    assert [e.name for e in read(tar_of([file(n) for n in names]))] == [n.encode() for n in names]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_no_utf8_stay_what_they_are(form: int) -> None:
    raw = b"bad\xff\xfe/" + b"long\xe9" * 60
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogateescape") as made:
        made.addfile(tarfile.TarInfo(os.fsdecode(raw)))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, os.fsdecode(raw)
        made.addfile(link)
    first, second = read(stream.getvalue())
    assert first.name == raw
    assert second.symlink == raw


def test_a_header_gives_everything() -> None:
    entry, link, hard = read(
        tar_of(
            [
                file("a", b"data", 0o4755, uid=3_000_000, gid=8, mtime=-1.5),
                symlink("s", "a"),
                hardlink("h", "a"),
            ]
        )
    )
    assert (entry.mode, entry.uid, entry.gid, entry.size) == (0o4755, 3_000_000, 8, 4)
    assert entry.mtime_ns == -1_500_000_000
    assert (link.symlink, hard.hardlink) == (b"a", b"a")


def test_attributes_keep_every_byte() -> None:
    value = bytes(range(256))
    data = tar_of([file("a", xattrs={"user.bytes": value, "user.empty": b""}), file("b")])
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        reader = TarReader(source.fileno())
        found = [sorted(reader.xattrs()) for _ in reader.entries()]
    assert found == [[(b"user.bytes", value), (b"user.empty", b"")], []]


def test_an_empty_tar_has_no_entries() -> None:
    assert read(bytes(1024)) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", os.urandom(2048), member_tar({"a": b"x" * 4000})[:1500]],
    ids=["nothing", "text", "noise", "cut short"],
)
def test_what_is_no_whole_tar_is_refused(data: bytes) -> None:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink:
        source.write(data)
        source.seek(0)
        with pytest.raises(InputError):  # noqa: PT012 - either step may notice
            reader = TarReader(source.fileno())
            for entry in reader.entries():
                reader.write_to(sink.fileno(), entry.name)


def test_a_damaged_header_is_refused() -> None:
    data = bytearray(tar_of([directory("d"), file("a", b"x")]))
    data[512 + 100] ^= 0xFF
    with pytest.raises(InputError):
        read(bytes(data))


def test_holes_stay_holes() -> None:
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "sparse")
        with open(path, "wb") as sparse:
            sparse.seek(1 << 20)
            sparse.write(b"end")
            sparse.truncate(8 << 20)
        command = ["tar", "-C", place, "--sparse", "-cf", "-", "sparse"]
        archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink:
        source.write(archive)
        source.seek(0)
        reader = TarReader(source.fileno())
        entry = next(reader.entries())
        reader.write_to(sink.fileno(), entry.name)
        assert entry.sparse
        assert entry.size == 8 << 20
        assert os.fstat(sink.fileno()).st_blocks * 512 < 1 << 20
        assert os.pread(sink.fileno(), 3, 1 << 20) == b"end"


def test_a_name_in_a_message_is_short_and_on_one_line() -> None:
    assert show(b"a\nb\xff\x1b[0m") == "'a\\nb\\udcff\\x1b[0m'"
    assert len(show(b"x" * 5000)) < 250
