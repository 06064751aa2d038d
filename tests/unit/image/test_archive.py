"""Image archives: every form is understood, every lie in one is refused."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import BadArchiveError
from cri_shim.image.archive import MAX_IMAGES, Archive
from cri_shim.image.manifest import digest_of
from cri_shim.image.platforms import platform_of
from cri_shim.image.unpack.members import Member
from tests.images import (
    config_of,
    docker_archive,
    file,
    hardlink,
    layer,
    member_tar,
    oci_archive,
    symlink,
    tar_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cri_shim.image.planned import PlannedImage

HOST = platform_of(os.uname().machine)
ONE, TWO = layer(file("a", b"1")), layer(file("b", b"2"), compression="gzip")


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Callable[[bytes], list[PlannedImage]]]:
    """Spools a tar as the confined child does, and reads the images in it."""
    fd = os.open(tmp_path, os.O_RDONLY)

    def read(data: bytes) -> list[PlannedImage]:
        members = []
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for number, header in enumerate(tar):
                name = header.name.encode()
                if header.issym() or header.islnk():
                    base = posixpath.dirname(header.name) if header.issym() else ""
                    target = posixpath.normpath(posixpath.join(base, header.linkname))
                    members.append(Member(name=name, target=target.encode()))
                    continue
                opened = tar.extractfile(header)
                assert opened is not None
                content = opened.read()
                (tmp_path / f"m{number}").write_bytes(content)
                members.append(
                    Member(
                        name=name,
                        file=f"m{number}",
                        size=len(content),
                        digest=digest_of(content),
                    )
                )
        return Archive(members, fd, HOST).images()

    yield read
    os.close(fd)


def blob_name(data: bytes) -> str:
    return "blobs/" + digest_of(data).replace(":", "/")


def names(image: PlannedImage) -> list[str]:
    return [str(name) for name in image.names]


def test_an_oci_layout_is_understood(plan: Callable[[bytes], list[PlannedImage]]) -> None:
    [image] = plan(oci_archive(ONE, TWO, name="r.example/a:1", cmd=["sh"], user="7"))
    assert names(image) == ["r.example/a:1"]
    assert (image.config.cmd, image.config.user) == (("sh",), "7")
    assert [each.diff_id for each in image.layers] == [ONE.diff_id, TWO.diff_id]
    assert [each.blob.digest for each in image.layers] == [ONE.digest, TWO.digest]
    assert image.by_digest


def test_an_oci_layout_in_a_directory_of_the_tar_is_understood(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    [image] = plan(oci_archive(ONE, name="r.example/a:1", prefix="layout/"))
    assert len(image.layers) == 1


def test_a_bare_tag_is_no_name(plan: Callable[[bytes], list[PlannedImage]]) -> None:
    [image] = plan(oci_archive(ONE, name="1.36"))
    assert image.names == ()


@pytest.mark.parametrize("shared_by_links", [False, True])
def test_docker_save_is_understood(
    plan: Callable[[bytes], list[PlannedImage]], shared_by_links: bool
) -> None:
    [image] = plan(
        docker_archive(
            ONE, TWO, tags=["a:1", "quay.io/b:2"], shared_by_links=shared_by_links, env=["A=b"]
        )
    )
    assert names(image) == ["docker.io/library/a:1", "quay.io/b:2"]
    assert [each.blob.media_type for each in image.layers] == [ONE.media_type, TWO.media_type]
    assert not image.by_digest


def test_docker_save_without_a_name_is_understood(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    [image] = plan(docker_archive(ONE))
    assert image.names == ()


def test_layers_shared_by_hard_links_are_found(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    config = config_of([ONE, ONE])
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["l1/layer.tar", "l2/layer.tar"]}]
    [image] = plan(
        tar_of(
            [
                file("c.json", config),
                file("l1/layer.tar", ONE.blob),
                hardlink("l2/layer.tar", "l1/layer.tar"),
                file("manifest.json", json.dumps(manifest).encode()),
            ]
        )
    )
    assert image.layers[0].file == image.layers[1].file


def indexed(*entries: dict[str, Any], **members: bytes) -> bytes:
    index = json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()
    return member_tar({"index.json": index, **members})


def manifest_and_blobs(architecture: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The index entry of an image with one layer for that architecture, and its blobs."""
    marked = layer(file("arch", architecture.encode()))
    config = config_of([marked], architecture=architecture)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest_of(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": marked.media_type,
                    "digest": marked.digest,
                    "size": len(marked.blob),
                }
            ],
        }
    ).encode()
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest_of(manifest),
        "size": len(manifest),
        "platform": {"os": "linux", "architecture": architecture},
    }
    return entry, {blob_name(blob): blob for blob in (config, manifest, marked.blob)}


def test_of_several_platforms_only_this_machine_s_is_taken(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    ours, our_blobs = manifest_and_blobs(HOST.architecture)
    theirs, _ = manifest_and_blobs("s390x")
    inner = json.dumps({"schemaVersion": 2, "manifests": [theirs, ours]}).encode()
    nested = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest_of(inner),
        "size": len(inner),
        "annotations": {"io.containerd.image.name": "r.example/multi:1"},
    }
    [flat] = plan(indexed(theirs, ours, **our_blobs))
    [deep] = plan(indexed(nested, **our_blobs, **{blob_name(inner): inner}))
    assert flat.manifest == deep.manifest
    assert names(deep) == ["r.example/multi:1"]
    with pytest.raises(BadArchiveError, match="linux/s390x"):
        plan(indexed(theirs))


