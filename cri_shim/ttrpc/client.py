"""A ttrpc client: many calls at a time over one connection.

Rules:
- A call ends with its answer, its deadline, or the connection. ttrpc knows no cancellation of a single call: one that
  is given up is forgotten here, and its answer, should it come, is dropped.
- The other side is told each call's deadline.
- Bounded are the calls that wait for their answers, and the bytes that the other side has not taken yet. Beyond that
  a call fails at once, as without a connection: the other side hangs.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Self

from google.protobuf.message import DecodeError

from cri_shim._pb.ttrpc.v1 import ttrpc_pb2
from cri_shim.ttrpc import wire
from cri_shim.ttrpc.errors import CallError, Code, ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MAX_CALLS = 1024
MAX_UNSENT_BYTES = 8 << 20
CONNECT_TIMEOUT_S = 5.0


class _Connection(asyncio.Protocol):
    def __init__(
        self, on_answer: Callable[[int, bytes | None], None], on_end: Callable[[], None]
    ) -> None:
        self._decoder = wire.Decoder()
        self._on_answer = on_answer
        self._on_end = on_end
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - the loop's promise
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.receive_data(data):
            if frame.type == wire.RESPONSE:
                body = frame.body if isinstance(frame, wire.Frame) else None
                self._on_answer(frame.stream, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()


class Client:
    """One connection. Made by `connect`."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._metadata = dict(metadata)
        self._streams = itertools.count(1, 2)
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._connection = _Connection(self._answered, self._ended)
        self._closed = False

    @classmethod
    async def connect(cls, socket_path: Path, metadata: Mapping[str, str]) -> Self:
        """Connect to a socket of the file system; `metadata` goes with each call. Raises ConnectionLostError."""
        client = cls(metadata)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_unix_connection(lambda: client._connection, str(socket_path))
        except (OSError, TimeoutError) as error:
            raise ConnectionLostError(f"connecting to {socket_path}: {error}") from error
        return client

    @property
    def closed(self) -> bool:
        """Whether no further call can succeed."""
        return self._closed

    @property
    def calls(self) -> int:
        """How many wait for their answers."""
        return len(self._calls)

    async def call(
        self, service: str, method: str, payload: bytes, *, timeout_s: float | None
    ) -> bytes:
        """Call a method and return its answer; None waits as long as the connection lasts.

        Raises CallError, ConnectionLostError, TimeoutError, MessageTooLongError.
        """
        transport = self._connection.transport
        if self._closed or transport is None:
            raise ConnectionLostError("the connection is closed")
        unsent = transport.get_write_buffer_size()
        if len(self._calls) >= MAX_CALLS or unsent > MAX_UNSENT_BYTES:
            raise ConnectionLostError(
                f"it does not answer: {len(self._calls)} calls wait, {unsent} bytes are not taken"
            )
        request = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=0 if timeout_s is None else max(int(timeout_s * 1e9), 1),
            metadata=[ttrpc_pb2.KeyValue(key=k, value=v) for k, v in self._metadata.items()],
        )
        stream = next(self._streams)
        frame = wire.encode(wire.Frame(stream, wire.REQUEST, 0, request.SerializeToString()))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[stream] = answer
        transport.write(frame)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._calls.pop(stream, None)

    def close(self) -> None:
        """Close the connection; calls under way fail. Idempotent."""
        self._ended()
        if self._connection.transport is not None:
            self._connection.transport.abort()

    def _answered(self, stream: int, body: bytes | None) -> None:
        answer = self._calls.get(stream)
        if answer is None or answer.done():
            return
        if body is None:
            answer.set_exception(CallError(Code.RESOURCE_EXHAUSTED, "its answer is too long"))
            return
        try:
            response = ttrpc_pb2.Response.FromString(body)
        except DecodeError:
            answer.set_exception(CallError(Code.INTERNAL, "its answer is no ttrpc response"))
            return
        if response.status.code:
            answer.set_exception(CallError(response.status.code, response.status.message))
        else:
            answer.set_result(response.payload)

    def _ended(self) -> None:
        self._closed = True
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(ConnectionLostError("the connection was closed"))
