from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import cri_shim
from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.errors import BadArchiveError, CriShimError
from cri_shim.image.model import ImportProgress
from cri_shim.rpc.admin_service import step_text
from cri_shim.rpc.client import Client, errors_of
from tests.unit.rpc.fakes import Clients, serving

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
        await asyncio.sleep(3600)

    async with serving(tmp_path) as (daemon, clients):
        call = clients.admin.ImportImage(endless())
        await daemon.images.import_started.wait()
        call.cancel()
        for _ in range(200):
            if daemon.images.imports_cut_off:
                break
            await asyncio.sleep(0.01)
        assert daemon.images.imports_cut_off == 1
        assert not daemon.images.archives
        assert daemon.gate.inside == 0


async def test_info_tells_what_the_daemon_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        info = await clients.admin.Info(admin.InfoRequest())
    assert (info.version, info.pid) == (cri_shim.__version__, os.getpid())
    assert (info.root, info.state) == ("/var/lib/cri-shim", "/run/cri-shim")
    assert [(h.name, h.version) for h in info.handlers] == [("runc", "1.1.5")]


async def test_steps_of_the_store_are_put_into_words() -> None:
    assert step_text(ImportProgress("received", "", 1, 1)) == "archive received"
    assert step_text(ImportProgress("layer", "a:1", 2, 5)) == "a:1: layer 2 of 5 unpacked"
    assert step_text(ImportProgress("committed", "a:1", 5, 5)) == "a:1: committed"