def test_what_an_index_says_of_the_machine_counts_more_than_the_configuration(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    entry, blobs = manifest_and_blobs("s390x")
    entry["platform"] = {"os": "linux", "architecture": HOST.architecture}
    [image] = plan(indexed(entry, **blobs))
    assert image.config.architecture == "s390x"
    del entry["platform"]
    with pytest.raises(BadArchiveError, match="the image is for linux/s390x"):
        plan(indexed(entry, **blobs))


@pytest.mark.parametrize("layers", [b"[]", b"null"])
def test_an_image_may_have_no_layer(
    plan: Callable[[bytes], list[PlannedImage]], layers: bytes
) -> None:
    config = config_of([])
    data = member_tar(
        {
            "manifest.json": b'[{"Config":"c.json","RepoTags":null,"Layers":%b}]' % layers,
            "c.json": config,
        }
    )
    [image] = plan(data)
    assert image.layers == ()


def test_an_index_that_contains_itself_ends(plan: Callable[[bytes], list[PlannedImage]]) -> None:
    # A real cycle can't be made of digests; a long chain stands for it.
    entry, blobs = manifest_and_blobs(HOST.architecture)
    for _ in range(10):
        inner = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        blobs[blob_name(inner)] = inner
        entry = {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest_of(inner),
            "size": len(inner),
        }
    with pytest.raises(BadArchiveError, match="indexes within indexes"):
        plan(indexed(entry, **blobs))


def test_two_names_of_one_manifest_are_one_image(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    entry, blobs = manifest_and_blobs(HOST.architecture)
    named = [
        entry | {"annotations": {"org.opencontainers.image.ref.name": f"r.example/a:{tag}"}}
        for tag in "12"
    ]
    [image] = plan(indexed(*named, **blobs))
    assert names(image) == ["r.example/a:1", "r.example/a:2"]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (member_tar({"readme": b""}), "neither an OCI layout"),
        (member_tar({"repositories": b"{}"}), "before Docker 1.10"),
        (member_tar({"index.json": b"{}"}), "schemaVersion"),
        (member_tar({"index.json": b'{"schemaVersion":2,"manifests":[]}'}), "no image"),
        (member_tar({"manifest.json": b"[]"}), "no image"),
        (member_tar({"manifest.json": b"{}"}), r"manifest\.json"),
        (member_tar({"manifest.json": b'[{"Config":"gone","Layers":[]}]'}), "gone: not in"),
        (oci_archive(ONE, without=[blob_name(ONE.blob)]), "not in the archive"),
        (oci_archive(ONE, spoil={blob_name(ONE.blob): b"x"}), "its bytes have"),
        (oci_archive(ONE, architecture="s390x"), "the image is for linux/s390x"),
        (oci_archive(ONE, name="Bad Name:/"), "an image's name in the archive"),
        (tar_of([symlink("index.json", "other"), symlink("other", "index.json")]), "not in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_that_is_none_is_refused_with_the_reason(
    plan: Callable[[bytes], list[PlannedImage]], archive: bytes, reason: str
) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        plan(archive)


def test_layers_and_diff_ids_must_match(plan: Callable[[bytes], list[PlannedImage]]) -> None:
    config = config_of([ONE, TWO])
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["l"]}]
    archive = {
        "c.json": config,
        "l": ONE.blob,
        "manifest.json": json.dumps(manifest).encode(),
    }
    with pytest.raises(BadArchiveError, match="2 diff IDs"):
        plan(member_tar(archive))


def test_a_document_beyond_its_bound_is_not_read(
    plan: Callable[[bytes], list[PlannedImage]],
) -> None:
    with pytest.raises(BadArchiveError, match="the limit is"):
        plan(member_tar({"index.json": b" " * (5 << 20)}))


def test_each_document_is_read_once_however_many_names_lead_to_it(
    plan: Callable[[bytes], list[PlannedImage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, blobs = manifest_and_blobs(HOST.architecture)
    named = [
        entry | {"annotations": {"org.opencontainers.image.ref.name": f"r.example/a:{tag}"}}
        for tag in range(MAX_IMAGES)
    ]
    sizes: list[int] = []
    real = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    [image] = plan(indexed(*named, **blobs))
    assert len(image.names) == MAX_IMAGES
    assert len(sizes) == 3  # index, manifest, configuration


@pytest.mark.parametrize(
    ("document", "content", "reason"),
    [
        (
            "index.json",
            {"schemaVersion": 2, "manifests": [{"digest": ONE.digest, "size": 1}] * 513},
            "513 images; the limit is 512",
        ),
        ("manifest.json", [{"Config": "c", "Layers": []}] * 513, "513 images; the limit is 512"),
    ],
)
def test_an_archive_of_too_many_images_is_refused_before_any_is_read(
    plan: Callable[[bytes], list[PlannedImage]], document: str, content: object, reason: str
) -> None:
    with pytest.raises(BadArchiveError, match=reason):
        plan(member_tar({document: json.dumps(content).encode()}))


def test_names_are_bounded_as_well(plan: Callable[[bytes], list[PlannedImage]]) -> None:
    with pytest.raises(BadArchiveError, match="1025 image names; the limit is 1024"):
        plan(docker_archive(ONE, tags=[f"a:{number}" for number in range(1025)]))
