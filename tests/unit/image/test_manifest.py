"""Image documents: what is read from them, what is refused and why, which platform is chosen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    Platform,
    chain_ids,
    digest_of,
    kept_annotations,
    parse_config,
    parse_document,
)
from cri_shim.image.platforms import platform_of

A, B = ("sha256:" + letter * 64 for letter in "ab")
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
AMD64 = platform_of("x86_64")


def manifest(**changes: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": A, "size": 2},
        "layers": [{"mediaType": LAYER_TYPE, "digest": B, "size": 3}],
    } | changes
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def index(*platforms: Platform | None, media_type: str = MANIFEST_TYPE) -> Index:
    entries = [
        Descriptor(media_type=media_type, digest=f"sha256:{number:064x}", size=1, platform=platform)
        for number, platform in enumerate(platforms)
    ]
    return Index(schema_version=2, manifests=entries)


def refuse(data: bytes, reason: str) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        parse_document(data, "manifest of the test")


def test_an_oci_manifest_is_read() -> None:
    found = parse_document(manifest(), "m")
    assert isinstance(found, Manifest)
    assert (found.config.digest, [layer.digest for layer in found.layers]) == (A, [B])


def test_a_docker_manifest_is_read() -> None:
    found = parse_document(
        manifest(
            mediaType="application/vnd.docker.distribution.manifest.v2+json",
            config={
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": A,
                "size": 1,
            },
            layers=[
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "digest": B,
                    "size": 1,
                }
            ],
        ),
        "m",
    )
    assert isinstance(found, Manifest)


def test_the_urls_of_an_ordinary_layer_are_nobody_s_business() -> None:
    layers = [{"mediaType": LAYER_TYPE, "digest": B, "size": 1, "urls": ["http://x"]}]
    found = parse_document(manifest(layers=layers), "m")
    assert isinstance(found, Manifest)
    assert [layer.digest for layer in found.layers] == [B]


@pytest.mark.parametrize("layers", [b"[]", b"null"])
def test_an_image_may_have_no_layer(layers: bytes) -> None:
    found = parse_document(manifest(layers="here").replace(b'"here"', layers), "m")
    assert isinstance(found, Manifest)
    assert found.layers == []
    # What is written again has the member that the specification wants.
    assert msgspec.json.decode(msgspec.json.encode(found))["layers"] == []


def test_an_index_is_read() -> None:
    data = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": MANIFEST_TYPE,
                    "digest": A,
                    "size": 1,
                    "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
                }
            ],
        }
    ).encode()
    found = parse_document(data, "i")
    assert isinstance(found, Index)
    assert found.manifests[0].platform == Platform(os="linux", architecture="arm64", variant="v8")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a valid image document"),
        (b"[]", "not a valid image document"),
        (b"{" * 100_000, "not a valid image document"),
        (b"[" * 100_000, "not a valid image document"),
        (manifest(manifests=[]), "ambiguous"),
        (manifest(layers=None, manifests=[]), "ambiguous"),
        (manifest(Manifests=[]), "ambiguous"),
        (manifest()[:-1] + b',"config":{}}', "'config' occurs twice"),
        (manifest(layers=None, config=None, FSLayers=[]), "schema 1"),
        (manifest(layers=None, config=None), "none of"),
        (manifest(schemaVersion=1), "schema 1"),
        (manifest(fsLayers=[]), "schema 1"),
        (
            manifest(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"),
            "schema 1",
        ),
        (manifest(schemaVersion=3), "schemaVersion is 3"),
        (manifest(mediaType="application/vnd.oci.image.index.v1+json"), "does not match"),
        (manifest(mediaType="text/html"), "does not match"),
        (manifest(artifactType="application/vnd.example.sbom"), "artifact"),
        (manifest(artifactType="\x1b[2J\n"), r"artifact \('\\x1b\[2J\\n'\)"),
        (manifest(artifactType="x" * 9999), r"artifact \('x{200}' \(\+9799 characters\)\)"),
        (
            manifest(layers=[{"mediaType": LAYER_TYPE, "digest": B, "size": (64 << 30) + 1}]),
            "the limit is 68719476736",
        ),
        (manifest(config={"mediaType": "application/x", "digest": A, "size": 1}), "artifact"),
        (manifest(config={"mediaType": CONFIG_TYPE, "digest": "md5:1", "size": 1}), "digest"),
        (manifest(config={"mediaType": CONFIG_TYPE, "digest": A, "size": -1}), "size -1"),
        (
            manifest(layers=[{"mediaType": "application/zip", "digest": B, "size": 1}]),
            "unknown media",
        ),
        (
            manifest(
                layers=[
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                        "digest": B,
                        "size": 1,
                    }
                ]
            ),
            "foreign",
        ),
        (
            manifest(layers=[{"mediaType": LAYER_TYPE, "digest": B, "size": 1}] * 501),
            "501 layers",
        ),
        (b" " * (MAX_MANIFEST_BYTES + 1), "the limit is"),
    ],
)
def test_a_document_that_cannot_be_run_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    refuse(data, reason)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    for parse in (parse_document, parse_config):
        try:
            parse(data, "m")
        except BadArchiveError:
            pass


def test_a_configuration_is_read_and_nulls_mean_nothing() -> None:
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": {
            "User": "1000:1000",
            "Env": ["A=b", "EMPTY="],
            "Entrypoint": ["/run"],
            "Cmd": None,
            "WorkingDir": "/srv",
            "Volumes": {"/data": {}},
            "StopSignal": "SIGINT",
            "Labels": {"a": "b"},
            "ExposedPorts": {"80/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [A]},
        "history": [{"created_by": "x"}],
    }
    config = parse_config(json.dumps(document).encode(), "c")
    assert config.user == "1000:1000"
    assert config.env == ("A=b", "EMPTY=")
    assert (config.entrypoint, config.cmd) == (("/run",), ())
    assert (config.working_dir, config.volumes, config.stop_signal) == (
        "/srv",
        ("/data",),
        "SIGINT",
    )
    assert config.diff_ids == (A,)


def test_a_configuration_s_labels_and_history_may_be_long_but_what_is_kept_is_bounded() -> None:
    long = {"Labels": {"a": "x" * (1 << 20)}, "Env": ["A=" + "x" * (100 << 10)]}
    document = {"config": long, "rootfs": {"diff_ids": []}, "history": [{"created_by": "x" * 9999}]}
    assert len(parse_config(json.dumps(document).encode(), "c").env[0]) == (100 << 10) + 2


@pytest.mark.parametrize(
    "words",
    [
        {"config": {"Env": ["A=" + "x" * (128 << 10)]}},
        {"config": {"Env": ["A=b"] * 2000}},  # short words cost as well
        {"config": {"Env": ["\U0001f600" * (33 << 10)]}},  # and wide characters
        {"config": {"Cmd": ["x" * (64 << 10)], "Entrypoint": ["x" * (64 << 10)]}},
        {"config": {"Volumes": {f"/{number}": {} for number in range(2000)}}},
        {"created": "x" * (128 << 10)},
        {"os.features": ["x"] * 2100},
    ],
)
def test_what_a_configuration_keeps_in_memory_is_bounded(words: dict[str, Any]) -> None:
    document = {"rootfs": {"diff_ids": []}, **words}
    with pytest.raises(BadArchiveError, match="the limit is 131072"):
        parse_config(json.dumps(document).encode(), "c")


def test_annotations_are_kept_as_far_as_they_are_few() -> None:
    assert len(kept_annotations({str(number): "" for number in range(10_000)})) == 125
    assert kept_annotations({"a": "b", "c": "x" * (17 << 10), "d": "e"}) == {"a": "b"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "rootfs"),
        (b'{"rootfs":{"diff_ids":["sha256:x"]}}', "diff ID"),
        (b'{"rootfs":{"diff_ids":[]},"config":{"Env":"A=b"}}', "Env"),
        (b" " * (MAX_CONFIG_BYTES + 1), "the limit is"),
        (json.dumps({"rootfs": {"diff_ids": [A] * 501}}).encode(), "501 layers"),
    ],
)
def test_a_bad_configuration_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        parse_config(data, "c")


def test_a_chain_id_depends_on_all_layers_below() -> None:
    second = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {A}".encode()).hexdigest()
    assert chain_ids([A, B, A]) == [A, second, third]
    assert chain_ids([]) == []


def test_the_digest_of_bytes_is_sha256() -> None:
    assert digest_of(b"").endswith("b855")
