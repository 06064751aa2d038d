"""A proxy in front of a registry that injects faults of networks and servers on a schedule.

async with FaultProxy(registry.host) as proxy:
    proxy.faults += [Answer("/manifests/", status=503), Cut("/blobs/", 2, after_bytes=1000)]
    ... pull f"{proxy.host}/team/app:1" ...
    assert proxy.ranges("/blobs/") == ["", "bytes=1000-", "bytes=2000-"]

The next fault whose path fits happens to a request, so that their order is the schedule. It can be used as an HTTP
proxy as well: whatever host is asked for, plainly or through CONNECT, it is the one server behind it that answers.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.fakes.registry import Answer, Corrupt, Cut, Fault, IgnoreRange, Stall

if TYPE_CHECKING:
    from types import TracebackType

_MAX_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 16 << 10
_ARRIVES_S = 0.05
"""Until what was sent has been read: a client may drop what it has not when the connection ends."""
_HEADER = b"\r\n%s:[^\r\n]*"


@dataclass
class Pause(Fault):
    """After so many bytes nothing comes for a while; then the rest, or the end of the connection."""

    after_bytes: int = 0
    seconds: float = 0.0
    then_cut: bool = False


@dataclass
class WrongLength(Fault):
    """The answer says that it has so many bytes more (or fewer) than it has."""

    by: int = 0


@dataclass
class Endless(Fault):
    """The body goes on for ever, and the answer does not say how long it is."""


@dataclass
class EndlessHead(Fault):
    """One header follows the other, for ever."""


@dataclass(frozen=True)
class Passed:
    """One request."""

    method: str
    path: str
    range: str
    authorization: str


class FaultProxy:
    """Passes on to `target` (host:port) while it is open."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.faults: list[Fault] = []
        self.seen: list[Passed] = []
        self.sent_bytes = 0
        """Of bodies."""
        self._closing = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES
        )
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._server.close()
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def ranges(self, where: str) -> list[str]:
        """The Range of each request whose path contains `where`."""
        return [seen.range for seen in self.seen if where in seen.path]

    # One connection, one request

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or is told so by the end of its connection; or all is over
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, url, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        path = re.sub("^http://[^/]*", "", url)
        said = (_value(head, b"Range"), _value(head, b"Authorization"))
        self.seen.append(Passed(method, path, *said))
        host, _, port = self._target.rpartition(":")
        if method == "CONNECT":
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            return
        fault = self._fault(path)
        if isinstance(fault, Answer):
            lines = [f"HTTP/1.1 {fault.status} Fault", f"Content-Length: {len(fault.body)}"]
            lines += [f"{name}: {value}" for name, value in fault.headers.items()]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + fault.body)
            await writer.drain()
            return
        if isinstance(fault, EndlessHead):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"X-More: and more\r\n" * 1000)
                await writer.drain()
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        try:
            head = head.replace(url.encode(), path.encode(), 1)
            if isinstance(fault, IgnoreRange):
                head = _without(head, b"Range")
            far_writer.write(_without(head, b"Connection")[:-2] + b"Connection: close\r\n\r\n")
            await self._answer(far_reader, writer, fault)
        finally:
            far_writer.close()

    async def _answer(
        self, source: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None
    ) -> None:
        head = await source.readuntil(b"\r\n\r\n")
        if isinstance(fault, WrongLength):
            length = int(_value(head, b"Content-Length")) + fault.by
            head = _without(head, b"Content-Length")[:-2] + b"Content-Length: %d\r\n\r\n" % length
        elif isinstance(fault, Endless):
            head = _without(head, b"Content-Length")
        writer.write(head)
        at = 0
        while piece := await source.read(_PIECE_BYTES):
            if isinstance(fault, Cut | Stall | Pause) and at + len(piece) > fault.after_bytes:
                keep = fault.after_bytes - at
                await self._send(writer, piece[:keep])
                if isinstance(fault, Stall):
                    await self._closing.wait()
                    return
                if isinstance(fault, Cut):
                    await asyncio.sleep(_ARRIVES_S)
                    return
                await asyncio.sleep(fault.seconds)
                if fault.then_cut:
                    return
                piece, fault = piece[keep:], None
                at += keep
            if isinstance(fault, Corrupt) and at <= fault.at < at + len(piece):
                wrong = bytearray(piece)
                wrong[fault.at - at] ^= 1
                piece = bytes(wrong)
            await self._send(writer, piece)
            at += len(piece)
        while isinstance(fault, Endless):
            await self._send(writer, bytes(_PIECE_BYTES))

    async def _send(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        self.sent_bytes += len(piece)
        writer.write(piece)
        await writer.drain()

    def _fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


def _value(head: bytes, name: bytes) -> str:
    found = re.search(_HEADER % name, head, re.IGNORECASE)
    return found[0].partition(b":")[2].decode().strip() if found else ""


def _without(head: bytes, name: bytes) -> bytes:
    return re.sub(_HEADER % name, b"", head, flags=re.IGNORECASE)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(_PIECE_BYTES):
            target.write(data)
            await target.drain()
    finally:
        target.close()
