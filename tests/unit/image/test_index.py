"""The image index: an OCI layout's, whole or refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import CorruptStateError
from cri_shim.image.index import ImageIndex, load_index, save_index, set_aside

if TYPE_CHECKING:
    from pathlib import Path

A, B = ("sha256:" + letter * 64 for letter in "ab")
TYPE = "application/vnd.oci.image.manifest.v1+json"


def test_an_index_comes_back_as_it_was(tmp_path: Path) -> None:
    index = ImageIndex({A: (TYPE, 10), B: (TYPE, 20)}, {"r.example/a:1": A, "r.example/a:2": A})
    save_index(tmp_path, index)
    found = load_index(tmp_path)
    assert found == index
    assert found.names_of(A) == ["r.example/a:1", "r.example/a:2"]
    assert found.names_of(B) == []


def test_the_files_are_an_oci_layout(tmp_path: Path) -> None:
    save_index(tmp_path, ImageIndex({A: (TYPE, 10)}, {"r.example/a:1": A}))
    assert json.loads((tmp_path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((tmp_path / "index.json").read_bytes()) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": TYPE,
                "digest": A,
                "size": 10,
                "annotations": {"org.opencontainers.image.ref.name": "r.example/a:1"},
            }
        ],
    }


def test_without_a_file_there_are_no_images(tmp_path: Path) -> None:
    assert load_index(tmp_path) == ImageIndex()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"schemaVersion":2,"manifests":[',
        b'{"schemaVersion":2,"manifests":[{"digest":"md5:1","size":1}]}',
    ],
)
def test_a_damaged_index_is_refused_and_can_be_set_aside(tmp_path: Path, data: bytes) -> None:
    for _ in range(2):
        (tmp_path / "index.json").write_bytes(data)
        with pytest.raises(CorruptStateError, match=r"index\.json"):
            load_index(tmp_path)
        set_aside(tmp_path, tmp_path / "damaged")
    assert len(list((tmp_path / "damaged").iterdir())) == 2
    assert load_index(tmp_path) == ImageIndex()


def test_a_forgotten_manifest_takes_its_names_along() -> None:
    index = ImageIndex({A: (TYPE, 1), B: (TYPE, 1)}, {"x/a:1": A, "x/b:1": B})
    changed = index.copy()
    changed.forget(A)
    assert (changed.manifests, changed.names) == ({B: (TYPE, 1)}, {"x/b:1": B})
    assert index.names == {"x/a:1": A, "x/b:1": B}
