"""Images that mean harm, pulled whole: refused in words or unpacked right, in bounded time and memory, nothing left.

What single entries of a layer do is in `test_layer_real`; here are raw bytes that no tar program writes, bombs,
documents that lie, and what all of it costs the child, the daemon and the host.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import zstandard

from cri_shim.errors import BadArchiveError, NotFoundError
from cri_shim.image.manifest import digest_of
from cri_shim.image.pull import Puller
from cri_shim.image.store import ImageStore
from cri_shim.image.unpack.client import Unpacker
from cri_shim.image.unpack.protocol import Limits
from tests.fakes.registry import INDEX_TYPE, MANIFEST_TYPE, Answer, FakeRegistry
from tests.images import (
    LayerBlob,
    config_of,
    directory,
    file,
    layer,
    symlink,
    tar_of,
)
from tests.integration.image.scene import case, files_of, settings, trees
from tests.raw_tar import END, header, number, padded, pax

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

LIMITS = Limits(max_bytes=32 << 20, max_inodes=20_000)
CHILD_MB = 64
"""What a child may come to, the interpreter and libraries that it shares with its parent included."""
DAEMON_MB = 48
"""What this process may grow by, which here plays the registry as well."""
CPU_SECONDS = 10
"""For any one image, of this process and of those that unpack."""
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
GNU_SPARSE = (b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=f")
A, B = ("sha256:" + letter * 64 for letter in "ab")


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest_asyncio.fixture
async def puller(tmp_path: Path, reaper: Reaper) -> AsyncIterator[Puller]:
    """Into a store whose layers are small, so that bombs go off early."""
    unpacker = Unpacker(reaper, limits=LIMITS)
    store = await ImageStore.open(
        tmp_path / "images", tmp_path / "layers", reaper, unpacker=unpacker
    )
    puller = Puller(store, settings(tmp_path))
    yield puller
    await puller.close(0)
    await store.close()


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The largest resident size, in MiB, of any grandchild (`child`), and by how much we grew (`daemon`)."""
    found = {"child": 0.0, "daemon": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.003):
            for child in children_of(os.getpid()):
                for grandchild in children_of(child):
                    found["child"] = max(found["child"], memory_mb(grandchild, "VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = memory_mb(os.getpid(), "VmRSS")
    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        over.set()
        looking.join()
        found["daemon"] = memory_mb(os.getpid(), "VmHWM") - before


def children_of(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory_mb(pid: int, field: str) -> float:
    try:
        match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        match = None
    return int(match[1]) / 1024 if match else 0.0


def cpu_seconds() -> float:
    """Of this process and its children, with those of theirs that have ended."""
    ticks = 0
    for child in children_of(os.getpid()):
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def bounded(what: object) -> Iterator[None]:
    with case(what), watched() as found:
        before = cpu_seconds()
        yield
        assert cpu_seconds() - before < CPU_SECONDS
    with case((what, found)):
        assert found["child"] < CHILD_MB
        assert found["daemon"] < DAEMON_MB


async def refuse(puller: Puller, name: str, words: str, tree: Path) -> None:
    with bounded(name):
        with pytest.raises(BadArchiveError, match=words) as refused:
            await puller.pull(name)
        text = str(refused.value)
        assert text.isprintable()
        assert len(text) < 2000
        assert files_of(tree) == []
        assert os.listdir(tree / "layers" / ".ingest") == []


def raw(*parts: bytes, end: bytes = END) -> LayerBlob:
    return layer(tar=b"".join(parts) + end)


def packed(blob: bytes, tar: bytes = b"") -> LayerBlob:
    return LayerBlob(blob, digest_of(tar), f"{TAR_TYPE}+gzip")


LAYERS: dict[str, tuple[LayerBlob, str]] = {
    # Numbers
    "negative size": (
        raw(header(b"f", size=number(-1, 12))),
        "negative|damaged|[Tt]runcated|large",
    ),
    "huge size": (raw(header(b"f", size=number(1 << 62, 12))), "[Tt]runcated|too large|larger"),
    "octal nonsense": (raw(header(b"f", size=b"zzzzzzzzzzz\0")), "."),
    "negative owner": (raw(header(b"f", uid=number(-5, 8))), "does not fit into 32 bits"),
    "huge owner": (raw(header(b"f", uid=number(1 << 40, 8))), "does not fit into 32 bits"),
    "huge device": (
        raw(header(b"d", kind=b"3", major=number(1 << 20, 8))),
        "Linux has no device number",
    ),
    "pax size": (raw(pax(b"size=99999999999999999999"), header(b"f", b"x")), "."),
    "pax negative size": (raw(pax(b"size=-5"), header(b"f", b"x")), "."),
    "pax owner": (raw(pax(b"uid=4294967296"), header(b"f", b"x")), "does not fit into 32 bits"),
    # Sparse files that are not what they say
    "sparse giant": (
        raw(
            pax(*GNU_SPARSE, b"GNU.sparse.realsize=1125899906842624"), header(b"f", padded(b"0\n"))
        ),
        "larger|too large|Seek error",
    ),
    "sparse beyond its end": (
        raw(
            pax(*GNU_SPARSE, b"GNU.sparse.realsize=10"),
            header(b"f", padded(b"1\n9999999999\n4\n") + b"abcd"),
        ),
        ".",
    ),
    "sparse map without end": (
        raw(
            pax(*GNU_SPARSE, b"GNU.sparse.realsize=10"),
            header(b"f", padded(b"99999999999\n" + b"1\n1\n" * 9000)),
        ),
        ".",
    ),
    # Headers without end
    "pax giant": (raw(pax(b"comment=" + b"x" * (3 << 20)), header(b"f")), "."),
    "pax path giant": (
        raw(pax(b"path=" + b"d/" * 100_000 + b"f"), header(b"f")),
        "the path has 200001",
    ),
    "long name giant": (
        raw(header(b"././@LongLink", b"n" * (3 << 20), kind=b"L"), header(b"f")),
        ".",
    ),
    "attribute giant": (
        raw(pax(b"SCHILY.xattr.user.a=" + b"x" * 900_000), header(b"f")),
        "attribute 'user.a' of 900000",
    ),
    "empty name": (raw(header(b"")), "without a name|damaged"),
    "header cut": (raw(header(b"f", b"x" * 4096)[:700], end=b""), "[Tt]runcated"),
    "extended header cut": (
        raw(pax(b"path=" + b"x" * 2000)[:900], end=b""),
        "damaged|[Tt]runcated",
    ),
    "checksum": (raw(header(b"f")[:148] + b"000000\0 " + header(b"f")[156:]), "."),
    # Deep and wide
    "climbing links": (
        layer(
            directory("d/" * 1000),
            symlink("l", "d/" * 1000),
            symlink("l/m", "d/" * 1000),
            file("l/m/" + "x" * 200),
        ),
        "with its links resolved",
    ),
    "paths to report": (
        layer(*(file(f"{n:04}/" + ("n" * 250 + "/") * 15 + "f") for n in range(700))),
        "exceed 4194304 bytes",
    ),
    "entries": (raw(header(b"f") * 20_001), "more than 20000 entries"),
    "whiteouts": (raw(*(header(b".wh.%d" % n) for n in range(20_001))), "more than 20000"),
    # Bombs
    "gzip bomb": (
        packed(gzip.compress(bytes(LIMITS.max_bytes + (1 << 20)))),
        "inflates to more than",
    ),
    "zstd bomb": (
        packed(zstandard.ZstdCompressor().compress(bytes(LIMITS.max_bytes + (1 << 20)))),
        "inflates to more than",
    ),
    "bomb of members": (packed(gzip.compress(bytes(1 << 20)) * 40), "inflates to more than"),
    "bomb behind the end": (
        packed(gzip.compress(tar_of([file("f")]) + bytes(LIMITS.max_bytes))),
        "inflates to more than",
    ),
    "zstd window": (packed(b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(100)), "zstd stream is damaged"),
    "gzip name without end": (packed(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 500_000), "too early"),
    "xz": (packed(b"\xfd7zXZ\x00" + bytes(50)), "compressed with xz"),
}


async def test_a_hostile_layer_is_refused_in_its_words(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    for number_, (blob, _) in enumerate(LAYERS.values()):
        registry.add("team/bad", blob, tag=str(number_))
    for number_, (what, (_, words)) in enumerate(LAYERS.items()):
        with case(what):
            await refuse(puller, f"{registry.host}/team/bad:{number_}", words, tmp_path)
    assert canary.read_text() == "alive"
    assert sorted(os.listdir(tmp_path)) == ["canary", "images", "layers"]


async def test_members_without_end_that_hold_nothing_are_an_empty_layer_in_bounded_time(
    puller: Puller, registry: FakeRegistry
) -> None:
    for member in (gzip.compress(b""), zstandard.ZstdCompressor().compress(b"")):
        registry.add("team/nothing", packed(member * 50_000), tag="1")
        with bounded(member):
            image = await puller.pull(f"{registry.host}/team/nothing:1")
        assert image.config.diff_ids == (digest_of(b""),)


async def test_what_only_looks_hostile_comes_out_right(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    """All in one layer: each thing has a name of its own."""
    strange = raw(
        header(b"unknown-kind", b"a file to tar", kind=b"s"),
        header(b"late", mtime=number(1 << 62, 12)),
        header(b"early", mtime=number(-(1 << 62), 12)),
        pax(b"mtime=99999999999999999999999.5"),
        header(b"latest"),
        pax(b"SCHILY.xattr.trusted.overlay.redirect=/etc", b"SCHILY.xattr.security.ima=x"),
        header(b"attributed"),
        pax(b"comment=all", kind=b"g"),
        header(b"not-utf8-\xff\xfe"),
        header(b"twice", b"old"),
        header(b"twice", kind=b"5"),
        header(b"twice/inside"),
        header(b"twice", b"new"),
        header(b"nested.gz", gzip.compress(gzip.compress(bytes(1 << 20)))),
        header(b"out", kind=b"2", link=b"/"),
        header(b"out/out/.wh.hidden"),
        header(b"out/../../../../up"),
        header(b".wh..wh.plnk/77.5", b"aufs"),
        header(b".wh..wh.aufs"),
        header(b"d/.wh..wh..opq", kind=b"5"),
        header(b"null", kind=b"3", major=b"0000001\0", minor=b"0000003\0"),
        header(b"hard", kind=b"1", link=b"null"),
        header(b"self", b"me"),
        header(b"self", kind=b"1", link=b"./self"),
    )
    lower = layer(file("hidden", b"x"), directory("d"), file("d/old", b"x"))
    registry.add("team/strange", lower, strange, tag="1")
    with bounded("strange"):
        image = await puller.pull(f"{registry.host}/team/strange:1")
    top = trees(puller._store, image)[0]
    assert top["unknown-kind"][-1] == b"a file to tar"
    assert top["twice"][-1] == b"new"
    assert top["self"][-1] == b"me"
    assert top["attributed"][-2] == {}
    assert top["hard"][3] == 2
    assert top["d"][-2] == {"trusted.overlay.opaque": b"y"}
    assert os.fsdecode(b"not-utf8-\xff\xfe") in top
    assert set(top) & {"twice/inside", ".wh..wh.plnk", ".wh..wh.aufs", ".wh.hidden"} == set()
    assert top["hidden"][4] == 0  # a whiteout: a device 0/0
    assert "up" in top
    assert not (tmp_path.parent / "up").exists()


def manifest(**changes: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": A, "size": 2},
        "layers": [{"mediaType": TAR_TYPE, "digest": B, "size": 3}],
    } | changes
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def index(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()


def entry(data: bytes, media_type: str = MANIFEST_TYPE) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


DOCUMENTS: dict[str, tuple[bytes, str, str]] = {
    "oversized": (
        manifest(annotations={"a": "x" * (5 << 20)}),
        MANIFEST_TYPE,
        "exceeds 4194304 bytes",
    ),
    "values without end": (
        manifest(annotations={str(n): "" for n in range(250_000)}),
        MANIFEST_TYPE,
        "values",
    ),
    "brackets": (b"[" * 1_000_000, MANIFEST_TYPE, "values"),
    "nesting": (b'{"a":' * 90_000, MANIFEST_TYPE, "not a valid image document"),
    "a key twice": (manifest()[:-1] + b',"layers":[]}', MANIFEST_TYPE, "occurs twice .*ambiguous"),
    "a key in two spellings": (
        manifest()[:-1] + b',"Layers":[]}',
        MANIFEST_TYPE,
        "'Layers': ambiguous",
    ),
    "two kinds": (manifest(manifests=[]), MANIFEST_TYPE, "ambiguous"),
    "two kinds for Go": (manifest(Manifests=[]), MANIFEST_TYPE, "ambiguous"),
    "an index called a manifest": (index(), MANIFEST_TYPE, "which it is not"),
    "a manifest called an index": (manifest(), INDEX_TYPE, "which it is not"),
    "schema 1": (b'{"schemaVersion":1,"fsLayers":[]}', "application/json", "schema 1"),
    "an artifact": (manifest(artifactType="x" * 9000 + "\n"), MANIFEST_TYPE, "an artifact"),
    "a foreign layer": (
        manifest(
            layers=[
                {
                    "mediaType": TAR_TYPE.replace(".layer.", ".layer.nondistributable."),
                    "digest": B,
                    "size": 1,
                    "urls": ["http://127.0.0.1:1/"],
                }
            ]
        ),
        MANIFEST_TYPE,
        "foreign",
    ),
    "a layer of exabytes": (
        manifest(layers=[{"mediaType": TAR_TYPE, "digest": B, "size": 1 << 62}]),
        MANIFEST_TYPE,
        "the limit is 68719476736",
    ),
    "a size beyond numbers": (
        manifest(layers=[{"mediaType": TAR_TYPE, "digest": B, "size": 10**30}]),
        MANIFEST_TYPE,
        "not a valid|the limit is",
    ),
    "too many layers": (
        manifest(layers=[{"mediaType": TAR_TYPE, "digest": B, "size": 1}] * 501),
        MANIFEST_TYPE,
        "501 layers",
    ),
    "a configuration of gigabytes": (
        manifest(config={"mediaType": CONFIG_TYPE, "digest": A, "size": 1 << 31}),
        MANIFEST_TYPE,
        "the limit is 4194304",
    ),
    "a wide index": (
        index(
            *(
                {**entry(b"%d" % n), "platform": {"os": "x" * 99, "architecture": str(n)}}
                for n in range(9000)
            )
        ),
        INDEX_TYPE,
        "no entry for linux",
    ),
    "only attestations": (
        index(
            {
                **entry(manifest()),
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            }
        ),
        INDEX_TYPE,
        "no entry for linux",
    ),
}


async def test_a_hostile_document_is_refused_in_its_words(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    for number_, (what, (data, media_type, words)) in enumerate(DOCUMENTS.items()):
        registry.put_manifest("team/bad", data, media_type, str(number_))
        with case(what):
            await refuse(puller, f"{registry.host}/team/bad:{number_}", words, tmp_path)
    assert registry.count("GET", "/blobs/") == 0


async def test_documents_and_blobs_that_do_not_fit_each_other_are_refused(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    good = layer(file("f", random.Random(5).randbytes(5000)))
    other = layer(file("g", b"other"))
    lies: list[tuple[str, list[LayerBlob], dict[str, Any], str]] = [
        # What its unpacked bytes, and what its layers are said to be
        ("diff id", [LayerBlob(good.blob, other.diff_id, good.media_type)], {}, "digest"),
        ("too few layers", [good], {"config": config_of([good, other])}, "2 diff IDs, but"),
        ("too many layers", [good, other], {"config": config_of([good])}, "1 diff IDs, but"),
        ("another machine", [good], {"config": config_of([good], architecture="z80")}, "z80"),
        (
            "labels without end",
            [good],
            {"config": config_of([good], labels={str(n): "" for n in range(210_000)})},
            "values",
        ),
        (
            "no UTF-8",
            [good],
            {"config": config_of([good], user="\udc80").replace(b"\\udc80", b"\x80")},
            "utf-8",
        ),
        (
            "half a character",
            [good],
            {"config": config_of([good], user="\ud800")},
            "not a valid image document",
        ),
        ("a configuration's size", [good], {"config_size": 3}, "states 3 bytes"),
        ("a layer's size, less", [good], {"layer_size": 100}, "more than the 100 bytes"),
        ("a layer's size, none", [good], {"layer_size": 0}, "have the digest"),
    ]
    for what, layers, lie, words in lies:
        config = lie.get("config") or config_of(layers)
        assert isinstance(config, bytes)
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "config": registry.put_blob(CONFIG_TYPE, config),
            "layers": [registry.put_blob(each.media_type, each.blob) for each in layers],
        }
        if "config_size" in lie:
            document["config"]["size"] = lie["config_size"]
        if "layer_size" in lie:
            document["layers"][0]["size"] = lie["layer_size"]
        registry.put_manifest("team/bad", json.dumps(document).encode(), MANIFEST_TYPE, "1")
        with case(what):
            await refuse(puller, f"{registry.host}/team/bad:1", words, tmp_path)


async def test_indexes_that_go_round_or_down_for_ever_end(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    # A document can't have its own digest, so whoever serves a circle serves other bytes than those asked for.
    circle = index({"mediaType": INDEX_TYPE, "digest": A, "size": 200})
    for tag in ("circle", A):
        registry.manifests["team/bad", tag] = circle, INDEX_TYPE
    registry.hide_digest = True
    await refuse(puller, f"{registry.host}/team/bad:circle", "has the digest", tmp_path)
    deep = manifest()
    for _ in range(9):
        registry.put_manifest(
            "team/bad", deep, INDEX_TYPE if b'"manifests"' in deep else MANIFEST_TYPE
        )
        deep = index(entry(deep, INDEX_TYPE if b'"manifests"' in deep else MANIFEST_TYPE))
    registry.put_manifest("team/bad", deep, INDEX_TYPE, "deep")
    await refuse(puller, f"{registry.host}/team/bad:deep", "more than 4 deep", tmp_path)
    registry.put_manifest("team/bad", index({**entry(manifest()), "size": 5}), INDEX_TYPE, "size")
    registry.put_manifest("team/bad", manifest(), MANIFEST_TYPE)
    await refuse(puller, f"{registry.host}/team/bad:size", "states 5 bytes", tmp_path)


async def test_a_registry_s_words_are_harmless(
    puller: Puller, registry: FakeRegistry, tmp_path: Path
) -> None:
    bodies = [
        b'{"errors":[{"message":"no\\u001b[2J\\n' + b"x" * 9000 + b'"}]}',
        b'{"errors":[{"message":"\xff\xfe"}]}',
        b'{"errors":' + b"[" * 5000,
        b"<html>" + bytes(90_000),
    ]
    for body in bodies:
        registry.faults.append(Answer("/manifests/", status=404, body=body))
        with bounded(body[:40]), pytest.raises(NotFoundError) as refused:
            await puller.pull(f"{registry.host}/team/none:1")
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 2000
    assert files_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_million_entries_take_bounded_time_and_memory(
    reaper: Reaper, registry: FakeRegistry, tmp_path: Path
) -> None:
    store = await ImageStore.open(tmp_path / "images", tmp_path / "layers", reaper)
    puller = Puller(store, settings(tmp_path))
    try:
        for what, blob in (
            (
                "files",
                packed_tar(b"".join(header(b"%d/%d" % (n % 1000, n)) for n in range(1_000_000))),
            ),
            ("whiteouts", packed_tar(b"".join(header(b".wh.%d" % n) for n in range(1_000_000)))),
            ("one name", packed_tar(header(b"f") * 1_000_000)),
        ):
            registry.add("team/many", blob, tag="1")
            with case(what), watched() as found:
                began = time.monotonic()
                image = await puller.pull(f"{registry.host}/team/many:1")
                print(f"{what}: {time.monotonic() - began:.1f} s, {found}")
                await store.remove(image.id)
            with case((what, found)):
                assert found["child"] < 400
    finally:
        await puller.close(0)
        await store.close()


def packed_tar(entries: bytes) -> LayerBlob:
    tar = entries + END
    return LayerBlob(gzip.compress(tar, 1), digest_of(tar), f"{TAR_TYPE}+gzip")
