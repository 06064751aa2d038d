"""Manifests, indexes and configurations: nothing but images, and nothing that reads in two ways."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import (
    MAX_LAYERS,
    Index,
    Manifest,
    chain_ids,
    parse_config,
    parse_document,
)
from cri_shim.image.platforms import check_platform, choose_manifest, platform_of
from cri_shim.image.reference import is_digest
from tests.fuzz import assert_sound

_A, _B = ("sha256:" + letter * 64 for letter in "ab")
_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _A, "size": 2},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _B, "size": 3}],
}
_INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": _A,
            "size": 9,
            "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
            "annotations": {"a": "b"},
        }
    ],
}
_CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "created": "2024-01-01T00:00:00Z",
    "config": {
        "User": "1:2",
        "Env": ["A=b"],
        "Cmd": None,
        "Labels": {"a": "b"},
        "Volumes": {"/v": {}},
    },
    "rootfs": {"type": "layers", "diff_ids": [_A, _B]},
}
SEEDS = [
    *(json.dumps(document).encode() for document in (_MANIFEST, _INDEX, _CONFIG)),
    json.dumps({**_MANIFEST, "manifests": []}).encode(),
    b'{"schemaVersion":2,"Layers":[],"layers":[]}',
    b'{"schemaVersion":2,"config":{"digest":"","size":1e999}}',
    b'{"schemaVersion":1,"fsLayers":[]}',
    b'{"os":"\\ud800","rootfs":{"diff_ids":[]}}',
]
WORDS = [
    *(b'"schemaVersion":2,', b'"manifests":[]', b'"layers":', b'"Layers":', b'"config":', b"null"),
    *(b'"os.features":["x"],', b'"variant":"v8"', b'"annotations":{}', b'"urls":["x"]', b"\\u0000"),
    *(b'"artifactType":"x",', b"\x1b[2J", b"\xff", b"[" * 64, b"9" * 40, _A.encode()),
]
_HOSTS = [platform_of(machine) for machine in ("x86_64", "aarch64", "armv7l")]


def fuzz(data: bytes) -> None:
    for parse in (_document, _configuration):
        try:
            parse(data)
        except BadArchiveError as error:
            assert_sound(error)


def _document(data: bytes) -> None:
    document = parse_document(data, "the input")
    assert parse_document(msgspec.json.encode(document), "again") == document
    readers = [_lower(json.loads(data, object_pairs_hook=how)) for how in (_first, _last)]
    for read in readers:
        if isinstance(document, Manifest):
            assert "manifests" not in read
            assert read["config"]["digest"] == document.config.digest
            assert [each["digest"] for each in read.get("layers") or ()] == [
                x.digest for x in document.layers
            ]
        else:
            assert not {"layers", "config"} & read.keys()
            assert [x["digest"] for x in read["manifests"]] == [
                x.digest for x in document.manifests
            ]
    if isinstance(document, Index):
        for host in _HOSTS:
            assert choose_manifest(document, host, "the input") in document.manifests
        return
    assert len(document.layers) <= MAX_LAYERS
    for blob in (document.config, *document.layers):
        assert is_digest(blob.digest)
        assert blob.size >= 0


def _configuration(data: bytes) -> None:
    config = parse_config(data, "the input")
    assert len(chain_ids(config.diff_ids)) == len(config.diff_ids) <= MAX_LAYERS
    for text in (config.user, *config.env, *config.cmd, *config.volumes):
        text.encode()  # CRI's strings are UTF-8
    check_platform(config, _HOSTS[0], "the input")


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs)


def _lower(value: Any) -> Any:
    """As a reader sees it that has no regard for case."""
    if isinstance(value, dict):
        return {key.lower(): _lower(each) for key, each in value.items()}
    return [_lower(each) for each in value] if isinstance(value, list) else value
