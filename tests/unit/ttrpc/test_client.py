"""The ttrpc client: answers, refusals, deadlines, and an other side that hangs or goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.ttrpc.v1 import ttrpc_pb2
from cri_shim.ttrpc import client as module
from cri_shim.ttrpc import wire
from cri_shim.ttrpc.client import Client
from cri_shim.ttrpc.errors import CallError, Code, ConnectionLostError
from tests.fakes.clock import turn_over
from tests.fakes.ttrpc import client_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


async def echo(request: bytes) -> bytes:
    return request


async def never(_request: bytes) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def refuse(_request: bytes) -> bytes:
    raise CallError(Code.NOT_FOUND, "no such thing")


SERVICES = {"s": {"Echo": echo, "Never": never, "Refuse": refuse}}


async def test_calls_are_answered_each_with_its_own(short_path: Path) -> None:
    async with client_of(SERVICES, short_path / "s") as client:
        answers = await asyncio.gather(
            *(client.call("s", "Echo", b"%d" % n, timeout_s=5) for n in range(50))
        )
    assert answers == [b"%d" % n for n in range(50)]


async def test_a_refusal_has_its_code_and_words(short_path: Path) -> None:
    async with client_of(SERVICES, short_path / "s") as client:
        with pytest.raises(CallError, match="no such thing") as refusal:
            await client.call("s", "Refuse", b"", timeout_s=5)
        assert refusal.value.code == Code.NOT_FOUND
        with pytest.raises(CallError) as refusal:
            await client.call("s", "Else", b"", timeout_s=5)
        assert refusal.value.code == Code.UNIMPLEMENTED


async def test_a_call_ends_at_its_deadline_and_others_go_on(short_path: Path) -> None:
    async with client_of(SERVICES, short_path / "s") as client:
        waiting = asyncio.create_task(client.call("s", "Never", b"", timeout_s=None))
        with pytest.raises((TimeoutError, CallError)):
            await client.call("s", "Never", b"", timeout_s=0.01)
        assert await client.call("s", "Echo", b"x", timeout_s=5) == b"x"
        assert client.calls == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert client.calls == 0


async def test_a_request_has_deadline_and_metadata(short_path: Path) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (frame,) = wire.Decoder().receive_data(await reader.read(1000))
        heard.set_result(frame)
        writer.close()

    server = await asyncio.start_unix_server(listen, str(short_path / "s"))
    client = await Client.connect(short_path / "s", {"namespace": "n"})
    with pytest.raises(ConnectionLostError):
        await client.call("service", "Method", b"payload", timeout_s=2.5)
    frame = await heard
    request = ttrpc_pb2.Request.FromString(frame.body)
    assert (frame.stream, frame.type, frame.flags) == (1, wire.REQUEST, 0)
    assert (request.service, request.method, request.payload) == ("service", "Method", b"payload")
    assert request.timeout_nano == 2_500_000_000
    assert [(each.key, each.value) for each in request.metadata] == [("namespace", "n")]
    assert client.closed
    server.close()
    await turn_over()


async def test_without_a_connection_each_call_says_so(short_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match="nobody"):
        await Client.connect(short_path / "nobody", {})
    async with client_of(SERVICES, short_path / "s") as client:
        waiting = asyncio.create_task(client.call("s", "Never", b"", timeout_s=None))
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(ConnectionLostError):
            await waiting
        with pytest.raises(ConnectionLostError):
            await client.call("s", "Echo", b"", timeout_s=1)


async def test_answers_that_make_no_sense_fail_their_call_alone(short_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(wire.encode(wire.Frame(99, wire.RESPONSE, 0, b"nobody's")))
        writer.write(wire.encode(wire.Frame(1, wire.DATA, 0, b"data")))
        writer.write(wire.encode(wire.Frame(1, wire.RESPONSE, 0, b"\xff\xff")))
        await reader.read(1000)
        writer.write(b"\x7f\xff\xff\xff" + b"\0\0\0\3" + b"\2\0" + b"x" * 100)
        await reader.read(1000)
        writer.close()

    server = await asyncio.start_unix_server(answer, str(short_path / "s"))
    client = await Client.connect(short_path / "s", {})
    with pytest.raises(CallError, match="no ttrpc response"):
        await client.call("s", "One", b"", timeout_s=5)
    with pytest.raises(CallError, match="too long"):
        await client.call("s", "Two", b"", timeout_s=5)
    client.close()
    server.close()
    await turn_over()


async def test_an_other_side_that_answers_nothing_is_not_sent_ever_more(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 3)
    async with client_of(SERVICES, short_path / "s") as client:
        waiting = [
            asyncio.create_task(client.call("s", "Never", b"", timeout_s=None)) for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ConnectionLostError, match="3 calls wait"):
            await client.call("s", "Echo", b"", timeout_s=1)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
