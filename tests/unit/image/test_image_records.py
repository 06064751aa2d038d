"""Images' records: what was written comes back, and nothing that is torn, altered or without its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cri_shim.image import image_records
from cri_shim.image.blobs import BlobStore
from cri_shim.image.catalog import Described
from cri_shim.image.image_records import ImageRecords
from cri_shim.image.layers import LayerStore
from cri_shim.image.manifest import ImageConfig, digest_of

if TYPE_CHECKING:
    from pathlib import Path


class Place:
    """An image of no layers, with its record."""

    def __init__(self, base: Path) -> None:
        self.dir = base / "described"
        self.blobs = BlobStore(base)
        self.blobs.open()
        self.layers = LayerStore(base / "layers", base / "records")
        self.layers.open(base / "damaged")
        self.manifest = self.blobs.put(b"manifest")
        self.described = Described(
            image_id=self.blobs.put(b"config"),
            config=ImageConfig(env=("A=1",), os="linux"),
            chain=(),
            packed=(),
            documents_bytes=14,
            annotations={"a": "b"},
        )
        self.records = ImageRecords(self.dir)
        self.records.open(())
        self.records.write(self.manifest, self.described)
        [self.file] = self.dir.iterdir()

    def read(self) -> Described | None:
        return self.records.read(self.manifest, self.blobs, self.layers)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_was_written_comes_back(place: Place) -> None:
    assert place.read() == place.described


def test_a_record_that_is_torn_or_altered_counts_for_nothing(place: Place) -> None:
    whole = place.file.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole.replace(b"A=1", b"A=2")):
        place.file.write_bytes(damaged)
        assert place.read() is None
    body = b'{"image_id":"sha256:../../x"}'
    place.file.write_bytes(digest_of(body).encode() + body)
    assert place.read() is None
    place.file.unlink()
    assert place.read() is None


def test_a_record_without_its_documents_or_layers_counts_for_nothing(place: Place) -> None:
    missing = digest_of(b"nothing")
    for changed in (
        replace(place.described, chain=(missing,)),
        replace(place.described, image_id=missing),
    ):
        place.records.write(place.manifest, changed)
        assert place.read() is None


def test_damage_of_an_ordinary_document_is_found_and_a_large_one_is_not_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.blobs.path(place.described.image_id).write_bytes(b"c0nfig")
    assert place.read() is None
    monkeypatch.setattr(image_records, "_HASHED_BYTES", 5)
    assert place.read() == place.described


def test_records_of_images_that_are_gone_go(place: Place) -> None:
    place.records.open({place.manifest})
    assert place.file.exists()
    place.records.open(())
    assert not place.file.exists()
    place.records.write(place.manifest, place.described)
    place.records.remove([place.manifest, digest_of(b"nothing")])
    assert not place.file.exists()
