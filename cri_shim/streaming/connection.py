"""One client's connection: a socket that doesn't block, plain or TLS, and what waits to be sent on it.

Rules:
- One read and one write for each turn of the loop: whoever streams at full rate leaves every other its turn.
- Nothing long is copied: what is read is handed on as it is, what is to be sent goes to the kernel in one gathering
  call. Small pieces that have to wait are joined (`backlog`).
- Nothing here is bounded by itself: its user stops reading, and stops producing, while much is `unsent`.
- A peer that vanishes while we don't read is looked for every two seconds: nobody else would notice.
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
"""For the client to hang up after we have said all: closing before it has read would destroy what it has not."""
_POLLRDHUP = getattr(select, "POLLRDHUP", 0x2000)


class Receiver(Protocol):
    """Whose connection it is."""

    def data_received(self, data: bytes) -> None:
        """Something came."""

    def drained(self) -> None:
        """All that was to be sent is on its way."""

    def connection_lost(self, error: str | None) -> None:
        """Nothing will come any more; `error` when that was not the client's wish. Called once."""


class Connection:
    """A connected client: `open` it (TLS), `receive` its request, `start` a session on it, `close` it at the end."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Takes the socket over, which must not block."""
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
        """Of whoever waits in `open` or `receive`."""
        self._idle = asyncio.Event()
        """Set while nothing is unsent, and once nothing will be sent: `finish` must never wait for it in vain, nor not
        at all, which would hold the loop up."""
        self._idle.set()

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet; with what they cost, an eighth more at most."""
        return self._out.size

    # --- before there is a session: one thing after the other

    def has_unread(self) -> bool:
        """Whether the client sent something, or hung up, and that was not read yet."""
        return not self._closed and _has_events(self._fd, select.POLLIN)

    async def open(self) -> None:
        """Shake hands, where it is TLS. Raises OSError (ssl.SSLError)."""
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
        """What comes next; nothing at the end. Raises OSError."""
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
            if self._closed:  # by somebody else, who gave its number back
                raise ConnectionAbortedError("the connection was closed") from None
            raise
        finally:
            self._ready = None
            if not self._closed:
                remove(self._fd)

    # --- a session's

    def start(self, receiver: Receiver) -> None:
        """Read from now on, and tell `receiver`."""
        self._receiver = receiver
        self.resume_reading()

    def send(self, buffers: Iterable[Buffer]) -> None:
        """Send, in this order, as soon as the client takes it."""
        if self._lost:
            return
        for buffer in buffers:
            self._out.append(buffer)
        if self.unsent:
            self._idle.clear()
            if not self._writing:
                self._write()

    def pause_reading(self) -> None:
        """Leave what comes with the kernel, and the client's sending with it."""
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
        """Send what is left, unless for `stall_s` seconds the client takes nothing of it; hang up, and close."""
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
        """Close at once; what is unsent is lost. Idempotent."""
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
        """What there is; None for nothing now, nothing for the end. Raises OSError."""
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
                self._loop.call_soon(self._on_readable)  # decrypted already: the kernel won't say
        elif data is not None:
            self._lose(None)

    def _write(self) -> None:
        try:
            sent = self._write_some()
        except OSError as error:
            # Told later: whoever called `send` is in the middle of something.
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
        """Say that we are done, and read what the client still has to say, for nobody."""
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
                    # There may be more at once for as long as the client likes; others have their turn.
                    await asyncio.sleep(0)
        except (OSError, ValueError):  # TimeoutError is one: the client had its time
            pass

    def _say_goodbye(self) -> None:
        """TLS's own end; the client's answer isn't waited for."""
        try:
            if self._tls is not None:
                self._tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def has_hung_up(fd: int) -> bool:
    """Whether the other side of a socket will send nothing more, or is gone; what it sent before may be unread."""
    return _has_events(fd, _POLLRDHUP)


def _has_events(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)  # an error and a hang-up are always told
    return bool(poll.poll(0))
