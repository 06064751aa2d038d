"""Child processes: the one reaper of the daemon, and what it starts.

Rules:
- One `Reaper` owns all waiting in this process; nothing else may wait for children, asyncio's child watcher and
  `subprocess` included. It is used on the loop's thread only. Since that thread both spawns and collects, a pid is
  known before its ending can be seen.
- The daemon is the child subreaper of what it starts: a process that a runtime leaves behind becomes our child, and
  whoever learns its pid may `claim` it, also when it has ended meanwhile.
- A child runs in a session of its own, gets no descriptor it wasn't given and no environment but what was passed.
  `run` adds a deadline, bounded output and the certainty that the command doesn't go on once it has raised.
- Children outlive the daemon on purpose (monitors do): closing the reaper kills nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import CommandError, DeadlineError
from cri_shim.host import syscalls
from cri_shim.host.capture import Capture
from cri_shim.host.child import Child, Completed, Ending
from cri_shim.host.pidfd import (
    PidWatch,
    kill_pidfd,
    kill_process,
    open_pidfd,
    parent_pid,
    start_time_ticks,
)
from cri_shim.host.proctree import children_of, family_of
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "Child",
    "Completed",
    "Ending",
    "PidWatch",
    "Reaper",
    "kill_pidfd",
    "kill_process",
    "open_pidfd",
    "parent_pid",
    "start_time_ticks",
]

log = structlog.get_logger()

STDERR_TAIL_BYTES = 4096
PIPE_GRACE_S = 0.5
"""How long a pipe that a grandchild still holds is read after the child itself has ended."""
TERM_GRACE_S = 1.0
"""How long a command that is late may take to end by itself."""
KILL_GRACE_S = 5.0
"""How long a killed child may take to go: one stuck in the kernel must not take its caller with it."""
MAX_KEPT_ENDINGS = 4096
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Reaper:
    """The one that waits: one per process, used on the thread of the loop it was opened on."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._kept: dict[int, Ending] = {}
        self._windows = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._was_subreaper = False

    def open(self) -> None:
        """Become the subreaper and collect from now on; on the main thread, inside the running loop."""
        if self._loop is not None:
            raise RuntimeError("the reaper is open already")
        loop = asyncio.get_running_loop()
        self._was_subreaper = syscalls.is_child_subreaper()
        syscalls.set_child_subreaper(enabled=True)
        loop.add_signal_handler(signal.SIGCHLD, self._collect)
        self._loop = loop
        self._collect()

    def close(self) -> None:
        """Stop collecting; children go on, and whoever still waits for one is cancelled. Idempotent."""
        if self._loop is None:
            return
        self._collect()
        self._loop.remove_signal_handler(signal.SIGCHLD)
        syscalls.set_child_subreaper(enabled=self._was_subreaper)
        self._loop = None
        for child in self._children.values():
            child.abandon()
        self._children.clear()
        self._kept.clear()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = -1,
    ) -> Child:
        """Start `argv` in a new session; the caller keeps, and closes, the descriptors it passes.

        A standard stream that isn't given is /dev/null. Without `env` the child sees our PATH and nothing else; the
        program is looked up in the PATH that the child gets. `pass_fds` keep their numbers. Without `umask` it is ours.

        Raises OSError, with the name, when the program or `cwd` can't be used.
        """
        self._check_open()
        if env is None:
            env = {"PATH": os.environ.get("PATH", _DEFAULT_PATH)}
        # Without a preexec_fn this is vfork: the cost doesn't grow with the daemon's memory.
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            env=env,
            cwd=cwd,
            close_fds=True,
            pass_fds=pass_fds,
            start_new_session=True,
            umask=umask,
        )
        popen.returncode = (
            0  # taken for finished, it neither waits for the pid nor warns when dropped
        )
        try:
            return self._register(popen.pid, tuple(argv))
        except OSError:  # out of descriptors: what nobody owns must not run
            os.killpg(popen.pid, signal.SIGKILL)
            raise

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        max_stdout_bytes: int = 1 << 20,
    ) -> Completed:
        """Run `argv` to its end, whatever its status, and return what it wrote: all of stdout, the tail of stderr.

        With `max_stdout_bytes` 0 its stdout is /dev/null, for who has nothing to say there. Output that a grandchild
        still could write is waited for half a second at most.

        Raises:
            OSError: the program can't be started.
            DeadlineError: it took longer than `timeout_s`; it and all that it had started have been killed.
            CommandError: it wrote more than `max_stdout_bytes`; its process group has been killed.
            CancelledError: only after the process group has been killed and the child collected.
        """
        started = time.monotonic()
        with contextlib.ExitStack() as descriptors:
            stdin_fd = None
            if stdin:
                stdin_fd = _memory_file(stdin)
                descriptors.callback(os.close, stdin_fd)
            stderr = Capture(STDERR_TAIL_BYTES, tail=True)
            descriptors.callback(stderr.close)
            stdout = Capture(max_stdout_bytes) if max_stdout_bytes else None
            if stdout is not None:
                descriptors.callback(stdout.close)
            child = self.spawn(
                argv,
                stdin=stdin_fd,
                stdout=None if stdout is None else stdout.write_fd,
                stderr=stderr.write_fd,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
            )
            try:
                if stdout is not None:
                    stdout.start(on_overflow=child.kill_group)
                stderr.start()
                ending = await child.wait_at_most(timeout_s)
                if ending is None:
                    await self._ask_to_end(child)
            finally:
                # Whatever ended the wait, the command doesn't go on.
                await _kill_and_collect(child)
            if ending is None:
                said = stderr.text().strip()
                raise DeadlineError(
                    f"{argv[0]} did not finish within {timeout_s:g} s and was killed"
                    + (f"; it had said: {said}" if said else "")
                )
            await _finish((stderr,) if stdout is None else (stdout, stderr), PIPE_GRACE_S)
            if stdout is not None and stdout.overflowed:
                raise CommandError(
                    "reading its output",
                    argv,
                    f"wrote more than {max_stdout_bytes} bytes to stdout and was stopped",
                    stderr.text(),
                )
            return Completed(
                argv=tuple(argv),
                ending=ending,
                stdout=b"" if stdout is None else stdout.data(),
                stderr_tail=stderr.text(),
                seconds=time.monotonic() - started,
            )

    @contextlib.contextmanager
    def awaiting_orphans(self) -> Iterator[None]:
        """While open, the endings of unknown children are kept for `claim`.

        Open it before starting the command that leaves a process behind, claim before leaving it.
        """
        self._windows += 1
        try:
            yield
        finally:
            self._windows -= 1
            if self._windows == 0:
                self._kept.clear()

    def claim(self, pid: int) -> Child | None:
        """Own a re-parented process that a pid file named, ended or not.

        None when it is no child of ours, is owned already, or ended unseen because no `awaiting_orphans` was open.
        Raises OSError when out of descriptors.
        """
        self._check_open()
        ending = self._kept.pop(pid, None)
        if ending is not None:
            child = Child(pid, (), None)
            child.end(ending)
            return child
        if pid in self._children or parent_pid(pid) != os.getpid():
            return None
        return self._register(pid, ())

    def orphans(self) -> list[int]:
        """Children that came to us when their parents ended, of nobody's here so far. Blocking, in any thread."""
        return [pid for pid in children_of(os.getpid()) if pid not in self._children]

    async def _ask_to_end(self, child: Child) -> None:
        """SIGTERM, for whoever can put its things in order; then SIGKILL for all that it had started."""
        family, _ = await in_time(
            "looking at what a late command has started",
            lambda: family_of(child.pid, self.orphans()),
        )
        child.kill_group(signal.SIGTERM)
        await child.wait_at_most(TERM_GRACE_S)
        child.kill_group()
        # Of a group whose leader has ended only those are told apart from others that were seen before.
        for entry in family.values():
            kill_process(entry.pid, entry.start_ticks)

    def _check_open(self) -> None:
        if self._loop is None:
            raise RuntimeError("the reaper is not open")

    def _register(self, pid: int, argv: tuple[str, ...]) -> Child:
        # Uncollected, the pid can't be anybody else's: pidfd_open finds it, as a zombie perhaps.
        child = Child(pid, argv, os.pidfd_open(pid))
        self._children[pid] = child
        self._kept.pop(pid, None)  # the ending of an earlier process of the same number
        return child

    def _collect(self) -> None:
        # SIGCHLD coalesces, so one call takes all there are. The look before the collecting names the process while
        # its number is still taken.
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if seen is None:
                    return
                pid, wait_status = os.waitpid(seen.si_pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ending = Ending(wait_status)
            child = self._children.pop(pid, None)
            if child is not None:
                child.end(ending)
            elif self._windows:
                self._kept[pid] = ending
                if len(self._kept) > MAX_KEPT_ENDINGS:
                    del self._kept[next(iter(self._kept))]
            else:
                log.debug("collected an unknown child", pid=pid, ending=ending.describe())


async def _kill_and_collect(child: Child) -> None:
    """Kill what runs and wait until it is collected; a cancellation meanwhile waits too, then is raised."""
    if child.settled:
        return
    child.kill_group()
    cancelled: asyncio.CancelledError | None = None
    give_up_at = time.monotonic() + KILL_GRACE_S
    while not child.settled and (left := give_up_at - time.monotonic()) > 0:
        try:
            await child.wait_at_most(left)
        except asyncio.CancelledError as error:
            cancelled = error
    if child.ending is None:
        log.error("killed process does not end", pid=child.pid, command=child.argv[0])
    if cancelled is not None:
        raise cancelled


async def _finish(captures: tuple[Capture, ...], grace_s: float) -> None:
    """Read what is left; only a pipe that somebody else still holds has to be waited for."""
    held = [capture for capture in captures if not capture.drain()]
    for capture in held:
        capture.read_on()
    if held:
        await asyncio.wait({capture.eof for capture in held}, timeout=grace_s)


def _memory_file(data: bytes) -> int:
    """A descriptor that reads as `data`: unlike a pipe it never has to be fed while the child runs."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
