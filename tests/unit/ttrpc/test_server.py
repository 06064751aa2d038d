"""The ttrpc server: what it answers to methods that fail, hang or are not there, and to bytes that are no request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.ttrpc.v1 import ttrpc_pb2
from cri_shim.ttrpc import server as module
from cri_shim.ttrpc import wire
from cri_shim.ttrpc.errors import CallError, Code
from tests.fakes.clock import turn_over
from tests.fakes.ttrpc import client_of, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


class Hanging:
    """A method that never answers, and how often it was begun and cancelled."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.changed = asyncio.Event()

    async def __call__(self, _request: bytes) -> bytes:
        self.begun += 1
        self.changed.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.changed.set()
            raise
        raise AssertionError

    async def until(self, *, begun: int = 0, cancelled: int = 0) -> None:
        while self.begun < begun or self.cancelled < cancelled:
            self.changed.clear()
            await self.changed.wait()


async def fail(_request: bytes) -> bytes:
    raise KeyError("secret")


async def too_much(_request: bytes) -> bytes:
    return bytes(wire.MAX_BODY_BYTES + 1)


async def test_a_fault_of_ours_has_no_words(short_path: Path) -> None:
    async with client_of({"s": {"Fail": fail}}, short_path / "s") as client:
        with pytest.raises(CallError) as refusal:
            await client.call("s", "Fail", b"", timeout_s=5)
    assert (refusal.value.code, refusal.value.message) == (Code.INTERNAL, "the method failed")


async def test_an_answer_that_is_too_long_is_refused(short_path: Path) -> None:
    async with client_of({"s": {"Much": too_much}}, short_path / "s") as client:
        with pytest.raises(CallError) as refusal:
            await client.call("s", "Much", b"", timeout_s=5)
    assert refusal.value.code == Code.RESOURCE_EXHAUSTED


async def test_a_deadline_and_a_lost_connection_cancel_the_method(short_path: Path) -> None:
    hanging = Hanging()
    async with client_of({"s": {"Hang": hanging}}, short_path / "s") as client:
        with pytest.raises((TimeoutError, CallError)):
            await client.call("s", "Hang", b"", timeout_s=0.01)
        await hanging.until(cancelled=1)
        waiting = asyncio.create_task(client.call("s", "Hang", b"", timeout_s=None))
        await hanging.until(begun=2)
        client.close()
        await asyncio.wait([waiting])
        assert waiting.exception() is not None
        await hanging.until(cancelled=2)


async def test_bytes_that_are_no_request_are_refused_and_the_connection_goes_on(
    short_path: Path,
) -> None:
    async def echo(request: bytes) -> bytes:
        return request

    async with serving({"s": {"Echo": echo}}, short_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(short_path / "s"))
        decoder = wire.Decoder()

        async def answer() -> ttrpc_pb2.Response:
            while not (frames := decoder.receive_data(await reader.read(1 << 16))):
                pass
            (frame,) = frames
            assert isinstance(frame, wire.Frame)
            return ttrpc_pb2.Response.FromString(frame.body)

        writer.write(wire.encode(wire.Frame(1, wire.REQUEST, 0, b"\xff")))
        assert (await answer()).status.code == Code.INVALID_ARGUMENT
        writer.write(b"\x00\x40\x00\x01" + b"\0\0\0\3" + b"\1\0")
        assert (await answer()).status.code == Code.RESOURCE_EXHAUSTED
        writer.write(bytes((4 << 20) + 1))
        writer.write(wire.encode(wire.Frame(5, wire.DATA, 0, b"ignored")))
        request = ttrpc_pb2.Request(service="s", method="Echo", payload=b"hello")
        writer.write(wire.encode(wire.Frame(7, wire.REQUEST, 0, request.SerializeToString())))
        assert (await answer()).payload == b"hello"
        writer.close()
        await turn_over()


async def test_a_connection_has_a_bounded_number_of_calls(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 2)
    hanging = Hanging()
    async with client_of({"s": {"Hang": hanging}}, short_path / "s") as client:
        calls = [
            asyncio.create_task(client.call("s", "Hang", b"", timeout_s=None)) for _ in range(3)
        ]
        await hanging.until(begun=2)
        await turn_over()
        assert hanging.begun == 2
        for each in calls:
            each.cancel()
        await asyncio.wait(calls)
