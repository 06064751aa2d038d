from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cri_shim.image.integrity.report import Damage, Finding
from cri_shim.rpc.runtime_service import json_text
from cri_shim.rpc.translate_images import (
    MAX_LISTED_ANNOTATIONS_BYTES,
    MAX_UID,
    MAX_USER_CHARS,
    damage_entry,
    image_entry,
    image_info,
    listed_image,
)
from tests.unit.rpc.fakes import make_image


def test_an_entry_tells_names_size_and_pin() -> None:
    image = make_image(1, "docker.io/library/a:1", digests=["docker.io/library/a@sha256:9"])
    entry = image_entry(image)
    assert entry.id == image.id == entry.spec.image
    assert list(entry.repo_tags) == ["docker.io/library/a:1"]
    assert list(entry.repo_digests) == ["docker.io/library/a@sha256:9"]
    assert (entry.size, entry.pinned) == (1000, False)
    assert image_entry(make_image(pinned=True)).pinned


def test_an_entry_has_the_annotations_that_its_maker_gave_the_image() -> None:
    annotations = {"org.opencontainers.image.source": "https://r.example"}
    entry = image_entry(replace(make_image(), annotations=annotations))
    assert dict(entry.spec.annotations) == annotations
    assert not entry.spec.runtime_handler


def test_a_list_has_of_an_image_what_fits_ten_thousand_times() -> None:
    """A kubelet takes lists of 16 MiB: with all that an image may have, a thousand images would hide all others."""
    annotations = {"org.example/short": "1"} | {f"org.example/{n}": "x" * 200 for n in range(70)}
    image = replace(make_image(user="u" * 100_000), annotations=annotations)
    listed = listed_image(image)
    assert dict(image_entry(image).spec.annotations) == annotations
    assert 0 < len(listed.spec.annotations) < len(annotations)
    assert listed.spec.annotations["org.example/short"] == "1"
    assert listed.ByteSize() < MAX_LISTED_ANNOTATIONS_BYTES + MAX_USER_CHARS + 300
    small = make_image()
    assert listed_image(small) == image_entry(small)


def test_a_damage_says_what_became_of_it() -> None:
    finding = Finding(Damage.BLOB, "sha256:1", ("a:1",), "its bytes have another digest")
    entry = damage_entry(finding, reason="no registry has it")
    assert (entry.kind, entry.object, list(entry.images)) == ("blob", "sha256:1", ["a:1"])
    assert (entry.detail, entry.repaired) == ("its bytes have another digest", False)
    assert entry.reason == "no registry has it"
    assert damage_entry(finding, repaired=True).repaired


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("1000", 1000, ""),
        ("1000:2000", 1000, ""),
        ("www-data:www", None, "www-data"),
        (str(MAX_UID), MAX_UID, ""),
        # What the kernel can't take for a user must not be shown as one, nor wrap round to root.
        (str(MAX_UID + 1), None, str(MAX_UID + 1)),
        (str(1 << 32), None, str(1 << 32)),
        ("9" * 5000, None, "9" * MAX_USER_CHARS),
        ("+0", None, "+0"),
        ("\u0660", None, "\u0660"),
        ("-1", None, "-1"),
    ],
)
def test_the_user_is_a_number_or_a_name(user: str, uid: int | None, name: str) -> None:
    entry = image_entry(make_image(user=user))
    assert entry.HasField("uid") is (uid is not None)
    assert (entry.uid.value, entry.username) == (uid or 0, name)


def test_the_document_tells_configuration_and_layers() -> None:
    info = image_info(make_image(user="7"), b'{"config":{"User":"7"},"history":[]}')
    assert info["chainID"] == "sha256:" + "1" * 64
    shown = json.loads(json_text(info))
    assert shown["imageSpec"] == {"config": {"User": "7"}, "history": []}
