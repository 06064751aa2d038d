"""Starts child processes, and collects every child of the daemon (the reaper).

Rules:
- One `Reaper` does all waiting in this process. Nothing else may wait for children, neither asyncio's child watcher nor
  `subprocess`. The loop's thread both spawns and collects, so a child is registered before its ending is collected.
- A child's pidfd tells of its end, and whoever waits goes on at once. The child is collected after the next start, when
  there is nothing to do but wait: the kernel takes up to half a millisecond to forget what /proc had of it.
- Orphans, and what has waited for no start, are collected `COLLECT_AFTER_S` after a SIGCHLD, once for all that ended
  meanwhile: the look takes longer the more children there are. Monitors are let go: each descriptor here makes each
  start dearer, since the kernel copies their table.
- The daemon is a child subreaper. A process that a runtime leaves behind becomes our child, and code that learns its
  pid may `claim` it, even if it has ended meanwhile.
- A child runs in a new session, inherits only the descriptors that it is given, and has only the environment that it is
  given. `run` adds a deadline and a bound on output, and guarantees that the command does not run on after an error.
- Monitors outlive the daemon on purpose: closing the reaper kills no process.
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

from cri_shim.errors import CommandError
from cri_shim.host import syscalls
from cri_shim.host.capture import Capture, OutputFile, finish
from cri_shim.host.child import Child, Completed, Ending, ending_of, kill_and_wait, too_late
from cri_shim.host.files import memory_file
from cri_shim.host.pidfd import kill_process, parent_pid
from cri_shim.host.proctree import children_of, family_of
from cri_shim.kernel_call import in_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Child", "Completed", "Ending", "Reaper"]

log = structlog.get_logger()

STDERR_TAIL_BYTES = 4096
MAX_STDERR_FILE_BYTES = 1 << 16
"""What a command that leaves a process behind may write to stderr."""
PIPE_GRACE_S = 0.5
"""Time for which a pipe that a grandchild still holds open is read after the child has ended."""
TERM_GRACE_S = 1.0
"""Time between SIGTERM and SIGKILL for a command that missed its deadline."""
COLLECT_AFTER_S = 0.1
COLLECTED_AT_ONCE = 16
"""Zombies collected in one turn of the loop."""
MAX_KEPT_ENDINGS = 4096
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Reaper:
    """Spawns and collects children. One per process, used on the thread of the loop on which it was opened."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._zombies: set[int] = set()
        """Children whose ending is known and who are still to be collected."""
        self._later: asyncio.TimerHandle | None = None
        self._kept: dict[int, Ending] = {}
        self._windows = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._was_subreaper = False

    def open(self) -> None:
        """Become the child subreaper, and collect children from now on. Call it on the main thread, in the loop."""
        if self._loop is not None:
            raise RuntimeError("the reaper is open already")
        self._loop = asyncio.get_running_loop()
        self._was_subreaper = syscalls.is_child_subreaper()
        syscalls.set_child_subreaper(enabled=True)
        self._loop.add_signal_handler(signal.SIGCHLD, self._collect_later)
        self._collect_all()

    def close(self) -> None:
        """Stop collecting. Children run on, and waits for them are cancelled. Idempotent."""
        if self._loop is None:
            return
        self._collect_all()
        # A crowd is collected in several turns, and no turn of the loop follows this one.
        while self._later is not None:
            self._later.cancel()
            self._collect_all()
        self._loop.remove_signal_handler(signal.SIGCHLD)
        syscalls.set_child_subreaper(enabled=self._was_subreaper)
        for child in self._children.values():
            self._stop_watching(child)
            child.abandon()
        self._loop = None
        self._children.clear()
        self._kept.clear()

    @property
    def children(self) -> tuple[int, ...]:
        """The pids of children that have not ended and were not let go."""
        return tuple(self._children)

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
        """Start `argv` in a new session. The caller still owns the descriptors that it passes.

        A standard stream that is not given is /dev/null. Without `env` the child has only our PATH. The program is
        looked up in the child's PATH. `pass_fds` keep their numbers. Without `umask` the child inherits ours.

        Raises OSError, with the file name, if the program or `cwd` cannot be used.
        """
        self._check_open()
        if env is None:
            env = {"PATH": os.environ.get("PATH", _DEFAULT_PATH)}
        # Without a preexec_fn `subprocess` uses vfork(2), whose cost does not grow with the daemon's memory.
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
        # With a return code Popen counts as finished: it neither waits for the pid nor warns when it is collected.
        popen.returncode = 0
        try:
            child = self._register(popen.pid, tuple(argv))
        except OSError:  # no descriptor left for a pidfd, so no caller would own the child
            os.killpg(popen.pid, signal.SIGKILL)
            raise
        self._collect_zombies()
        return child

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
        """Run `argv` to its end and return its ending, its stdout and the tail of its stderr.

        With `max_stdout_bytes` 0 its stdout is /dev/null. If a grandchild holds the pipes open, its output is awaited
        for at most `PIPE_GRACE_S`.

        Raises:
            OSError: the program cannot be started.
            DeadlineError: it took longer than `timeout_s` seconds; it and all its descendants have been killed.
            CommandError: it wrote more than `max_stdout_bytes` to stdout; its process group has been killed.
            CancelledError: after the process group has been killed and the child has ended.
        """
        started = time.monotonic()
        with contextlib.ExitStack() as descriptors:
            stdin_fd = memory_file(stdin) if stdin else None
            if stdin_fd is not None:
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
            if stdout is not None:
                stdout.start(on_overflow=child.kill_group)
            stderr.start()
            ending = await self._end_within(child, timeout_s)
            if ending is None:
                raise too_late(argv[0], timeout_s, stderr.text())
            await finish((stderr,) if stdout is None else (stdout, stderr), PIPE_GRACE_S)
            if stdout is not None and stdout.overflowed:
                problem = f"wrote more than {max_stdout_bytes} bytes to stdout and was killed"
                raise CommandError("reading the output of a command", argv, problem, stderr.text())
            return Completed(
                argv=tuple(argv),
                ending=ending,
                stdout=b"" if stdout is None else stdout.data(),
                stderr_tail=stderr.text(),
                seconds=time.monotonic() - started,
            )

    async def run_detaching(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        umask: int = -1,
    ) -> Completed:
        """Run `argv`, a command that leaves a process behind with the command's own standard streams, to its end.

        Nobody reads for that process: stdin and stdout are /dev/null, and stderr is a file in memory that takes
        nothing more once the command has ended. Call it within `awaiting_orphans`, and then `claim` the process.
        Raises as `run`. What the command has left behind by then is the caller's to find.
        """
        started = time.monotonic()
        stderr = OutputFile(MAX_STDERR_FILE_BYTES)
        try:
            child = self.spawn(argv, stderr=stderr.write_fd, env=env, umask=umask)
            ending = await self._end_within(child, timeout_s)
            said = stderr.text(STDERR_TAIL_BYTES)
        finally:
            stderr.close()
        if ending is None:
            raise too_late(argv[0], timeout_s, said)
        return Completed(
            argv=tuple(argv),
            ending=ending,
            stdout=b"",
            stderr_tail=said,
            seconds=time.monotonic() - started,
        )

    @contextlib.contextmanager
    def awaiting_orphans(self) -> Iterator[None]:
        """Keep the endings of unknown children for `claim` while the block runs.

        Enter it before the command that leaves a process behind starts, and call `claim` inside it.
        """
        self._windows += 1
        try:
            yield
        finally:
            self._windows -= 1
            if self._windows == 0:
                self._kept.clear()

    def claim(self, pid: int) -> Child | None:
        """Take ownership of an orphan that became our child, running or ended.

        Returns None if `pid` is not our child, is owned already, or ended while no `awaiting_orphans` was entered.
        Raises OSError if no descriptor is left.
        """
        self._check_open()
        ending = self._kept.pop(pid, None)
        if ending is not None:
            child = Child(pid, (), None)
            child.end(ending)
            return child
        if pid in self._children or pid in self._zombies or parent_pid(pid) != os.getpid():
            return None
        child = self._register(pid, ())
        self._tell_if_ended(child)
        return child

    def let_go(self, child: Child) -> None:
        """Nobody waits for this child any more: collect it as an orphan, and keep no descriptor for it."""
        if self._children.get(child.pid) is child:
            self._stop_watching(child)
            del self._children[child.pid]
            child.abandon()

    def orphans(self) -> list[int]:
        """The pids of orphans that became our children and that nobody has claimed. Blocking, in any thread."""
        ours = self._children.keys() | self._zombies
        return [pid for pid in children_of(os.getpid()) if pid not in ours]

    async def _end_within(self, child: Child, timeout_s: float) -> Ending | None:
        """The ending of a command; None if it took longer than `timeout_s`. It has been killed then."""
        try:
            ending = await child.wait_at_most(timeout_s)
            if ending is None:
                await self._ask_to_end(child)
        finally:
            # Also after a cancellation: a command must not run on without its caller.
            await kill_and_wait(child)
        return ending

    async def _ask_to_end(self, child: Child) -> None:
        """Send SIGTERM to the child's group, so that it can clean up; after a grace SIGKILL to all its descendants."""
        family, _ = await in_time(
            "looking at what a late command has started",
            lambda: family_of(child.pid, self.orphans()),
        )
        child.kill_group(signal.SIGTERM)
        await child.wait_at_most(TERM_GRACE_S)
        child.kill_group()
        # Once its leader has ended, the group's number may be reused. So descendants are killed by pid and start time,
        # as they were listed while the leader ran.
        for entry in family.values():
            kill_process(entry.pid, entry.start_ticks)

    def _check_open(self) -> None:
        if self._loop is None:
            raise RuntimeError("the reaper is not open")

    def _register(self, pid: int, argv: tuple[str, ...]) -> Child:
        # Not collected yet, its pid cannot have been reused. pidfd_open(2) works for a zombie, too.
        pidfd = os.pidfd_open(pid)
        child = Child(pid, argv, pidfd)
        self._children[pid] = child
        self._kept.pop(pid, None)  # the ending of an earlier process with the same pid
        if self._loop is not None:
            self._loop.add_reader(pidfd, self._on_end, child)
        return child

    def _on_end(self, child: Child) -> None:
        self._stop_watching(child)
        self._tell_if_ended(
            child
        )  # not one that is traced: it is ours only later, which SIGCHLD tells

    def _tell_if_ended(self, child: Child) -> None:
        # WNOWAIT leaves the zombie, and with it the pid, until it is collected.
        seen = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if seen is not None:
            self._end(child, ending_of(seen))
            if child.argv:
                self._zombies.add(child.pid)
                self._collect_later()
            else:  # a process of a container's, whose cgroup counts it until it is collected
                os.waitpid(child.pid, os.WNOHANG)

    def _end(self, child: Child, ending: Ending) -> None:
        self._stop_watching(child)
        del self._children[child.pid]
        child.end(ending)

    def _stop_watching(self, child: Child) -> None:
        if self._loop is not None and child.pidfd is not None:
            self._loop.remove_reader(child.pidfd)

    def _collect_later(self) -> None:
        if self._later is None and self._loop is not None:
            self._later = self._loop.call_later(COLLECT_AFTER_S, self._collect_all)

    def _collect_zombies(self) -> None:
        for _ in range(min(len(self._zombies), COLLECTED_AT_ONCE)):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._zombies.pop(), os.WNOHANG)

    def _collect_all(self) -> None:
        """Collect everything that has ended; a crowd in several turns of the loop."""
        self._later = None
        self._collect_zombies()
        for _ in range(COLLECTED_AT_ONCE):
            # Several SIGCHLD may be merged into one. waitpid collects the child that WNOWAIT found, and no other.
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                pid, wait_status = (0, 0) if seen is None else os.waitpid(seen.si_pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ending = Ending(wait_status)
            if (child := self._children.get(pid)) is not None:
                self._end(child, ending)
            elif pid in self._zombies:
                self._zombies.remove(pid)
            elif self._windows:
                self._kept[pid] = ending
                if len(self._kept) > MAX_KEPT_ENDINGS:
                    del self._kept[next(iter(self._kept))]
            else:
                log.debug("collected an unknown child", pid=pid, ending=ending.describe())
        self._collect_later()
