"""The image calls of the admin service, over a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    BadArchiveError,
    CorruptStateError,
    CriShimError,
    RegistryUnavailableError,
)
from cri_shim.image.integrity.report import Damage, Finding, Unrepaired
from cri_shim.image.model import ImportProgress, PullProgress, PullStep
from cri_shim.image.registry.credentials import Credentials
from cri_shim.rpc.admin_images import step_text
from cri_shim.rpc.client import Client, errors_of
from tests.fakes.clock import until
from tests.unit.rpc.fakes import Clients, FakeArchive, make_image, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

pytestmark = pytest.mark.asyncio

OPTIONS = admin.ImportImageRequest(options=admin.ImportOptions(name="me/x:1", archive_bytes=6))


def chunk(data: bytes) -> admin.ImportImageRequest:
    return admin.ImportImageRequest(chunk=data)


async def run_import(
    clients: Clients, requests: Iterable[admin.ImportImageRequest]
) -> list[admin.ImportImageResponse]:
    return [answer async for answer in clients.admin.ImportImage(iter(requests))]


async def failure_of_import(clients: Clients, *requests: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await run_import(clients, requests)
    return failure.value


def failure_of_the_command_line(socket: Path, requests: list[Any]) -> str:
    """As `cri-shim image import` calls: grpc's asyncio client, which it isn't, may lose an answer that comes early."""
    with Client(socket) as client, pytest.raises(CriShimError) as failure, errors_of("import"):
        for _ in client.admin.ImportImage(iter(requests)):
            pass
    return str(failure.value)


async def test_an_archive_reaches_the_store_in_order_and_its_images_come_back(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        answers = await run_import(clients, [OPTIONS, chunk(b"abc"), chunk(b"def")])
        assert daemon.images.archives == [("me/x:1", b"abcdef")]
    *steps, last = answers
    assert [(i.id[-6:], list(i.names)) for i in last.imported.images] == [("abcdef", ["me/x:1"])]
    progress = [answer.progress for answer in steps]
    assert progress
    assert progress[0].step == "receiving the archive"
    assert progress[0].total_bytes == 6
    assert all(step.done_bytes <= 6 for step in progress)


async def test_an_import_without_a_name_keeps_those_of_the_archive(tmp_path: Path) -> None:
    options = admin.ImportImageRequest(options=admin.ImportOptions())
    async with serving(tmp_path) as (daemon, clients):
        await run_import(clients, [options, chunk(b"abc")])
        assert daemon.images.archives == [(None, b"abc")]


async def test_the_stores_refusal_reaches_the_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.import_failure = BadArchiveError("not an archive")
        failure = await failure_of_import(clients, OPTIONS, chunk(b"abcdef"))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.details() == "not an archive"


@pytest.mark.parametrize("sent", [b"abc", b"abcdefg"])
async def test_an_archive_of_another_size_than_announced_is_refused(
    tmp_path: Path, sent: bytes
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        failure = await failure_of_import(clients, OPTIONS, chunk(sent))
        assert not daemon.images.archives
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"ended after {len(sent)} of 6 bytes" in (failure.details() or "")


@pytest.mark.parametrize("fails_early", [False, True])
async def test_a_refusal_reaches_a_client_that_has_much_to_send(
    tmp_path: Path, fails_early: bool
) -> None:
    async with serving(tmp_path) as (daemon, _):
        daemon.images.import_failure = BadArchiveError("not an archive")
        daemon.images.fails_early = fails_early
        options = admin.ImportImageRequest(options=admin.ImportOptions())
        pieces = [chunk(bytes(500_000)) for _ in range(40)]
        failure = await asyncio.to_thread(
            failure_of_the_command_line, daemon.socket_path, [options, *pieces]
        )
    assert "not an archive" in failure


@pytest.mark.parametrize(
    ("requests", "complaint"),
    [
        ([], "the first message must carry `options`"),
        ([chunk(b"abc")], "the first message must carry `options`"),
        ([OPTIONS, OPTIONS], "each must carry a `chunk`"),
        ([OPTIONS, admin.ImportImageRequest()], "each must carry a `chunk`"),
    ],
)
async def test_messages_out_of_order_are_refused(
    tmp_path: Path, requests: list[admin.ImportImageRequest], complaint: str
) -> None:
    async with serving(tmp_path) as (daemon, clients):
        failure = await failure_of_import(clients, *requests)
        assert not daemon.images.archives
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in (failure.details() or "")


async def test_a_client_that_goes_away_undoes_its_import(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[admin.ImportImageRequest]:
        yield OPTIONS
        yield chunk(b"abc")
        await asyncio.Event().wait()

    async with serving(tmp_path) as (daemon, clients):
        call = clients.admin.ImportImage(endless())
        await daemon.images.import_started.wait()
        call.cancel()
        await until(lambda: daemon.images.imports_cut_off and not daemon.gate.inside)
        assert daemon.images.imports_cut_off == 1
        assert not daemon.images.archives
        assert daemon.gate.inside == 0


async def test_steps_of_the_store_are_put_into_words() -> None:
    assert step_text(ImportProgress("received", "", 1, 1)) == "archive received"
    assert step_text(ImportProgress("layer", "a:1", 2, 5)) == "a:1: layer 2 of 5 unpacked"
    assert step_text(ImportProgress("committed", "a:1", 5, 5)) == "a:1: committed"


A = "docker.io/library/a:1"


def spec(name: str) -> api.ImageSpec:
    return api.ImageSpec(image=name)


async def test_a_pull_tells_each_layer_and_then_the_image(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        daemon.images.pull_steps = [
            PullProgress(PullStep.HERE, "sha256:1", 5, 5),
            PullProgress(PullStep.DOWNLOADING, "sha256:2", 3, 9),
            PullProgress(PullStep.DONE, "sha256:2", 9, 9),
        ]
        request = admin.PullImageRequest(
            image=spec(A), auth=api.AuthConfig(username="me", password="hunter2")
        )
        *steps, last = [answer async for answer in clients.admin.PullImage(request)]
        assert daemon.images.pulls == [(A, Credentials(username="me", password="hunter2"))]
    assert last.pulled.id == daemon.images.held[0].id
    heard = {answer.layer.digest: answer.layer for answer in steps}
    assert heard["sha256:1"].state == admin.LayerProgress.HERE
    done = heard["sha256:2"]
    assert (done.state, done.done_bytes, done.total_bytes) == (admin.LayerProgress.DONE, 9, 9)


async def test_a_pull_that_nobody_waits_for_is_abandoned(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.pull_hold = asyncio.Event()
        daemon.images.pull_steps = [PullProgress(PullStep.DOWNLOADING, "sha256:2", 3, 9)]
        call = clients.admin.PullImage(admin.PullImageRequest(image=spec(A)))
        async for _ in call:
            call.cancel()
            break
        await until(lambda: daemon.images.pulls_abandoned)
        assert daemon.images.pulls_abandoned == 1
        assert daemon.gate.inside == 0


async def test_a_failed_pull_has_the_code_and_words_of_its_cause(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.pull_failure = RegistryUnavailableError("r.example: refused")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            [_ async for _ in clients.admin.PullImage(admin.PullImageRequest(image=spec(A)))]
        with pytest.raises(grpc.aio.AioRpcError) as nameless:
            [_ async for _ in clients.admin.PullImage(admin.PullImageRequest())]
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "RegistryUnavailable: r.example: refused"
    assert nameless.value.details() == "PullImageRequest: image is required"


async def test_an_export_is_its_size_and_then_its_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        request = admin.ExportImageRequest(images=[spec(A)])
        first, *others = [answer async for answer in clients.admin.ExportImage(request)]
        assert daemon.images.exports == [[A]]
        assert daemon.images.archive.was_closed
    assert first.start.archive_bytes == 6
    assert b"".join(answer.chunk for answer in others) == b"abcdef"


async def test_an_export_that_is_cut_off_lets_go_of_the_archive(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        daemon.images.archive = FakeArchive([bytes(500_000)] * 1000)
        call = clients.admin.ExportImage(admin.ExportImageRequest(images=[spec(A)]))
        async for _ in call:
            call.cancel()
            break
        await until(lambda: daemon.images.archive.was_closed)
        assert daemon.images.archive.was_closed


async def test_an_export_of_nothing_of_none_and_of_damaged_images_is_refused(
    tmp_path: Path,
) -> None:
    async def failure_of(clients: Clients, *images: api.ImageSpec) -> grpc.aio.AioRpcError:
        request = admin.ExportImageRequest(images=images)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            [_ async for _ in clients.admin.ExportImage(request)]
        return failure.value

    async with serving(tmp_path) as (daemon, clients):
        nothing = await failure_of(clients)
        nameless = await failure_of(clients, api.ImageSpec())
        absent = await failure_of(clients, spec(A))
        daemon.images.held = [make_image(1, A)]
        daemon.images.archive = FakeArchive([b"abc"], CorruptStateError("blob damaged"))
        damaged = await failure_of(clients, spec(A))
    assert nothing.details() == "ExportImageRequest: images is required"
    assert nameless.details() == "ImageSpec: image is required"
    assert absent.code() is grpc.StatusCode.NOT_FOUND
    assert damaged.code() is grpc.StatusCode.DATA_LOSS


LAYER = Finding(Damage.LAYER_ALTERED, "sha256:1", (A,), "etc/passwd has other bytes")
BLOB = Finding(Damage.BLOB, "sha256:2", (A,), "its bytes have another digest")


async def test_a_check_tells_each_damage_and_the_sums(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.held = [make_image(1, A)]
        daemon.images.findings = [LAYER]
        request = admin.CheckImagesRequest(images=[spec(A)])
        answers = [answer async for answer in clients.admin.CheckImages(request)]
        assert daemon.images.checks == [([A], False)]
    progress, damage, last = answers
    assert (progress.progress.step, progress.progress.total_bytes) == (
        "checking layer sha256:1",
        10,
    )
    assert (damage.damage.kind, damage.damage.object) == ("layer altered", "sha256:1")
    assert (list(damage.damage.images), damage.damage.repaired) == ([A], False)
    sums = last.checked
    assert (sums.images, sums.layers, sums.blobs, sums.bytes) == (1, 2, 3, 4096)
    assert not sums.sound


async def test_a_repair_tells_what_it_mended_and_why_it_could_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.images.findings = [LAYER, BLOB]
        daemon.images.unrepaired = [Unrepaired(BLOB, "no registry has it")]
        request = admin.CheckImagesRequest(repair=True)
        answers = [answer async for answer in clients.admin.CheckImages(request)]
        assert daemon.images.checks == [([], True)]
        daemon.images.unrepaired = []
        *_, whole = [answer async for answer in clients.admin.CheckImages(request)]
    damages = [answer.damage for answer in answers if answer.HasField("damage")]
    assert [(each.object, each.repaired, each.reason) for each in damages] == [
        ("sha256:1", True, ""),
        ("sha256:2", False, "no registry has it"),
    ]
    assert not answers[-1].checked.sound
    assert whole.checked.sound


async def test_a_collection_tells_what_went(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        answer = await clients.admin.CollectImages(
            admin.CollectImagesRequest(dry_run=True, untagged=True)
        )
        assert daemon.images.collections == [(True, True)]
    assert list(answer.images) == ["old:1", "sha256:aa"]
    assert (answer.layers, answer.blobs, answer.freed_bytes) == (1, 2, 3 << 20)
    assert (answer.leftovers, answer.freed_inodes) == (0, 40)
