"""Asynchronous clients of the streaming server for every protocol, many in parallel, with backpressure.

Rules:
- Built on the client roles of `streaming.wire`. `remote_command` and `port_forward` take a URL that CRI gave out and
  the protocol to ask for; one task of each session reads.
- What nobody reads is kept up to a bound, then the session's socket isn't read any more: so do the clients of
  Kubernetes. A client that never reads at all is one whose `stop_reading` was called.
- A stream is a number on its connection; what it is for is said by `RemoteCommand` and `Forwarded`.

`streaming_client` is the blocking one, for a conversation step by step.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from cri_shim.streaming.wire import upgrade as names
from cri_shim.streaming.wire.channels import (
    ChannelConnection,
    ChannelData,
    ChannelEnded,
    ConnectionEnded,
)
from cri_shim.streaming.wire.remotecommand import Channel
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    SessionEnded,
    StreamEnded,
    StreamReset,
    StreamWritable,
)
from cri_shim.streaming.wire.tunnel import TunnelledSpdyConnection
from cri_shim.streaming.wire.upgrade import Framing
from cri_shim.streaming.wire.websocket import WebSocketConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from cri_shim.streaming.wire.buffers import Buffer

CHUNK_BYTES = 256 << 10
MAX_KEPT_BYTES = 1 << 20
"""Of what came on one stream and nobody has read yet."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What to ask for."""

    framing: Framing
    name: str

    @property
    def has_half_close(self) -> bool:
        """Whether the client can say that it has no more to send."""
        return self.framing is not Framing.CHANNELS or self.name == names.V5

    def __str__(self) -> str:
        return f"{self.framing} {self.name}"


REMOTE_COMMAND = (
    *(Protocol(Framing.SPDY, name) for name in names.SPDY_REMOTE_COMMAND),
    *(Protocol(Framing.CHANNELS, name) for name in names.WEBSOCKET_REMOTE_COMMAND),
)
SPDY, WEBSOCKET = REMOTE_COMMAND[0], REMOTE_COMMAND[len(names.SPDY_REMOTE_COMMAND)]
"""What clients ask for first."""
PORT_FORWARD = (
    Protocol(Framing.SPDY, names.PORT_FORWARD),
    Protocol(Framing.TUNNEL, names.PORT_FORWARD_TUNNEL),
    Protocol(Framing.CHANNELS, names.V4),
    Protocol(Framing.CHANNELS, names.V4_BASE64),
)


class RefusedError(Exception):
    """The server answered with something else than 101."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


@dataclass(slots=True)
class _Inbox:
    chunks: deque[Buffer] = field(default_factory=deque)
    n_bytes: int = 0
    ended: bool = False
    was_reset: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether the server, which counts what those send who count, may take more."""


