from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cri_shim.errors import (
    BadArchiveError,
    NotFoundError,
    RegistryAuthError,
    RegistryUnavailableError,
)
from cri_shim.image.manifest import Descriptor, digest_of
from cri_shim.image.reference import parse_reference
from cri_shim.image.registry import blob as blob_module
from cri_shim.image.registry.client import ROUNDS, Document, Registry, open_registry
from cri_shim.image.registry.hosts import Capability, Endpoint
from tests.fakes.registry import Answer, BadRange, Corrupt, Cut, FakeRegistry, IgnoreRange, Stall
from tests.images import file, layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.image.registry.credentials import Credentials

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("quick_retries")]

REFERENCE = parse_reference("r.example/team/app:1")
BLOB = bytes(range(256)) * 8192
DESCRIPTOR = Descriptor(digest=digest_of(BLOB), size=len(BLOB))


@asynccontextmanager
async def asking(
    *servers: FakeRegistry | Endpoint, stall_s: float = 5, credentials: Credentials | None = None
) -> AsyncIterator[Registry]:
    """A client that asks these, the last one being the registry itself."""
    endpoints = [
        each if isinstance(each, Endpoint) else Endpoint(f"{each.url}/v2", each is servers[-1])
        for each in servers
    ]
    async with open_registry(
        REFERENCE, endpoints, credentials, stall_s=stall_s, environment={}
    ) as registry:
        yield registry


class Bytes:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def received(self) -> int:
        return len(self.data)

    async def write(self, chunk: bytes) -> None:
        self.data += chunk


# Documents


async def test_a_manifest_comes_with_its_digest(registry: FakeRegistry) -> None:
    pushed = registry.add("team/app", layer(file("a")), tag="1")
    async with asking(registry) as client:
        for wanted in ("1", pushed.digest):
            found = await client.manifest(wanted, 1 << 20)
            assert (found.data, found.digest) == (pushed.manifest, pushed.digest)
        assert await client.digest("1") == pushed.digest
    accepted = registry.seen[0].headers["Accept"]
    assert "vnd.oci.image.index.v1+json" in accepted
    assert "vnd.docker.distribution.manifest.list.v2+json" in accepted
    assert "docker.distribution.manifest.v1" not in accepted


async def test_a_registry_need_not_tell_the_digest(registry: FakeRegistry) -> None:
    registry.add("team/app", layer(file("a")), tag="1")
    registry.hide_digest = True
    async with asking(registry) as client:
        assert await client.digest("1") is None
        await client.manifest("1", 1 << 20)


async def test_a_registry_need_not_know_head(registry: FakeRegistry) -> None:
    registry.faults.append(Answer("/manifests/", status=405))
    async with asking(registry) as client:
        assert await client.digest("1") is None


async def test_a_manifest_with_another_digest_is_refused(registry: FakeRegistry) -> None:
    pushed = registry.add("team/app", layer(file("a")), tag="1")
    registry.faults.append(Corrupt("/manifests/", times=2))
    async with asking(registry) as client:
        for wanted in ("1", pushed.digest):
            with pytest.raises(BadArchiveError, match=f"manifest {pushed.digest}: what it sent"):
                await client.manifest(wanted, 1 << 20)


async def test_a_document_that_makes_no_sense_is_its_server_s_fault_and_the_next_is_asked() -> None:
    async def check(found: Document) -> None:
        if found.data == b"<html>":
            raise BadArchiveError("not a manifest")

    async with FakeRegistry() as mirror, FakeRegistry() as home:
        pushed = home.add("team/app", layer(file("a")), tag="1")
        mirror.put_manifest("team/app", b"<html>", "text/html", "1")
        async with asking(mirror, home) as client:
            assert (await client.manifest("1", 1 << 20, check)).digest == pushed.digest
        home.put_manifest("team/app", b"<html>", "text/html", "1")
        async with asking(mirror, home) as client:
            with pytest.raises(BadArchiveError) as refused:
                await client.manifest("1", 1 << 20, check)
    for server in (mirror, home):
        assert f"{server.host}: not a manifest" in str(refused.value)


async def test_a_document_is_bounded_and_checked(registry: FakeRegistry) -> None:
    descriptor = Descriptor(**registry_blob(registry, b"x" * 1000))
    async with asking(registry) as client:
        assert await client.document(descriptor, 1000) == b"x" * 1000
        with pytest.raises(BadArchiveError, match="exceeds 999 bytes"):
            await client.document(descriptor, 999)
        registry.faults.append(Corrupt("/blobs/"))
        with pytest.raises(BadArchiveError, match="what it sent has the digest"):
            await client.document(descriptor, 1000)


