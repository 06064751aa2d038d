"""The inspector process: it reads whole layers and blobs and computes seals and digests.

    python -m cri_shim.image.integrity.inspector < SOCKET

Rules: hashing gigabytes would starve everything else in the same process, so this is a process of its own, at a low
priority. It receives one task per line as JSON, and answers with its progress and then the result. It changes nothing,
exits when the daemon closes the socket, and has bounded memory, since trees may be hostile.
"""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import stat
import sys
from pathlib import Path

import msgspec

from cri_shim.image.integrity.seal import PIECE_BYTES, seal_of
from cri_shim.quoting import quoted

MEMORY_BYTES = 1 << 30
"""Address space. Names of one directory and inodes with several names stay in memory; four million take half of it."""
_NICENESS = 10
_TELL_BYTES = 32 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A path to read."""

    path: str
    tree: bool
    """True for the seal of a tree, False for the digest of a file."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Progress; with `value` or `reason`, the result."""

    done_bytes: int = 0
    value: str = ""
    errno: int = 0
    reason: str = ""


class _Inspector:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._done_bytes = 0
        self._told_bytes = 0

    def answer(self, task: Task) -> Answer:
        self._done_bytes = self._told_bytes = 0
        try:
            path = Path(task.path)
            value = seal_of(path, self._read) if task.tree else self._digest_of(path)
        except OSError as error:
            name = f" ({quoted(str(error.filename)[-200:])})" if error.filename else ""
            reason = f"{error.strerror or error}{name}"
            return Answer(done_bytes=self._done_bytes, errno=error.errno or 0, reason=reason)
        except MemoryError:
            return Answer(reason="it exceeds the inspector's memory limit")
        return Answer(done_bytes=self._done_bytes, value=value)

    def send(self, answer: Answer) -> None:
        self._connection.sendall(msgspec.json.encode(answer) + b"\n")

    def _read(self, count: int) -> None:
        self._done_bytes += count
        if self._done_bytes - self._told_bytes >= _TELL_BYTES:
            self._told_bytes = self._done_bytes
            self.send(Answer(done_bytes=self._done_bytes))

    def _digest_of(self, path: Path) -> str:
        fd = os.open(path, _FILE)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(22, "not a regular file", str(path))
            digest = hashlib.sha256()
            buffer = memoryview(bytearray(PIECE_BYTES))
            while count := os.readv(fd, [buffer]):
                digest.update(buffer[:count])
                self._read(count)
        finally:
            os.close(fd)
        return f"sha256:{digest.hexdigest()}"


def main() -> int:
    """Serve the socket on standard input."""
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rb") as tasks:
        inspector = _Inspector(connection)
        try:
            for line in tasks:
                inspector.send(inspector.answer(msgspec.json.decode(line, type=Task)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon closed the socket
    return 0


if __name__ == "__main__":
    sys.exit(main())
