"""The streams of one container of a shim, held in a thread: read, logged, and shown to who is attached.

Rules:
- Towards the daemon it is what conmon is: the FIFO `ctl`, the socket `attach` (`attach_wire`), a log of conmon's form.
- The shim has its ends of the FIFOs `stdin`, `stdout` and `stderr`. Their content survives this process: what was read
  is written before more is read.
- A client that does not read holds its container up, as with conmon; the daemon breaks it off (`exec.attach`).
- Nothing blocks but the log's disk. A thread that fails leaves its FIFOs, and tells the daemon to have them held anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    Tell = Callable[[dict[str, Any]], None]

RECORD_BYTES: Final = 16 << 10
"""Of one record of the log, without its head: what is read at once."""
INPUT_BYTES: Final = 32 << 10
MAX_CLIENTS: Final = 16
FINISH_S: Final = 2.0
"""How long the streams of an ended container are read on while somebody holds them open."""
STDOUT, STDERR = 2, 3
_NAMES: Final = {STDOUT: b"stdout", STDERR: b"stderr"}
_OPEN_LOG: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_LOG_MODE: Final = 0o640


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    unsent: list[bytes] = field(default_factory=list)
    input_over: bool = False


class Log:
    """A log in CRI's format; without a path it takes everything and keeps nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1 if path is None else os.open(path, _OPEN_LOG, _LOG_MODE)
        self._cut = False
        """Whether the last record lacks its end: the disk was full."""

    def write(self, source: int, data: bytes) -> None:
        """Write what was read at once: a record for each line, and an open one for the rest."""
        if self._fd >= 0:
            self._write_all(records(_NAMES[source], data, time.time_ns()))

    def _write_all(self, data: bytes) -> None:
        view = memoryview(b"\n" + data if self._cut else data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            self._cut = False
        except OSError:  # the disk is full or broken: the container goes on, without its log
            self._cut = bytes(view[:1]) != b"" and view.nbytes != len(data)

    def reopen(self) -> None:
        """Begin a new file beside the old one, and rename it over the name."""
        if self._path is None:
            return
        fresh = f"{self._path}.tmp"
        fd = os.open(fresh, _OPEN_LOG | os.O_TRUNC, _LOG_MODE)
        os.rename(fresh, self._path)
        os.close(self._fd)
        self._fd, self._cut = fd, False

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def records(name: bytes, data: bytes, now_ns: int) -> bytes:
    """The records of what a stream has brought: F for whole lines, P for what has no end yet. Pure."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
    head = b"%s.%09d+00:00 %s " % (at.encode(), now_ns % 1_000_000_000, name)
    whole, end, rest = data.rpartition(b"\n")
    parts = []
    if end:
        full = head + b"F "
        parts.append(full + whole.replace(b"\n", b"\n" + full) + b"\n")
    if rest:
        parts.append(head + b"P " + rest + b"\n")
    return b"".join(parts)


class HeldStreams:
    """One container's. Made and finished by the process's first thread."""

    def __init__(self, request: dict[str, Any], tell: Tell, forget: Callable[[], None]) -> None:
        """Opens everything, so that a shim finds readers. Raises OSError."""
        self._id = request["id"]
        self._stdin_once = request["stdin_once"]
        self._tell = tell
        self._forget = forget
        self._lock = threading.Lock()
        self._asked: list[int] = []
        """The calls that want the end, and are answered then."""
        self._give_up_at: float | None = None
        """Set once the end is wanted."""
        self._closed = False
        self.stdin_closed = False
        self._input = b""
        self._control = b""
        self._clients: dict[int, _Client] = {}
        self._outputs: dict[int, int] = {}
        self._stdin = -1
        self._log_path: str | None = request["log"]
        self._log = Log(None)
        self._thread = threading.Thread(target=self._run, name=self._id[:12], daemon=True)
        with contextlib.ExitStack() as opened:
            self._dir = os.open(request["dir"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, self._dir)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.callback(os.close, self._wake)
            self._ctl = self._fifo("ctl", os.O_RDWR)
            opened.callback(os.close, self._ctl)
            for source in (STDOUT,) if request["terminal"] else (STDOUT, STDERR):
                fd = self._fifo(_NAMES[source].decode(), os.O_RDONLY)
                self._outputs[fd] = source
                opened.callback(os.close, fd)
            if request["stdin"]:
                # Ours for reading, too: it can be opened before the shim has it.
                self._stdin = self._fifo("stdin", os.O_RDWR)
                opened.callback(os.close, self._stdin)
            self._attach = self._listen()
            opened.pop_all()

    def _fifo(self, name: str, flags: int) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkfifo(name, 0o600, dir_fd=self._dir)
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir)

    def _listen(self) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("attach", dir_fd=self._dir)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # A socket's path has at most 107 bytes; the bundle's may be longer.
            listening.bind(f"/proc/self/fd/{self._dir}/attach")
            listening.listen(MAX_CLIENTS)
            listening.setblocking(False)
        except BaseException:
            listening.close()
            raise
        return listening

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def finish(self, call: int, *, at_once: bool) -> None:
        """Read what is left, up to the streams' ends, and let go of everything; then `call` is answered."""
        give_up_at = time.monotonic() + (0.0 if at_once else FINISH_S)
        with self._lock:
            if not self._closed:
                self._asked.append(call)
                self._give_up_at = min(give_up_at, self._give_up_at or give_up_at)
                os.eventfd_write(self._wake, 1)
                return
        self._tell({"call": call})

    # --- in its own thread

    def _run(self) -> None:
        finished = False
        try:
            # Here, since a disk may hang. The daemon has prepared the log; one that can't be opened is not kept.
            with contextlib.suppress(OSError):
                self._log = Log(self._log_path)
            while not self._is_over():
                self._turn()
            finished = True
        finally:
            with self._lock:
                self._closed = True
                self._close(unlink=finished)
            self._forget()
            for call in self._asked:
                self._tell({"call": call})
            if not finished:
                self._tell({"event": "lost", "id": self._id})

    def _is_over(self) -> bool:
        if self._give_up_at is None:
            return False
        unsent = any(client.unsent for client in self._clients.values())
        return not (self._outputs or unsent) or time.monotonic() >= self._give_up_at

    def _turn(self) -> None:
        blocked = any(client.unsent for client in self._clients.values())
        timeout_ms = None
        if self._give_up_at is not None:
            timeout_ms = max(int((self._give_up_at - time.monotonic()) * 1000), 0) + 1
            if not blocked:  # an end that came before we opened the FIFO is no event
                for fd in tuple(self._outputs):
                    self._read(fd)
                blocked = any(client.unsent for client in self._clients.values())
                if self._is_over():
                    return
        for fd, what in self._poll(blocked=blocked).poll(timeout_ms):
            self._handle(fd, what)

    def _poll(self, *, blocked: bool) -> select.poll:
        poll = select.poll()
        for fd in (self._wake, self._ctl, self._attach.fileno()):
            poll.register(fd, select.POLLIN)
        if not blocked:
            for fd in self._outputs:
                poll.register(fd, select.POLLIN)
        for fd, client in self._clients.items():
            takes_input = not client.input_over and not self._input
            poll.register(
                fd,
                (select.POLLIN if takes_input else 0) | (select.POLLOUT if client.unsent else 0),
            )
        if self._input and self._stdin >= 0:
            poll.register(self._stdin, select.POLLOUT)
        return poll

    def _handle(self, fd: int, what: int) -> None:
        if fd == self._wake:
            os.eventfd_read(self._wake)
        elif fd == self._ctl:
            self._obey()
        elif fd == self._attach.fileno():
            self._accept()
        elif fd == self._stdin:
            self._pass_input()
        elif fd in self._outputs:
            self._read(fd)
        elif (client := self._clients.get(fd)) is not None:
            if what & select.POLLOUT:
                self._send(client)
            if what & select.POLLIN and fd in self._clients:
                self._take_input(client)
            if what & (select.POLLHUP | select.POLLERR) and fd in self._clients:
                self._drop(client)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, RECORD_BYTES)
        except BlockingIOError:
            return
        source = self._outputs[fd]
        if not data:
            # Every writer has gone, or the shim has yet to come, of which there is no event.
            del self._outputs[fd]
            os.close(fd)
            return
        self._log.write(source, data)
        for client in tuple(self._clients.values()):
            client.unsent.append(bytes([source]) + data)
            self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.unsent:
                client.connection.send(client.unsent[0])
                del client.unsent[0]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    # --- attached clients

    def _accept(self) -> None:
        try:
            connection, _ = self._attach.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.connection.fileno()]
        client.connection.close()
        if not client.input_over:
            self._input_ended(client)

    def _take_input(self, client: _Client) -> None:
        try:
            data = client.connection.recv(INPUT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not data:
            self._input_ended(client)
        elif self._stdin >= 0:
            self._input = data
            self._pass_input()

    def _input_ended(self, client: _Client) -> None:
        client.input_over = True
        if self._stdin_once and self._stdin >= 0 and not self._input:
            self._close_stdin()

    def _pass_input(self) -> None:
        try:
            self._input = self._input[os.write(self._stdin, self._input) :]
        except BlockingIOError:
            return
        over = any(client.input_over for client in self._clients.values())
        if not self._input and over and self._stdin_once:
            self._close_stdin()

    def _close_stdin(self) -> None:
        os.close(self._stdin)
        self._stdin = -1
        self.stdin_closed = True
        self._tell({"event": "input ended", "id": self._id})

    # --- the daemon's control lines

    def _obey(self) -> None:
        self._control += os.read(self._ctl, 4096)
        *lines, self._control = self._control[-4096:].split(b"\n")
        for line in lines:
            words = line.split()
            if len(words) != 3 or not all(word.isdigit() for word in words):
                continue
            command, first, second = map(int, words)
            if command == 1:
                self._tell({"event": "size", "id": self._id, "width": second, "height": first})
            elif command == 2:
                with contextlib.suppress(OSError):  # the daemon sees that there is no new file
                    self._log.reopen()

    def _close(self, *, unlink: bool) -> None:
        for client in tuple(self._clients.values()):
            client.connection.close()
        self._clients.clear()
        for fd in self._outputs:
            os.close(fd)
        self._outputs.clear()
        self._attach.close()
        self._log.close()
        for name in ("attach", "ctl", "stdin", "stdout", "stderr") if unlink else ():
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._dir)
        for fd in (self._wake, self._ctl, self._stdin, self._dir):
            if fd >= 0:
                os.close(fd)