def registry_blob(registry: FakeRegistry, data: bytes) -> dict[str, Any]:
    put = registry.put_blob("x", data)
    return {"digest": put["digest"], "size": put["size"]}


# Whom to ask


async def test_mirrors_are_asked_in_order_until_one_has_it() -> None:
    async with FakeRegistry() as first, FakeRegistry() as second, FakeRegistry() as home:
        second.add("team/app", layer(file("a")), tag="1")
        first.faults.append(Answer("/manifests/", status=503))
        async with asking(first, second, home) as client:
            await client.manifest("1", 1 << 20)
            await client.manifest("1", 1 << 20)
        assert (len(first.seen), len(second.seen), len(home.seen)) == (1, 2, 0)
        assert second.seen[0].query == {"ns": "r.example"}


async def test_the_registry_itself_is_not_told_its_own_name(registry: FakeRegistry) -> None:
    registry.add("team/app", layer(file("a")), tag="1")
    async with asking(registry) as client:
        await client.manifest("1", 1 << 20)
    assert registry.seen[0].query == {}


async def test_a_mirror_that_is_down_or_refuses_costs_nothing_but_the_asking() -> None:
    down = Endpoint("http://127.0.0.1:1/v2")
    async with FakeRegistry(basic=("a", "b")) as closed, FakeRegistry() as home:
        home.add("team/app", layer(file("a")), tag="1")
        async with asking(down, closed, home) as client:
            await client.manifest("1", 1 << 20)


async def test_capabilities_say_who_is_asked_for_what() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        for each in (mirror, home):
            pushed = each.add("team/app", layer(file("a")), tag="1")
        pull_only = Endpoint(f"{mirror.url}/v2", capabilities=frozenset({Capability.PULL}))
        async with asking(pull_only, home) as client:
            await client.manifest(pushed.digest, 1 << 20)
            assert (len(mirror.seen), len(home.seen)) == (1, 0)
            await client.manifest("1", 1 << 20)
            assert (len(mirror.seen), len(home.seen)) == (1, 1)
        nothing = Endpoint(f"{home.url}/v2", is_registry=True, capabilities=frozenset())
        async with asking(nothing) as client:
            with pytest.raises(RegistryUnavailableError, match="no host with the capability pull"):
                await client.manifest(pushed.digest, 1 << 20)


async def test_what_the_registry_itself_says_counts_and_all_are_named() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        mirror.faults.append(Answer("/manifests/", times=99, status=503))
        async with asking(mirror, home) as client:
            with pytest.raises(NotFoundError) as missing:
                await client.manifest("1", 1 << 20)
            home.faults.append(Answer("/manifests/", status=403))
            with pytest.raises(RegistryAuthError) as refused:
                await client.manifest("1", 1 << 20)
    assert str(missing.value).startswith("image 'r.example/team/app:1' not found: ")
    assert f"{mirror.url}: 503 Service Unavailable; {home.url}: 404 Not Found" in str(missing.value)
    assert "r.example/team/app:1: fetching the manifest" in str(refused.value)
    assert len(mirror.seen) == 2


# Trying again


async def test_a_fault_that_passes_is_tried_again(registry: FakeRegistry) -> None:
    registry.add("team/app", layer(file("a")), tag="1")
    registry.faults += [
        Answer("/manifests/", status=429, headers={"Retry-After": "0"}),
        Answer("/manifests/", status=502),
        Cut("/manifests/"),
    ]
    async with asking(registry) as client:
        await client.manifest("1", 1 << 20)


async def test_tries_come_to_an_end_with_the_registrys_words(registry: FakeRegistry) -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'
    registry.faults.append(Answer("/manifests/", times=99, status=429, body=body))
    async with asking(registry) as client:
        with pytest.raises(RegistryUnavailableError) as caught:
            await client.manifest("1", 1 << 20)
    assert str(caught.value) == (
        "RegistryUnavailable: r.example/team/app:1: fetching the manifest: "
        f"{registry.url}: 429 Too Many Requests: slow down"
    )
    assert len(registry.seen) == ROUNDS