class ClientStreams(ABC):
    """The streams of one connection, by number."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._inboxes: dict[int, _Inbox] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._stopped = False
        self.error: str | None = None
        """What was wrong with the session, once `ended` is set."""
        self.ended = asyncio.Event()
        self._task = asyncio.create_task(self._read_socket())

    # --- what the kinds of framing do

    @abstractmethod
    def _interpret(self, data: Buffer) -> None: ...
    @abstractmethod
    def _interpret_eof(self) -> None: ...
    @abstractmethod
    def _data_to_send(self) -> list[Buffer]: ...
    @abstractmethod
    def _send(self, number: int, data: Buffer) -> int: ...
    @abstractmethod
    def _end(self, number: int) -> None: ...
    @abstractmethod
    def _close(self) -> None: ...

    # --- for users

    def expect(self, number: int) -> None:
        """Keep what comes on this stream; what comes on others is dropped."""
        self._inboxes[number] = _Inbox()

    def forget(self, number: int) -> None:
        """Drop it from now on."""
        self._inboxes.pop(number, None)
        self._look_for_room()

    async def read(self, number: int) -> Buffer:
        """What came next on a stream; nothing at its end."""
        inbox = self._inboxes[number]
        while not inbox.chunks:
            if inbox.ended or self.ended.is_set():
                return b""
            inbox.changed.clear()
            await inbox.changed.wait()
        data = inbox.chunks.popleft()
        inbox.n_bytes -= len(data)
        self._look_for_room()
        return data

    async def read_all(self, number: int) -> bytes:
        """A stream up to its end."""
        pieces = []
        while data := await self.read(number):
            pieces.append(bytes(data))
        return b"".join(pieces)

    def was_reset(self, number: int) -> bool:
        """Whether the server reset the stream."""
        return self._inboxes[number].was_reset

    async def write(self, number: int, data: Buffer) -> None:
        """Send on a stream, as soon as the server takes it. Raises: ConnectionError, StreamClosedError."""
        left = memoryview(data)
        while True:
            writable = self._inboxes[number].writable
            writable.clear()
            left = left[self._send(number, left) :]
            await self.flush()
            if not len(left):
                return
            await writable.wait()

    async def end(self, number: int) -> None:
        """There will be no more on this stream."""
        self._end(number)
        await self.flush()

    async def flush(self) -> None:
        """Send what there is. Raises: ConnectionError."""
        self._writer.writelines(self._data_to_send())
        await self._writer.drain()

    async def send_raw(self, data: Buffer) -> None:
        """Send bytes as they are, whatever the protocol makes of them. Raises: ConnectionError."""
        self._writer.write(data)
        await self._writer.drain()

    def stop_reading(self) -> None:
        """Never read again: the socket's buffers fill up, here and at the server."""
        self._stopped = True
        self._room.clear()
        transport = self._writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()

    async def close(self) -> None:
        """Say that it is over, and hang up."""
        self._close()
        try:
            self._writer.writelines(self._data_to_send())
        finally:
            await self.hang_up()

    async def hang_up(self) -> None:
        """Go away without a word."""
        self._task.cancel()
        self._writer.transport.abort()
        for waiting in (self._task, self._writer.wait_closed()):
            try:
                await waiting
            except (asyncio.CancelledError, OSError):
                pass

    async def break_off(self) -> None:
        """Go away by a reset, which arrives also where what was sent before does not."""
        sock = self._writer.get_extra_info("socket")
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.hang_up()

    # --- what came

    async def _read_socket(self) -> None:
        try:
            await self._room.wait()
            while data := await self._reader.read(CHUNK_BYTES):
                self._interpret(data)
                self._writer.writelines(self._data_to_send())
                await self._room.wait()
            self._interpret_eof()
        except OSError as error:
            self.error = self.error or str(error)
        finally:
            self.ended.set()
            for inbox in self._inboxes.values():
                inbox.changed.set()
                inbox.writable.set()

    def _take(self, number: int, data: Buffer) -> None:
        inbox = self._inboxes.get(number)
        if inbox is not None and len(data):
            inbox.chunks.append(data)
            inbox.n_bytes += len(data)
            inbox.changed.set()
            if inbox.n_bytes > MAX_KEPT_BYTES:
                self._room.clear()

    def _take_end(self, number: int, *, reset: bool = False) -> None:
        inbox = self._inboxes.get(number)
        if inbox is not None:
            inbox.ended = True
            inbox.was_reset = inbox.was_reset or reset
            inbox.changed.set()
            if reset:
                inbox.writable.set()

    def _look_for_room(self) -> None:
        full = any(inbox.n_bytes > MAX_KEPT_BYTES for inbox in self._inboxes.values())
        if not full and not self._stopped:
            self._room.set()


class SpdyStreams(ClientStreams):
    """Those of SPDY, plain or tunnelled."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: SpdyConnection
    ) -> None:
        super().__init__(reader, writer)
        self.session = session

    def open(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Open one; `flush` sends it. Raises: StreamClosedError."""
        number = self.session.open_stream(headers, fin=fin)
        self.expect(number)
        return number

    def reset(self, number: int) -> None:
        """Give a stream up in both directions; `flush` says so."""
        self.session.reset(number)

    def _interpret(self, data: Buffer) -> None:
        self._take_events(self.session.receive_data(data))
        while self.session.has_more:
            self._take_events(self.session.receive_data(b""))

    def _interpret_eof(self) -> None:
        self._take_events(self.session.receive_eof())

    def _take_events(self, events: Iterable[object]) -> None:
        for event in events:
            match event:
                case DataReceived(number, data):
                    self._take(number, data)
                    self.session.consumed(number, len(data))
                case StreamEnded(number):
                    self._take_end(number)
                case StreamReset(number, _):
                    self._take_end(number, reset=True)
                case StreamWritable(number):
                    if (inbox := self._inboxes.get(number)) is not None:
                        inbox.writable.set()
                case SessionEnded(error):
                    self.error = error
                case _:
                    pass

    def _data_to_send(self) -> list[Buffer]:
        return self.session.data_to_send()

    def _send(self, number: int, data: Buffer) -> int:
        return self.session.send_data(number, data)

    def _end(self, number: int) -> None:
        self.session.end(number)

    def _close(self) -> None:
        self.session.close()


