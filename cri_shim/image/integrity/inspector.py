"""The process that reads whole layers and blobs to see whether they are what they should be.

    python -m cri_shim.image.integrity.inspector < SOCKET

Rules: reading gigabytes takes the processor from everybody who shares a process with it, so this one is apart, and
nice. It is told what to read, one document per line, and answers each with how far it is and what came out. It changes
nothing, ends when the daemon closes the socket, and is bounded in memory: trees may be hostile.
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
"""Address space: the names of one directory, and inodes with several names, are kept; four million take half of it."""
_NICENESS = 10
_TELL_BYTES = 32 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Please read this."""

    path: str
    tree: bool
    """Seal the tree; else the digest of the file."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far it is; with `value` or `reason`, the end."""

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
            return Answer(reason="it takes more memory than a layer may use")
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
    """Serve the socket that is standard input."""
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with socket.socket(fileno=os.dup(0)) as connection, connection.makefile("rb") as tasks:
        inspector = _Inspector(connection)
        try:
            for line in tasks:
                inspector.send(inspector.answer(msgspec.json.decode(line, type=Task)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon lost interest
    return 0


if __name__ == "__main__":
    sys.exit(main())
