"""One client's connection: a non-blocking socket, plain or TLS, with its send queue.

Rules:
- One read and one write per turn of the event loop, so that a stream at full rate leaves every other one its turn.
- No long data is copied: received chunks are passed on, and sent with one gathering call. Small pieces that must wait
  are joined (`backlog`).
- The send queue has no bound of its own. Its user stops reading and producing while much is `unsent`.
- While reading is paused, the peer is polled for a hangup every two seconds: no event would report it.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from cri_shim.streaming.backlog import Backlog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.streaming.wire.buffers import Buffer

CHUNK_BYTES = 256 << 10
LOOK_S = 2.0
LINGER_S = 2.0
"""Time for the client to hang up after our last byte. An earlier close() would destroy what it has not read yet."""
_POLLRDHUP = getattr(select, "POLLRDHUP", 0x2000)


class Receiver(Protocol):
    """The user of a connection."""

    def data_received(self, data: bytes) -> None:
        """Data arrived."""

    def drained(self) -> None:
        """The send queue is empty again."""

    def connection_lost(self, error: str | None) -> None:
        """The connection has ended; `error` is the reason unless the client closed it. Called once."""


class Connection:
    """A client: `open` it (TLS), `receive` its request, `start` a session on it, `finish` or `close` it."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Takes over the socket, which must be non-blocking."""
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._fd = sock.fileno()
        self._tls: ssl.SSLSocket | None = None
        if tls is not None:
            self._tls = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self._socket = self._tls
        self._receiver: Receiver | None = None
        self._out = Backlog()
        self.sent_total = 0
        self._reading = self._writing = False
        self._lost = self._closed = False
        self._look: asyncio.TimerHandle | None = None
        self._ready: asyncio.Future[None] | None = None
        """Set while `open` or `receive` waits for the socket."""
        self._idle = asyncio.Event()
        """Set while nothing is unsent, and when nothing will be sent any more. Otherwise `finish` would wait for ever,
        or spin and block the loop."""
        self._idle.set()

    @property
    def unsent(self) -> int:
        """Bytes in the send queue. Their memory is at most an eighth more."""
        return self._out.size

    # --- before the session, one call at a time

    def has_unread(self) -> bool:
        """Whether bytes, or a hangup, of the client wait to be read."""
        return not self._closed and _has_events(self._fd, select.POLLIN)

    async def open(self) -> None:
        """Do the TLS handshake, if there is TLS. Raises OSError (ssl.SSLError)."""
        while self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._until_ready(to_write=False)
            except ssl.SSLWantWriteError:
                await self._until_ready(to_write=True)
            else:
                return

    async def receive(self) -> bytes:
        """Wait for the next bytes; empty at the end. Raises OSError."""
        while (data := self._read()) is None:
            await self._until_ready(to_write=False)
        return data

    async def _until_ready(self, *, to_write: bool) -> None:
        if self._closed:
            raise ConnectionAbortedError("the connection was closed")
        ready = self._ready = self._loop.create_future()
        add = self._loop.add_writer if to_write else self._loop.add_reader
        remove = self._loop.remove_writer if to_write else self._loop.remove_reader
        add(self._fd, _set, ready)
        try:
            await ready
        except asyncio.CancelledError:
            if self._closed:  # `close` cancelled the future: the task itself is not cancelled
                raise ConnectionAbortedError("the connection was closed") from None
            raise
        finally:
            self._ready = None
            if not self._closed:  # the closed descriptor's number may be another file's by now
                remove(self._fd)

    # --- during the session

    def start(self, receiver: Receiver) -> None:
        """Begin to read, and report to `receiver`."""
        self._receiver = receiver
        self.resume_reading()

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Queue buffers, in order, and send as much as the client takes now."""
        if self._lost:
            return
        for buffer in buffers:
            self._out.append(buffer)
        if self.unsent:
            self._idle.clear()
            if not self._writing:
                self._write()

    def pause_reading(self) -> None:
        """Stop reading. The kernel's buffer fills up, and then TCP stops the client."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)
            self._look = self._loop.call_later(LOOK_S, self._look_for_peer)

    def resume_reading(self) -> None:
        """Read again."""
        if self._reading or self._lost or self._receiver is None:
            return
        self._reading = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._loop.add_reader(self._fd, self._on_readable)

    async def finish(self, stall_s: float) -> None:
        """Send the rest, unless the client takes nothing for `stall_s` seconds; then hang up and close."""
        while self.unsent and not self._lost:
            before = self.sent_total
            try:
                async with asyncio.timeout(stall_s):
                    await self._idle.wait()
            except TimeoutError:
                if self.sent_total == before:
                    break
        if not self._lost and not self.unsent:
            await self._hang_up()
        self.close()

    def close(self) -> None:
        """Close at once, without sending the rest. Idempotent."""
        if self._closed:
            return
        self._closed = self._lost = True
        self._stop_watching()
        self._out.clear()
        self._idle.set()
        if self._ready is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._ready.cancel()
        self._socket.close()

    # --- the socket

    def _read(self) -> bytes | None:
        """Read without waiting: None if there is nothing yet, empty at the end. Raises OSError."""
        try:
            return self._socket.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def _on_readable(self) -> None:
        receiver = self._receiver
        if receiver is None or not self._reading:
            return
        try:
            data = self._read()
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if data:
            receiver.data_received(data)
            if self._tls is not None and self._reading and self._tls.pending():
                # Decrypted bytes wait inside OpenSSL, where the selector can't see them.
                self._loop.call_soon(self._on_readable)
        elif data is not None:
            self._lose(None)

    def _write(self) -> None:
        try:
            sent = self._write_some()
        except OSError as error:
            # In another turn: the caller of `send` is in the middle of something.
            self._loop.call_soon(self._lose, error.strerror or str(error))
            return
        self._out.take(sent)
        self.sent_total += sent
        if self.unsent:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._write)
            return
        self._idle.set()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
            if self._receiver is not None:
                self._receiver.drained()

    def _write_some(self) -> int:
        try:
            if self._tls is not None:
                return self._tls.send(self._out.buffers()[0])
            return self._socket.sendmsg(self._out.buffers())
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def _look_for_peer(self) -> None:
        if has_hung_up(self._fd):
            self._lose("the client hung up")
        else:
            self._look = self._loop.call_later(LOOK_S, self._look_for_peer)

    def _lose(self, error: str | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._stop_watching()
        self._idle.set()
        if self._receiver is not None:
            self._receiver.connection_lost(error)

    def _stop_watching(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._reading = self._writing = False

    async def _hang_up(self) -> None:
        """Close our side, then read and discard what the client still sends, until it closes its own."""
        self.pause_reading()
        self._receiver = None
        try:
            async with asyncio.timeout(LINGER_S):
                if self._tls is not None:
                    self._say_goodbye()
                self._socket.shutdown(socket.SHUT_WR)
                more = True
                while more:
                    more = bool(await self.receive())
                    # A client that sends without pause must not block the loop.
                    await asyncio.sleep(0)
        except (OSError, ValueError):  # includes TimeoutError: the client had its time
            pass

    def _say_goodbye(self) -> None:
        """Send TLS's close_notify, without waiting for the client's."""
        try:
            if self._tls is not None:
                self._tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def has_hung_up(fd: int) -> bool:
    """Whether the peer of a socket closed its side or is gone. What it sent before may still be unread."""
    return _has_events(fd, _POLLRDHUP)


def _has_events(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)  # POLLERR and POLLHUP are always reported
    return bool(poll.poll(0))
