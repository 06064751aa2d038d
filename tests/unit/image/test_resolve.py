from __future__ import annotations

import json
import os
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import BadArchiveError, NotFoundError
from cri_shim.image.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Platform, digest_of
from cri_shim.image.reference import parse_reference
from cri_shim.image.resolve import resolve
from cri_shim.image.unpack.document_reader import DocumentReader
from tests.fakes.unpacker import FakeUnpacker
from tests.images import config_of, file, layer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.image.manifest import Descriptor
    from cri_shim.image.planned import PlannedImage

pytestmark = pytest.mark.asyncio

HOST = Platform(os="linux", architecture="amd64")
LAYER = layer(file("a"))


@dataclass(frozen=True)
class Fetched:
    data: bytes
    content_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.data)


class Documents:
    """A registry's documents."""

    def __init__(self) -> None:
        self.manifests: dict[str, Fetched] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def manifest(
        self, wanted: str, max_bytes: int, check: Callable[[Fetched], Awaitable[None]]
    ) -> Fetched:
        self.asked.append(wanted)
        if wanted not in self.manifests:
            raise NotFoundError("image", wanted)
        await check(self.manifests[wanted])
        return self.manifests[wanted]

    async def document(self, blob: Descriptor, max_bytes: int) -> bytes:
        self.asked.append(blob.digest)
        return self.blobs[blob.digest]

    def put(self, document: object, media_type: str, *, tag: str = "") -> dict[str, Any]:
        data = json.dumps(document).encode()
        fetched = Fetched(data, media_type)
        for name in filter(None, (fetched.digest, tag)):
            self.manifests[name] = fetched
        return {"mediaType": media_type, "digest": fetched.digest, "size": len(data)}

    def image(self, *, tag: str = "", **config: Any) -> dict[str, Any]:
        config_bytes = config_of([LAYER], **{"architecture": "amd64", **config})
        self.blobs[digest_of(config_bytes)] = config_bytes
        return self.put(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor("application/vnd.oci.image.config.v1+json", config_bytes),
                "layers": [descriptor(LAYER.media_type, LAYER.blob)],
            },
            OCI_MANIFEST,
            tag=tag,
        )


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def index_of(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": list(entries)}


def entry(found: dict[str, Any], architecture: str) -> dict[str, Any]:
    return {**found, "platform": {"os": "linux", "architecture": architecture}}


async def run(
    documents: Documents, name: str = "r.example/a:1", stored: dict[str, bytes] | None = None
) -> PlannedImage:
    async def here(digest: str, _max_bytes: int) -> bytes | None:
        return (stored or {}).get(digest)

    with TemporaryDirectory() as spool, TemporaryDirectory() as apart:
        fds = [os.open(directory, os.O_RDONLY) for directory in (spool, apart)]
        try:
            reader = DocumentReader(FakeUnpacker(), HOST, *fds)
            return await resolve(documents, parse_reference(name), reader, here)
        finally:
            for fd in fds:
                os.close(fd)


async def test_a_manifest_is_planned_with_its_tag_and_digest() -> None:
    documents = Documents()
    found = documents.image(tag="1", user="5")
    planned = await run(documents)
    assert [str(name) for name in planned.names] == [
        "r.example/a:1",
        f"r.example/a@{found['digest']}",
    ]
    assert planned.manifest.digest == found["digest"]
    assert planned.manifest_type == OCI_MANIFEST
    assert planned.config.user == "5"
    assert [(each.diff_id, each.blob.digest) for each in planned.layers] == [
        (LAYER.diff_id, LAYER.digest)
    ]


async def test_a_digest_beside_a_tag_gives_no_tag() -> None:
    documents = Documents()
    found = documents.image()
    planned = await run(documents, f"r.example/a:1@{found['digest']}")
    assert [str(name) for name in planned.names] == [f"r.example/a@{found['digest']}"]


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
async def test_an_index_leads_to_this_machine_and_gives_its_own_digest(media_type: str) -> None:
    documents = Documents()
    other = documents.image(architecture="arm64")
    own = documents.image()
    top = documents.put(index_of(entry(other, "arm64"), entry(own, "amd64")), media_type, tag="1")
    planned = await run(documents)
    assert planned.manifest.digest == own["digest"]
    assert str(planned.names[1]) == f"r.example/a@{top['digest']}"
    assert other["digest"] not in documents.asked


async def test_nothing_for_this_machine_is_said_with_what_there_is() -> None:
    documents = Documents()
    documents.put(index_of(entry(documents.image(), "s390x")), OCI_INDEX, tag="1")
    with pytest.raises(BadArchiveError, match="no entry for linux/amd64; it has linux/s390x"):
        await run(documents)
    documents.image(tag="1", architecture="arm64")
    with pytest.raises(BadArchiveError, match="the image is for linux/arm64"):
        await run(documents)


@pytest.mark.parametrize("claimed", [{"architecture": "arm64"}, {"os": "windows"}])
async def test_what_an_index_says_of_the_machine_counts_more_than_the_configuration(
    claimed: dict[str, str],
) -> None:
    documents = Documents()
    found = documents.image(**claimed)
    inner = documents.put(index_of(entry(found, "amd64")), OCI_INDEX)
    for top in (index_of(entry(found, "amd64")), index_of(inner), index_of(entry(inner, "amd64"))):
        documents.put(top, OCI_INDEX, tag="1")
        planned = await run(documents)
        assert planned.manifest.digest == found["digest"]


async def test_an_entry_that_names_no_machine_leaves_it_to_the_configuration() -> None:
    documents = Documents()
    for platform in (None, {"os": "linux"}, {}):
        found = {**documents.image(architecture="arm64"), "platform": platform}
        documents.put(index_of(found), OCI_INDEX, tag="1")
        with pytest.raises(BadArchiveError, match="the image is for linux/arm64"):
            await run(documents)
        found = {**documents.image(architecture=""), "platform": platform}
        documents.put(index_of(found), OCI_INDEX, tag="1")
        await run(documents)


async def test_a_stored_configuration_is_not_fetched() -> None:
    documents = Documents()
    documents.image(tag="1")
    [(digest, data)] = documents.blobs.items()
    await run(documents, stored={digest: data})
    assert digest not in documents.asked


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", OCI_MANIFEST])
async def test_a_content_type_that_says_nothing_else_is_accepted(content_type: str) -> None:
    documents = Documents()
    found = documents.image()
    documents.manifests["1"] = Fetched(documents.manifests[found["digest"]].data, content_type)
    assert (await run(documents)).manifest_type == OCI_MANIFEST


async def test_what_is_called_one_thing_and_is_another_is_refused() -> None:
    documents = Documents()
    found = documents.image()
    documents.manifests["1"] = Fetched(documents.manifests[found["digest"]].data, OCI_INDEX)
    with pytest.raises(BadArchiveError, match=r"sent it as .*index.*, which it is not"):
        await run(documents)
    top = documents.put(index_of(entry(found, "amd64")), OCI_INDEX)
    documents.manifests["1"] = Fetched(documents.manifests[top["digest"]].data, OCI_MANIFEST)
    with pytest.raises(BadArchiveError, match="which it is not"):
        await run(documents)


async def test_a_configuration_has_the_size_that_its_manifest_promises() -> None:
    documents = Documents()
    found = documents.image()
    document = json.loads(documents.manifests[found["digest"]].data)
    document["config"]["size"] += 1
    documents.put(document, OCI_MANIFEST, tag="1")
    with pytest.raises(BadArchiveError, match=r"states \d+ bytes for sha256:.*, which has \d+"):
        await run(documents)


async def test_indexes_end() -> None:
    documents = Documents()
    found = documents.image()
    for _ in range(4):
        found = documents.put(index_of(found), OCI_INDEX, tag="1")
    await run(documents)
    documents.put(index_of(found), OCI_INDEX, tag="1")
    with pytest.raises(BadArchiveError, match="more than 4 deep"):
        await run(documents)


async def test_sizes_are_those_that_were_promised_and_bounded() -> None:
    documents = Documents()
    found = documents.image()
    documents.put(index_of({**found, "size": found["size"] + 1}), OCI_INDEX, tag="1")
    with pytest.raises(BadArchiveError, match="states"):
        await run(documents)
    documents.put(index_of({**found, "size": 5 << 20}), OCI_INDEX, tag="1")
    with pytest.raises(BadArchiveError, match="the limit is 4194304"):
        await run(documents)
    manifest = json.loads(documents.manifests[found["digest"]].data)
    manifest["config"]["size"] = 9 << 20
    documents.put(manifest, OCI_MANIFEST, tag="1")
    with pytest.raises(BadArchiveError, match="its configuration has 9437184 bytes"):
        await run(documents)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"layers": [], "fsLayers": []}, "schema 1"),
        ({"artifactType": "application/x.thing"}, "not a container image"),
        ({"manifests": []}, "ambiguous"),
        ({"layers": []}, "1 diff IDs, but the manifest has 0 layers"),
    ],
)
async def test_what_can_not_be_run_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    documents = Documents()
    found = documents.image()
    manifest = json.loads(documents.manifests[found["digest"]].data)
    documents.put({**manifest, **change}, "application/json", tag="1")
    with pytest.raises(BadArchiveError, match=said):
        await run(documents)
