"""Documents lie in files, and are read by somebody else, shut up apart from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import Platform, digest_of
from cri_shim.image.planned import PlannedDocument
from cri_shim.image.unpack.document_reader import DocumentReader
from tests.fakes.unpacker import FakeUnpacker
from tests.images import config_of, file, layer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio
LAYER = layer(file("a"))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[DocumentReader]:
    fds = []
    for name in ("spool", "apart"):
        (tmp_path / name).mkdir()
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    yield DocumentReader(FakeUnpacker(), Platform(os="linux", architecture="amd64"), *fds)
    for fd in fds:
        os.close(fd)


async def test_a_document_is_kept_under_a_name_that_no_layer_has(
    reader: DocumentReader, tmp_path: Path
) -> None:
    data = config_of([LAYER], architecture="amd64", user="5")
    document = await reader.keep(data)
    digest = digest_of(data)
    assert document == PlannedDocument(digest, len(data), "d" + digest.removeprefix("sha256:"))
    assert (tmp_path / "spool" / document.file).read_bytes() == data
    assert (await reader.config(document, "config")).user == "5"


async def test_what_is_wrong_with_a_document_is_told(reader: DocumentReader) -> None:
    with pytest.raises(BadArchiveError, match=r"^it: "):
        await reader.manifest(await reader.keep(b"{}"), "it")
    other = await reader.keep(b'{"rootfs":{"diff_ids":["md5:1"]}}')
    with pytest.raises(BadArchiveError, match="diff ID"):
        await reader.config(other, "it")