class ChannelStreams(ClientStreams):
    """The channels of a WebSocket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str
    ) -> None:
        super().__init__(reader, writer)
        self._channels = ChannelConnection(protocol, WebSocketConnection(mask_key=_mask_key))

    def _interpret(self, data: Buffer) -> None:
        self._take_events(self._channels.receive_data(data))
        while self._channels.has_more:
            self._take_events(self._channels.receive_data(b""))

    def _interpret_eof(self) -> None:
        self._take_events(self._channels.receive_eof())

    def _take_events(self, events: Iterable[object]) -> None:
        for event in events:
            match event:
                case ChannelData(number, data):
                    self._take(number, data)
                case ChannelEnded(number):
                    self._take_end(number)
                case ConnectionEnded(error):
                    self.error = error
                case _:
                    pass

    def _data_to_send(self) -> list[Buffer]:
        return self._channels.data_to_send()

    def _send(self, number: int, data: Buffer) -> int:
        self._channels.send(number, data)
        return len(data)

    def _end(self, number: int) -> None:
        self._channels.end(number)

    def _close(self) -> None:
        self._channels.close()


class RemoteCommand:
    """One exec or attach."""

    def __init__(self, streams: ClientStreams, numbers: Mapping[Channel, int]) -> None:
        self.streams = streams
        self._numbers = numbers
        for number in numbers.values():
            streams.expect(number)

    async def read(self, channel: Channel = Channel.STDOUT) -> Buffer:
        """What the command said next; nothing at the end."""
        return await self.streams.read(self._numbers[channel])

    async def read_all(self, channel: Channel = Channel.STDOUT) -> bytes:
        """All that the command still says there."""
        return await self.streams.read_all(self._numbers[channel])

    async def write(self, data: Buffer) -> None:
        """To the command. Raises: ConnectionError."""
        await self.streams.write(self._numbers[Channel.STDIN], data)

    async def end_input(self) -> None:
        """The end of its input."""
        await self.streams.end(self._numbers[Channel.STDIN])

    async def resize(self, width: int, height: int) -> None:
        """Of its terminal."""
        size = json.dumps({"Width": width, "Height": height}).encode()
        await self.streams.write(self._numbers[Channel.RESIZE], size)

    async def exit_code(self) -> int:
        """How it ended, once all output was read. Raises: RuntimeError with the server's words if it did not run."""
        said = await self.read_all(Channel.ERROR)
        if not said:
            if self.streams.error:
                raise RuntimeError(self.streams.error)
            return 0  # before v4, success has no words
        try:
            document = json.loads(said)
        except ValueError:
            words = said.decode()
            code = words.rpartition("exit status ")[2]
            if not code.isdigit():
                raise RuntimeError(words) from None
            return int(code)
        if document["status"] == "Success":
            return 0
        [cause] = document["details"]["causes"]
        if document["reason"] != "NonZeroExitCode":
            raise RuntimeError(document["message"])
        return int(cause["message"])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.streams.hang_up()


@dataclass(slots=True)
class Forwarded:
    """One forwarded connection."""

    streams: ClientStreams
    _data: int
    _error: int

    async def read(self) -> Buffer:
        """What the target said next; nothing at the end."""
        return await self.streams.read(self._data)

    async def read_all(self) -> bytes:
        """All that it still says."""
        return await self.streams.read_all(self._data)

    async def write(self, data: Buffer) -> None:
        """To the target. Raises: ConnectionError."""
        await self.streams.write(self._data, data)

    async def end(self) -> None:
        """There will be no more for the target."""
        await self.streams.end(self._data)

    async def reset(self) -> None:
        """Give it up."""
        assert isinstance(self.streams, SpdyStreams), "channels have no resets"
        self.streams.reset(self._data)
        await self.streams.flush()

    def was_reset(self) -> bool:
        """Whether the server did."""
        return self.streams.was_reset(self._data)

    async def error_text(self) -> str:
        """What the server says went wrong, once it has ended the error stream."""
        return (await self.streams.read_all(self._error)).decode()

    def forget(self) -> None:
        """It is over: nothing that still comes is kept."""
        self.streams.forget(self._data)
        self.streams.forget(self._error)