async def test_retry_after_is_waited_for_but_not_for_ever(registry: FakeRegistry) -> None:
    registry.add("team/app", layer(file("a")), tag="1")
    loop = asyncio.get_running_loop()
    registry.faults.append(Answer("/manifests/", status=503, headers={"Retry-After": "1"}))
    async with asking(registry) as client:
        started = loop.time()
        await client.manifest("1", 1 << 20)
        assert loop.time() - started >= 1
        registry.faults.append(Answer("/manifests/", status=503, headers={"Retry-After": "3600"}))
        started = loop.time()
        with pytest.raises(RegistryUnavailableError):
            await client.manifest("1", 1 << 20)
        assert loop.time() - started < 1


async def test_out_of_time_in_a_pause_the_reason_for_the_pause_is_told(
    registry: FakeRegistry,
) -> None:
    registry.faults.append(Answer("/manifests/", 9, 429, headers={"Retry-After": "30"}))
    async with asking(registry, stall_s=0.3) as client:
        with pytest.raises(RegistryUnavailableError, match=r"no bytes for 0\.3 s: .*429 Too"):
            await client.manifest("1", 1 << 20)


async def test_a_server_that_says_nothing_leaves_time_for_the_next() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        for each in (mirror, home):
            each.put_blob("x", BLOB)
        mirror.paused = asyncio.Event()
        sink = Bytes()
        async with asking(mirror, home, stall_s=1) as client:
            await client.download(DESCRIPTOR, sink)
        mirror.paused.set()
    assert sink.data == BLOB


# Layers


