"""What is told of one document: nothing but what is kept."""

from __future__ import annotations

import json

from cri_shim.image.manifest import Descriptor, Manifest, Platform, digest_of
from cri_shim.image.unpack.document_jobs import read_config, read_manifest
from tests.images import config_of, file, layer

HOST = Platform(os="linux", architecture="amd64")
LAYER = layer(file("a"))
WORDS = {"annotations": {"words": "x" * 1000}, "urls": []}


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **WORDS}


def test_a_manifest_loses_its_maker_s_words_but_for_its_annotations() -> None:
    config = config_of([LAYER], architecture="amd64")
    config_type = "application/vnd.oci.image.config.v1+json"
    document = {
        "schemaVersion": 2,
        "config": descriptor(config_type, config),
        "layers": [descriptor(LAYER.media_type, LAYER.blob)],
        "annotations": {"a": "b", "large": "x" * (17 << 10)},
    }
    report = read_manifest(json.dumps(document).encode(), HOST, "it")
    assert report.entry is None
    assert report.manifest == Manifest(
        schema_version=2,
        config=Descriptor(media_type=config_type, digest=digest_of(config), size=len(config)),
        layers=[Descriptor(media_type=LAYER.media_type, digest=LAYER.digest, size=len(LAYER.blob))],
        annotations={"a": "b"},
    )


def test_an_index_leads_to_this_machine_s_manifest() -> None:
    media_type = "application/vnd.oci.image.manifest.v1+json"
    entries = [
        descriptor(media_type, name.encode()) | {"platform": {"os": "linux", "architecture": name}}
        for name in ("s390x", "amd64")
    ]
    document = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    report = read_manifest(document, HOST, "it")
    assert report.manifest is None
    assert report.entry == Descriptor(media_type=media_type, digest=digest_of(b"amd64"), size=5)


def test_a_configuration_is_for_this_machine() -> None:
    data = config_of([LAYER], architecture="amd64", user="5")
    assert read_config(data, "it").config.user == "5"
