"""Starting a container that `runsc_proxy` stands for: a byte to it, and its answer.

The two FIFOs are in the container's bundle, so that whoever takes the bundle away takes them, too. A proxy that has
gone has closed them: then there is no reader, and that is said at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError, DeadlineError, WrongStateError

if TYPE_CHECKING:
    from pathlib import Path

START_FIFO, STARTED_FIFO = "start", "started"
_ANSWER_BYTES = 4096


async def start_proxied(bundle_dir: Path, doing: str, timeout_s: float) -> tuple[int, str]:
    """Tell the proxy, and return the runtime's exit status and the end of its log.

    Raises WrongStateError when there is no proxy any more, DeadlineError, CriShimError; each begins with `doing`.
    """
    try:
        answer = os.open(bundle_dir / STARTED_FIFO, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CriShimError(f"{doing}: {error.strerror}") from error
    try:
        _tell(bundle_dir / START_FIFO, doing)
        return _parse(await _read(answer, doing, timeout_s))
    finally:
        os.close(answer)


def _tell(fifo: Path, doing: str) -> None:
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise WrongStateError(f"{doing}: the process that stands for it has ended") from error
        raise CriShimError(f"{doing}: {error.strerror}") from error
    try:
        os.write(fd, b"\n")
    finally:
        os.close(fd)


async def _read(fd: int, doing: str, timeout_s: float) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(timeout_s):
            await readable.wait()
    except TimeoutError:
        raise DeadlineError(f"{doing}: no answer within {timeout_s:g} s") from None
    finally:
        loop.remove_reader(fd)
    try:
        return os.read(fd, _ANSWER_BYTES)
    except BlockingIOError:
        return b""


def _parse(answer: bytes) -> tuple[int, str]:
    """An answer that is none is that of a proxy which was killed meanwhile."""
    status, _, words = answer.decode("utf-8", "replace").partition("\n")
    return (int(status) if status.isdigit() else 255), words