async def test_a_broken_transfer_goes_on_where_it_broke(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults += [Cut("/blobs/", after_bytes=1 << 20), Cut("/blobs/", after_bytes=1 << 19)]
    sink = Bytes()
    async with asking(registry) as client:
        await client.download(DESCRIPTOR, sink)
    assert sink.data == BLOB
    assert len(registry.seen) == 3
    starts = [int(seen.headers["Range"][6:-1]) for seen in registry.seen[1:]]
    assert 0 < starts[0] <= 1 << 20
    assert starts[0] < starts[1] < len(BLOB)


async def test_a_server_without_ranges_sends_it_all_again(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults += [Cut("/blobs/", after_bytes=1 << 20), IgnoreRange("/blobs/")]
    sink = Bytes()
    async with asking(registry) as client:
        await client.download(DESCRIPTOR, sink)
    assert sink.data == BLOB


@pytest.mark.parametrize(
    "bad",
    [
        BadRange("/blobs/", status=416),
        BadRange("/blobs/", status=416, content_range="bytes */*"),
        BadRange("/blobs/", status=400),
        BadRange("/blobs/", status=501),
        BadRange("/blobs/", status=206),
        BadRange("/blobs/", status=206, content_range="bytes 0-"),
        BadRange("/blobs/", status=206, content_range="items 5-6/7"),
    ],
    ids=lambda bad: f"{bad.status} {bad.content_range}",
)
async def test_a_server_that_gets_ranges_wrong_is_asked_for_all_of_it_once(
    registry: FakeRegistry, bad: BadRange
) -> None:
    registry.put_blob("x", BLOB)
    registry.faults += [Cut("/blobs/", after_bytes=1 << 20), replace(bad, times=1)]
    sink = Bytes()
    async with asking(registry) as client:
        await client.download(DESCRIPTOR, sink)
    assert sink.data == BLOB
    assert ["Range" in seen.headers for seen in registry.seen] == [False, True, False]


async def test_after_a_wrong_range_and_a_failure_the_next_server_is_asked() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        for each in (mirror, home):
            each.put_blob("x", BLOB)
        mirror.faults += [
            Cut("/blobs/", after_bytes=1 << 20),
            BadRange("/blobs/", status=416),
            Answer("/blobs/", status=418),
        ]
        home.faults.append(Answer("/blobs/", status=503))
        sink = Bytes()
        async with asking(mirror, home) as client:
            await client.download(DESCRIPTOR, sink)
        assert sink.data == BLOB
        assert (len(mirror.seen), len(home.seen)) == (3, 2)


async def test_a_part_that_nobody_asked_for_is_no_answer(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    for status in (206, 416):
        registry.faults.append(BadRange("/blobs/", status=status, content_range="bytes 5-"))
        async with asking(registry) as client:
            with pytest.raises(RegistryUnavailableError, match=f"{registry.host}: {status}"):
                await client.download(DESCRIPTOR, Bytes())


async def test_another_server_goes_on_where_one_broke() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        for each in (mirror, home):
            each.put_blob("x", BLOB)
        mirror.faults.append(Cut("/blobs/", after_bytes=1 << 20))
        sink = Bytes()
        async with asking(mirror, home) as client:
            await client.download(DESCRIPTOR, sink)
        assert "Range" in home.seen[0].headers
    assert sink.data == BLOB


async def test_a_stalled_transfer_goes_on_over_a_new_connection(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults.append(Stall("/blobs/", after_bytes=1 << 20))
    sink = Bytes()
    async with asking(registry, stall_s=1) as client:
        await client.download(DESCRIPTOR, sink)
    assert sink.data == BLOB


async def test_a_transfer_that_always_stalls_is_given_up(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults.append(Stall("/blobs/", times=99))
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asking(registry, stall_s=0.4) as client:
        with pytest.raises(RegistryUnavailableError, match=r"no bytes for 0\.4 s"):
            await client.download(DESCRIPTOR, Bytes())
    assert 0.4 <= loop.time() - started < 2


async def test_every_byte_restarts_the_clock(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults += [Stall("/blobs/", after_bytes=n << 18) for n in range(1, 4)]
    async with asking(registry, stall_s=0.6) as client:
        await client.download(DESCRIPTOR, Bytes())


async def test_transfers_that_always_break_are_given_up(registry: FakeRegistry) -> None:
    registry.put_blob("x", BLOB)
    registry.faults.append(Cut("/blobs/", times=99, after_bytes=10))
    async with asking(registry) as client:
        with pytest.raises(RegistryUnavailableError, match=f"fetching layer {DESCRIPTOR.digest}"):
            await client.download(DESCRIPTOR, Bytes())
    assert len(registry.seen) == ROUNDS


async def test_more_bytes_than_promised_are_not_taken(registry: FakeRegistry) -> None:
    digest = registry.put_blob("x", BLOB)["digest"]
    sink = Bytes()
    async with asking(registry) as client:
        with pytest.raises(BadArchiveError, match="more than the 1000 bytes"):
            await client.download(Descriptor(digest=digest, size=1000), sink)
    assert sink.received <= 1000


async def test_a_connection_that_stays_open_behind_a_whole_blob_is_not_waited_for(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_module, "_TRAILER_S", 0.05)
    registry.put_blob("x", BLOB)
    # The answer promises more than the descriptor, and then nothing more comes, or the connection breaks.
    short = Descriptor(digest=digest_of(BLOB[:-1]), size=len(BLOB) - 1)
    for fault in (Stall, Cut):
        registry.blobs[short.digest] = BLOB
        registry.faults.append(fault(short.digest, after_bytes=len(BLOB) - 1))
        sink = Bytes()
        async with asking(registry, stall_s=60) as client:
            started = asyncio.get_running_loop().time()
            await client.download(short, sink)
            assert asyncio.get_running_loop().time() - started < 2
        assert sink.data == BLOB[:-1]
    assert registry.count("GET", short.digest) == 2


async def test_a_blob_that_is_not_there_is_named(registry: FakeRegistry) -> None:
    async with asking(registry) as client:
        with pytest.raises(NotFoundError) as caught:
            await client.download(DESCRIPTOR, Bytes())
    assert caught.value.key == DESCRIPTOR.digest
    assert "r.example/team/app:1" in str(caught.value)
    assert "blob unknown to registry" in str(caught.value)


async def test_after_wrong_bytes_another_server_is_asked_first() -> None:
    async with FakeRegistry() as mirror, FakeRegistry() as home:
        for each in (mirror, home):
            each.put_blob("x", BLOB)
        other = Descriptor(**registry_blob(home, b"another"))
        async with asking(mirror, home) as client:
            await client.download(DESCRIPTOR, Bytes())
            # Another layer has made the home the first to be asked; it is so again for this one, for its own reason.
            await client.download(other, Bytes())
            await client.download(DESCRIPTOR, Bytes())
            await client.download(DESCRIPTOR, Bytes())
        assert (mirror.count("GET", DESCRIPTOR.digest), home.count("GET", DESCRIPTOR.digest)) == (
            1,
            2,
        )


async def test_an_empty_blob_is_downloaded_too(registry: FakeRegistry) -> None:
    digest = registry.put_blob("x", b"")["digest"]
    sink = Bytes()
    async with asking(registry) as client:
        await client.download(Descriptor(digest=digest, size=0), sink)
    assert sink.data == b""
