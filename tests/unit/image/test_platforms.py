"""Which image of an index runs here, and what is said when none does."""

from __future__ import annotations

from typing import Any

import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.manifest import Descriptor, Index, Platform, parse_config
from cri_shim.image.platforms import check_platform, choose_manifest, is_candidate, platform_of

A = "sha256:" + "a" * 64
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
AMD64 = platform_of("x86_64")


def index(*platforms: Platform | None, media_type: str = MANIFEST_TYPE) -> Index:
    entries = [
        Descriptor(media_type=media_type, digest=f"sha256:{number:064x}", size=1, platform=platform)
        for number, platform in enumerate(platforms)
    ]
    return Index(schema_version=2, manifests=entries)


def arm(variant: str) -> Platform:
    return Platform(os="linux", architecture="arm", variant=variant)


def needs(feature: str) -> Platform:
    return Platform(os="linux", architecture="amd64", os_features=[feature])


@pytest.mark.parametrize(
    ("machine", "platforms", "chosen"),
    [
        ("x86_64", [platform_of("aarch64"), AMD64], 1),
        ("x86_64", [Platform(os="linux", architecture="amd64", variant="v3"), AMD64], 1),
        ("x86_64", [Platform(os="windows", architecture="amd64"), AMD64], 1),
        ("x86_64", [None, AMD64], 1),
        ("x86_64", [None], 0),
        ("aarch64", [Platform(os="linux", architecture="arm64")], 0),
        ("aarch64", [Platform(os="linux", architecture="arm64"), platform_of("aarch64")], 1),
        ("armv7l", [arm("v5"), arm("v7"), arm("v6")], 1),
        ("armv6l", [arm("v7"), arm("v6")], 1),
        ("armv7l", [arm("v5"), arm("v6")], 1),
        ("armv7l", [arm("v\u0667"), arm("v66"), arm("v6")], 2),
        ("x86_64", [Platform(os="linux", architecture="amd64", variant="v1")], 0),
        ("x86_64", [Platform(os="linux", architecture="x86_64")], 0),
        ("aarch64", [Platform(os="linux", architecture="aarch64", variant="8")], 0),
        ("x86_64", [needs("x"), AMD64], 1),
        ("x86_64", [Platform(os="linux"), AMD64], 1),
        ("x86_64", [platform_of("aarch64"), Platform(os="linux")], 1),
        ("x86_64", [Platform(os="windows"), Platform()], 1),
    ],
)
def test_the_manifest_that_runs_best_here_is_chosen(
    machine: str, platforms: list[Platform | None], chosen: int
) -> None:
    found = index(*platforms)
    assert choose_manifest(found, platform_of(machine), "i") is found.manifests[chosen]


def test_an_index_without_this_machine_names_what_it_has() -> None:
    found = index(platform_of("s390x"), Platform(os="unknown", architecture="unknown"))
    with pytest.raises(BadArchiveError, match=r"linux/amd64.*linux/s390x"):
        choose_manifest(found, AMD64, "i")


def test_an_attestation_is_never_chosen() -> None:
    entries = index(AMD64, media_type="application/vnd.in-toto+json")
    with pytest.raises(BadArchiveError):
        choose_manifest(entries, AMD64, "i")
    assert not is_candidate(entries.manifests[0], AMD64)


def test_what_is_marked_as_an_attestation_or_an_artifact_is_never_chosen() -> None:
    entry: dict[str, Any] = {"media_type": MANIFEST_TYPE, "digest": A, "size": 1}
    found = Index(
        schema_version=2,
        manifests=[
            Descriptor(**entry, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
            Descriptor(**entry, artifact_type="application/vnd.example.sbom"),
        ],
    )
    with pytest.raises(BadArchiveError, match="it has nothing"):
        choose_manifest(found, AMD64, "i")


def test_a_feature_that_this_system_does_not_name_is_told() -> None:
    data = b'{"os":"linux","architecture":"amd64","os.features":["magic"],"rootfs":{"diff_ids":[]}}'
    with pytest.raises(BadArchiveError, match="linux/amd64 with magic"):
        check_platform(parse_config(data, "c"), AMD64, "c")


def test_a_long_list_of_machines_is_cut() -> None:
    found = index(*(Platform(os="\n" * 999, architecture=str(number)) for number in range(500)))
    with pytest.raises(BadArchiveError) as refused:
        choose_manifest(found, AMD64, "i")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 8000


def test_an_image_for_another_machine_is_refused_by_name() -> None:
    foreign = parse_config(b'{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":[]}}', "c")
    with pytest.raises(BadArchiveError, match=r"linux/arm64.*linux/amd64"):
        check_platform(foreign, AMD64, "c")
    check_platform(parse_config(b'{"rootfs":{"diff_ids":[]}}', "c"), AMD64, "c")
