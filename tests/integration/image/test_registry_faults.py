"""Debian's docker-registry behind a proxy with a schedule of faults: pulls end right, or say why and leave nothing."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import BadArchiveError, DamagedBlobError, RegistryUnavailableError
from cri_shim.image.pull import Puller
from cri_shim.image.registry import client as registry_module
from tests.fakes.registry import Answer, Corrupt, Cut, Fault, IgnoreRange, Stall
from tests.harness.fault_proxy import Endless, EndlessHead, FaultProxy, Pause, WrongLength
from tests.harness.registry import docker_registry
from tests.images import file, layer
from tests.integration.image.scene import case, files_of, settings, trees

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri_shim.image.store import ImageStore
    from tests.harness.registry import DockerRegistry

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

NOISE = [random.Random(seed).randbytes(1_000_000) for seed in range(3)]
A = layer(file("a", NOISE[0]), compression="gzip")
B = layer(file("b", NOISE[1]), compression="zstd")
C = layer(file("c", NOISE[2]))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push("team/app", "1", A, B, C)
        yield registry


@pytest_asyncio.fixture
async def proxy(registry: DockerRegistry) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(registry.host) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def puller(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Puller]:
    monkeypatch.setattr(registry_module, "_FIRST_PAUSE_S", 0.01)
    puller = Puller(store, settings(tmp_path, 4))
    yield puller
    await puller.close(0)


def contents(store: ImageStore, name: str) -> list[object]:
    image = store.find(name)
    assert image is not None
    return [tree[key][-1] for tree, key in zip(trees(store, image), "cba", strict=True)]


async def test_a_pull_gets_through_a_day_on_which_everything_goes_wrong(
    puller: Puller, store: ImageStore, proxy: FaultProxy
) -> None:
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    proxy.faults += [
        Answer("/manifests/", status=429, headers={"Retry-After": soon}),
        Answer("/manifests/", status=503, headers={"Retry-After": "0"}),
        Cut("/manifests/", after_bytes=50),
        WrongLength("/manifests/", by=10),
        Cut(A.digest, after_bytes=300_000),
        Cut(A.digest, after_bytes=200_000),
        Answer(A.digest, status=502),
        Corrupt(B.digest, at=5000),
        Pause(B.digest, after_bytes=7000, seconds=0.5),
        Stall(C.digest, after_bytes=400_000),
        Cut(C.digest, after_bytes=100_000),
        IgnoreRange(C.digest),
    ]
    name = f"{proxy.host}/team/app:1"
    began = time.monotonic()
    await puller.pull(name)
    assert time.monotonic() - began > 0.9  # what Retry-After asked for, as a date of whole seconds
    assert contents(store, name) == NOISE[::-1]
    for layer_of_many_tries, tries in ((A, 4), (C, 3)):
        first, *others = proxy.ranges(layer_of_many_tries.digest)
        assert first == ""
        assert len(others) == tries - 1
        assert all(each.startswith("bytes=") for each in others)
    assert proxy.ranges(B.digest) == ["", ""]
    assert all(fault.times == 0 for fault in proxy.faults)
    assert proxy.sent_bytes < 5_000_000  # three layers, one of them twice, half of another again


async def test_a_length_that_is_a_lie_is_found_out(
    puller: Puller, store: ImageStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    for by in (1000, -1000, -999_000):
        with case(by):
            await pull_of_a_wrong_length(puller, store, proxy, tmp_path, by)


async def pull_of_a_wrong_length(
    puller: Puller, store: ImageStore, proxy: FaultProxy, tmp_path: Path, by: int
) -> None:
    proxy.seen.clear()
    proxy.faults.append(WrongLength(C.digest, by=by))
    told = ""
    try:
        await puller.pull(f"{proxy.host}/team/app:1")
    except RegistryUnavailableError as error:
        told = str(error)
    if told:
        # What follows a body that is said to be shorter may come with it, and is no HTTP.
        assert by < 0
        assert "not HTTP" in told
        assert files_of(tmp_path) == []
    else:
        assert contents(store, f"{proxy.host}/team/app:1") == NOISE[::-1]
        # What has come and was not read yet goes with a connection that ends too early.
        assert len(proxy.ranges(C.digest)) <= 2
        await store.remove(f"{proxy.host}/team/app:1")


async def test_without_a_timeout_a_stalled_transfer_is_waited_for(
    puller: Puller, store: ImageStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults += [
        Pause("/manifests/", after_bytes=20, seconds=0.3),
        Pause(C.digest, after_bytes=20, seconds=1.3),
    ]
    puller.reconfigure(settings(tmp_path, 0))
    await puller.pull(f"{proxy.host}/team/app:1")
    assert proxy.ranges(C.digest) == [""]


WORDS: list[tuple[Fault, type[Exception] | tuple[type[Exception], ...], str]] = [
    (Answer("/manifests/", status=500), RegistryUnavailableError, "500 Fault"),
    (
        Answer("/manifests/", status=429, headers={"Retry-After": "3600"}),
        RegistryUnavailableError,
        "429 Fault",
    ),
    (Answer("/manifests/", status=404, body=b"\xff\x1b[2J"), Exception, "not found"),
    (Cut("/manifests/"), RegistryUnavailableError, "broke before the end"),
    (
        Stall("/manifests/", after_bytes=9),
        RegistryUnavailableError,
        "no answer in time|no bytes",
    ),
    (Corrupt("/manifests/", at=9), BadArchiveError, "what it sent has the digest"),
    (Endless("/manifests/"), BadArchiveError, "exceeds 4194304 bytes"),
    (EndlessHead("/manifests/"), RegistryUnavailableError, "not HTTP|no answer in time"),
    (
        WrongLength("/manifests/", by=-9),
        (BadArchiveError, RegistryUnavailableError),
        "not HTTP|what it sent has the digest",
    ),
    (Answer(C.digest, status=429), RegistryUnavailableError, "429 Fault"),
    (Answer(C.digest, status=416), RegistryUnavailableError, "416"),
    (Cut(C.digest), RegistryUnavailableError, "broke before the end"),
    (Stall(C.digest), RegistryUnavailableError, "no bytes for 1 s"),
    (Corrupt(C.digest, at=900_000), DamagedBlobError, "the bytes from http.* have the digest"),
    (Corrupt(A.digest, at=20), DamagedBlobError, "the bytes from http.* have the digest"),
    (Endless(C.digest), BadArchiveError, "more than the 100[0-9]+ bytes that the manifest"),
    (EndlessHead(C.digest), RegistryUnavailableError, "not HTTP|no bytes"),
]


async def test_what_does_not_pass_is_told_in_its_words_and_leaves_nothing(
    puller: Puller, proxy: FaultProxy, tmp_path: Path
) -> None:
    puller.reconfigure(settings(tmp_path, 1))
    for fault, error, words in WORDS:
        with case(fault):
            proxy.faults[:] = [replace(fault, times=10_000)]
            began = time.monotonic()
            with pytest.raises(error, match=words) as refused:
                await puller.pull(f"{proxy.host}/team/app:1")
            assert time.monotonic() - began < 8
            assert str(refused.value).isprintable()
            assert proxy.host in str(refused.value)
            assert files_of(tmp_path) == []
    proxy.faults.clear()
    await puller.pull(f"{proxy.host}/team/app:1")