class PortForward:
    """One port-forward."""

    def __init__(self, streams: ClientStreams, ports: Sequence[int]) -> None:
        """`ports`: those of the request; only channels need them."""
        self.streams = streams
        self._requests = 0
        self._waiting = {port: index for index, port in enumerate(ports)}
        if isinstance(streams, ChannelStreams):
            for number in range(2 * len(ports)):
                streams.expect(number)

    async def connect(self, port: int) -> Forwarded:
        """Open one more connection, whether or not the target takes it. Raises: ConnectionError, StreamClosedError."""
        if isinstance(self.streams, ChannelStreams):
            return await self._take_pair(port)
        assert isinstance(self.streams, SpdyStreams)
        self._requests += 1
        headers = {"port": str(port), "requestid": str(self._requests)}
        error = self.streams.open({"streamtype": "error", **headers}, fin=True)
        data = self.streams.open({"streamtype": "data", **headers})
        await self.streams.flush()
        return Forwarded(self.streams, data, error)

    async def _take_pair(self, port: int) -> Forwarded:
        """A port has one connection, there from the start; each channel begins with the port's number."""
        first = 2 * self._waiting.pop(port)
        for number in (first, first + 1):
            said = await self.streams.read(number)
            assert bytes(said) == port.to_bytes(2, "little"), bytes(said[:16])
        return Forwarded(self.streams, first, first + 1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.streams.hang_up()


async def remote_command(
    url: str, protocol: Protocol, *, stdin: bool, stdout: bool, stderr: bool, tty: bool = False
) -> RemoteCommand:
    """Begin an exec or attach; the streams must be those that CRI was asked for. Raises: RefusedError."""
    streams = await connect(url, protocol)
    asked = {
        Channel.ERROR: True,
        Channel.STDIN: stdin,
        Channel.STDOUT: stdout,
        Channel.STDERR: stderr and not tty,
        Channel.RESIZE: tty and protocol.name not in (names.V1, names.V2),
    }
    wanted = [channel for channel, is_wanted in asked.items() if is_wanted]
    if isinstance(streams, SpdyStreams):
        numbers = {c: streams.open({"streamtype": c.name.lower()}) for c in wanted}
        await streams.flush()
        return RemoteCommand(streams, numbers)
    return RemoteCommand(streams, {channel: int(channel) for channel in wanted})


async def port_forward(url: str, protocol: Protocol, ports: Sequence[int] = ()) -> PortForward:
    """Begin a port-forward. Raises: RefusedError."""
    return PortForward(await connect(url, protocol), ports)


async def connect(url: str, protocol: Protocol) -> ClientStreams:
    """Begin a session, without a stream of it. Raises: RefusedError."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=CHUNK_BYTES)
    try:
        writer.write(request_head(url, protocol))
        await _read_answer(reader)
    except BaseException:
        writer.transport.abort()
        raise
    if protocol.framing is Framing.CHANNELS:
        return ChannelStreams(reader, writer, protocol.name)
    tunnelled = protocol.framing is Framing.TUNNEL
    session = (
        TunnelledSpdyConnection(mask_key=_mask_key) if tunnelled else SpdyConnection(client=True)
    )
    return SpdyStreams(reader, writer, session)


def request_head(url: str, protocol: Protocol) -> bytes:
    """What a client of this protocol sends first."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    if protocol.framing is Framing.SPDY:
        lines = [
            f"POST {target} HTTP/1.1",
            "Upgrade: SPDY/3.1",
            f"X-Stream-Protocol-Version: {protocol.name}",
        ]
    else:
        lines = [
            f"GET {target} HTTP/1.1",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Sec-WebSocket-Protocol: {protocol.name}",
        ]
    lines += [f"Host: {parts.netloc}", "Connection: Upgrade"]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


async def _read_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    if status != 101:
        raise RefusedError(status, (await reader.read()).decode(errors="replace").strip())


def _mask_key() -> bytes:
    return os.urandom(4)
