"""A ttrpc server: services by name, each a mapping from methods to coroutines.

Rules:
- A method gets the request's bytes and returns those of its answer. What it raises as `CallError` is the client's
  answer; anything else is a fault of ours, answered as INTERNAL without its text.
- A call is cancelled at the client's deadline, and when its connection ends.
- Bounded are the calls under way and the unread answers of each connection: beyond, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from cri_shim._pb.ttrpc.v1 import ttrpc_pb2
from cri_shim.ttrpc import wire
from cri_shim.ttrpc.errors import CallError, Code

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cri_shim.background import Background

    Method = Callable[[bytes], Awaitable[bytes]]
    Services = Mapping[str, Mapping[str, Method]]

log = structlog.get_logger()
MAX_CALLS = 256
READ_BYTES = 64 << 10


class Server:
    """Serves connections until it is closed."""

    def __init__(self, services: Services, background: Background) -> None:
        self._services = services
        self._background = background
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end: a callback for `asyncio.start_unix_server`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._connections.add(task)
        calls: set[asyncio.Task[None]] = set()
        slots = asyncio.Semaphore(MAX_CALLS)
        try:
            await self._read(reader, writer, calls, slots)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for call in calls:
                call.cancel()
            writer.close()

    def close(self) -> None:
        """End every connection."""
        for task in self._connections:
            task.cancel()

    async def _read(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        calls: set[asyncio.Task[None]],
        slots: asyncio.Semaphore,
    ) -> None:
        decoder = wire.Decoder()
        while data := await reader.read(READ_BYTES):
            for frame in decoder.receive_data(data):
                if frame.type != wire.REQUEST:
                    continue
                await slots.acquire()
                call = self._background.keep("ttrpc call", self._answer(frame, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
                call.add_done_callback(lambda _: slots.release())

    async def _answer(self, frame: wire.Frame | wire.TooLong, writer: asyncio.StreamWriter) -> None:
        try:
            answer = ttrpc_pb2.Response(payload=await self._call(frame))
            sent = wire.Frame(frame.stream, wire.RESPONSE, 0, answer.SerializeToString())
            writer.write(wire.encode(sent))
        except CallError as error:
            writer.write(_refusal(frame.stream, error.code, error.message))
        except wire.MessageTooLongError as error:
            writer.write(_refusal(frame.stream, Code.RESOURCE_EXHAUSTED, str(error)))
        await writer.drain()

    async def _call(self, frame: wire.Frame | wire.TooLong) -> bytes:
        if isinstance(frame, wire.TooLong):
            raise CallError(
                Code.RESOURCE_EXHAUSTED,
                f"a message of {frame.length} bytes: at most {wire.MAX_BODY_BYTES} are read",
            )
        try:
            request = ttrpc_pb2.Request.FromString(frame.body)
        except DecodeError:
            raise CallError(Code.INVALID_ARGUMENT, "this is no ttrpc request") from None
        method = self._services.get(request.service, {}).get(request.method)
        if method is None:
            raise CallError(Code.UNIMPLEMENTED, f"no method {request.service}/{request.method}")
        timeout_s = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        try:
            async with asyncio.timeout(timeout_s):
                return await method(request.payload)
        except TimeoutError:
            raise CallError(Code.DEADLINE_EXCEEDED, "the call's deadline has passed") from None
        except CallError:
            raise
        except Exception as error:
            log.exception("ttrpc method failed", service=request.service, method=request.method)
            raise CallError(Code.INTERNAL, "the method failed") from error


def _refusal(stream: int, code: int, message: str) -> bytes:
    status = ttrpc_pb2.Status(code=code, message=message[:4096])
    body = ttrpc_pb2.Response(status=status).SerializeToString()
    return wire.encode(wire.Frame(stream, wire.RESPONSE, 0, body))
