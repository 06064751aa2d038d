"""Plans come from a process that has read hostile bytes: names, digests and files are checked."""

from __future__ import annotations

import msgspec
import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import Descriptor, ImageConfig, digest_of
from cri_shim.image.planned import PlannedDocument, PlannedImage, PlannedLayer, checked
from cri_shim.image.reference import Reference, parse_reference

LAYER = PlannedLayer(digest_of(b"d"), Descriptor(digest=digest_of(b"b"), size=1), "m3")
IMAGE = PlannedImage(
    names=(parse_reference("a:1"),),
    manifest=PlannedDocument(digest_of(b"m"), 1, "m1"),
    manifest_type="",
    annotations={},
    config_document=PlannedDocument(digest_of(b"c"), 1, "m2"),
    config=ImageConfig(diff_ids=(LAYER.diff_id,)),
    layers=(LAYER,),
    by_digest=True,
)


def test_a_sound_plan_passes_and_survives_its_way_between_processes() -> None:
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(IMAGE), type=PlannedImage)
    assert checked(sent) == IMAGE


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": PlannedDocument("sha256:x", 1, "m1")},
        {"manifest": PlannedDocument(digest_of(b"m"), 1, "../../index.json")},
        {"config_document": PlannedDocument(digest_of(b"c"), 1, "")},
        {"layers": (PlannedLayer(LAYER.diff_id, LAYER.blob, "../x"),)},
        {"layers": (PlannedLayer(LAYER.diff_id, Descriptor(digest="../x", size=1), "m3"),)},
        {"layers": ()},
        {"layers": (LAYER,) * 501, "config": ImageConfig(diff_ids=(LAYER.diff_id,) * 501)},
        {"names": (Reference("docker.io", "library/../a", "1"),)},
        {"names": (Reference("docker.io", "a", "1"),)},
    ],
)
def test_an_invalid_plan_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadArchiveError, match="invalid plan"):
        checked(msgspec.structs.replace(IMAGE, **change))
