"""Looking images up: by name, by digest, by ID, by the beginning of an ID."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.errors import BadImageReferenceError
from cri_shim.image.catalog import Catalog, Described
from cri_shim.image.index import ImageIndex
from cri_shim.image.manifest import ImageConfig
from cri_shim.image.pins import Pins

if TYPE_CHECKING:
    from cri_shim.image.layers import LayerStore

ONE, TWO = "sha256:" + "abc1" * 16, "sha256:" + "abd2" * 16
MANIFEST_1, MANIFEST_2, MANIFEST_3 = (f"sha256:{number:064x}" for number in (1, 2, 3))
BUSYBOX = "docker.io/library/busybox"


@dataclass
class KnownLayer:
    disk_bytes: int


class KnownLayers:
    """Just the look-up of layers."""

    def get(self, chain_id: str) -> KnownLayer:
        return KnownLayer(len(chain_id))


def described(image_id: str) -> Described:
    return Described(image_id, ImageConfig(), ("c" * 10, "c" * 5), (), 7, {"who": "me"})


@pytest.fixture
def catalog() -> Catalog:
    index = ImageIndex(
        dict.fromkeys((MANIFEST_1, MANIFEST_2, MANIFEST_3), ("", 1)),
        {
            f"{BUSYBOX}:1": MANIFEST_1,
            f"{BUSYBOX}@{MANIFEST_1}": MANIFEST_1,
            "r.example/abc1:latest": MANIFEST_2,
            "r.example/zstd:1": MANIFEST_3,
        },
    )
    facts = {MANIFEST_1: described(ONE), MANIFEST_2: described(TWO), MANIFEST_3: described(ONE)}
    layers = cast("LayerStore", KnownLayers())
    return Catalog(index, facts, layers, Pins(["r.example/abc1"]))


def test_manifests_of_one_configuration_are_one_image(catalog: Catalog) -> None:
    first, second = catalog.images()
    assert (first.id, second.id) == (ONE, TWO)
    assert first.repo_tags == (f"{BUSYBOX}:1", "r.example/zstd:1")
    assert first.repo_digests == (f"{BUSYBOX}@{MANIFEST_1}",)
    assert first.manifest_digests == (MANIFEST_1, MANIFEST_3)
    assert first.size == 15 + 7
    assert first.annotations == {"who": "me"}
    assert (first.pinned, second.pinned) == (False, True)


@pytest.mark.parametrize(
    ("text", "image_id"),
    [
        ("busybox:1", ONE),
        (f"busybox@{MANIFEST_1}", ONE),
        (f"busybox:other@{MANIFEST_1}", ONE),
        (f"{BUSYBOX}:1", ONE),
        ("r.example/abc1", TWO),
        (ONE, ONE),
        (ONE[7:], ONE),
        ("abc", ONE),
        ("sha256:abd", TWO),
        ("ab", None),
        ("busybox", None),
        ("nosuch:1", None),
        ("sha256:" + "f" * 64, None),
        ("f" * 64, None),
        (f"busybox@{MANIFEST_2}", None),
    ],
)
def test_an_image_is_found_by(catalog: Catalog, text: str, image_id: str | None) -> None:
    found = catalog.find(text)
    assert (None if found is None else found.id) == image_id


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "sha256:"])
def test_what_can_name_no_image_is_refused(catalog: Catalog, text: str) -> None:
    with pytest.raises(BadImageReferenceError):
        catalog.find(text)
