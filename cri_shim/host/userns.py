"""Creates user namespaces with their mappings, and holds them by descriptors.

Rules:
- A process with several threads cannot enter a new user namespace (unshare(2)). So a short-lived child creates it:
  util-linux's `unshare`, which executes `cat`. The first byte that `cat` echoes shows that the namespaces exist.
- A network namespace that belongs to a user namespace must be created inside it (user_namespaces(7)), so the same child
  creates both. Nothing is pinned here: a namespace lives as long as a descriptor, a process or a pin refers to it.
- Mappings have the format of /proc/PID/uid_map: lines of `inside outside length`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import CommandError, DeadlineError
from cri_shim.host.capture import Capture
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.host.process import Child, Reaper

TIMEOUT_S = 10.0
"""The child usually takes some milliseconds."""
MAX_STDERR_BYTES = 1024


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """A user namespace, held by a descriptor."""

    fd: int
    netns_fd: int | None
    """A network namespace that belongs to it, or None."""


def open_user_namespace(pid: int) -> int | None:
    """Open the user namespace of process `pid`; the caller closes it. Returns None if the process is gone.

    Raises OSError if no descriptor is left.
    """
    try:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None


@contextlib.asynccontextmanager
async def new_user_namespace(
    reaper: Reaper, *, uid_map: str, gid_map: str, with_network: bool
) -> AsyncIterator[UserNamespace]:
    """Create a user namespace, and with `with_network` a network namespace in it, held while the block runs.

    Raises CommandError with the kernel's error (the limit user.max_user_namespaces, a rejected mapping), DeadlineError.
    """
    argv = ["unshare", "--user", *(["--net"] if with_network else []), "cat"]
    with contextlib.ExitStack() as descriptors:
        async with _unshared(reaper, argv) as pid:
            try:
                for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
                    Path(f"/proc/{pid}/{name}").write_text(text)
            except OSError as error:
                raise CommandError(
                    "making a user namespace",
                    argv,
                    f"got no ID mappings: the kernel rejected {quoted(uid_map)} or {quoted(gid_map)}",
                    error.strerror or str(error),
                ) from error
            fds = [
                os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                for kind in (("user", "net") if with_network else ("user",))
            ]
            for fd in fds:
                descriptors.callback(os.close, fd)
        yield UserNamespace(fds[0], fds[1] if with_network else None)


@contextlib.asynccontextmanager
async def _unshared(reaper: Reaper, argv: list[str]) -> AsyncIterator[int]:
    """Start a child in new namespaces; yields its pid, and kills it after the block."""
    with contextlib.ExitStack() as descriptors:
        child_stdin, our_stdin = os.pipe2(os.O_CLOEXEC)
        descriptors.callback(os.close, our_stdin)
        our_stdout, child_stdout = os.pipe2(os.O_CLOEXEC)
        descriptors.callback(os.close, our_stdout)
        stderr = Capture(MAX_STDERR_BYTES, tail=True)
        descriptors.callback(stderr.close)
        try:
            child = reaper.spawn(
                argv, stdin=child_stdin, stdout=child_stdout, stderr=stderr.write_fd
            )
        except OSError as error:
            raise CommandError(
                "making a user namespace", argv, "could not be run", error.strerror or str(error)
            ) from error
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        stderr.start()
        try:
            await _answered(child, our_stdin, our_stdout, stderr, argv)
            yield child.pid
        finally:
            child.kill()
            await asyncio.shield(child.wait_at_most(TIMEOUT_S))


async def _answered(
    child: Child, our_stdin: int, our_stdout: int, stderr: Capture, argv: list[str]
) -> None:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()
    os.set_blocking(our_stdout, False)

    def has_come() -> None:
        if not answered.done():
            answered.set_result(None)

    loop.add_reader(our_stdout, has_come)
    try:
        with contextlib.suppress(
            BrokenPipeError
        ):  # the child failed; its stdout then shows end of file
            os.write(our_stdin, b"?")
        async with asyncio.timeout(TIMEOUT_S):
            await answered
    except TimeoutError:
        raise DeadlineError(
            f"{argv[0]} did not create a user namespace within {TIMEOUT_S:g} s and was killed"
        ) from None
    finally:
        loop.remove_reader(our_stdout)
    if os.read(our_stdout, 1) != b"?":  # end of file: the child failed
        ending = await child.wait_at_most(TIMEOUT_S)
        stderr.drain()
        raise CommandError(
            "making a user namespace",
            argv,
            ending.describe() if ending else "failed and does not end",
            stderr.text().strip(),
        )
