"""A running container to run commands in: a real reaper, and a small program in the runtime's place."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cri_shim.background import Background
from cri_shim.errors import TooManyFilesError
from cri_shim.host.port import Host
from cri_shim.host.process import Reaper
from cri_shim.host.proctree import process_table
from cri_shim.oci.runtime import ExecCommand, ExecFiles, HandlerSettings
from cri_shim.paths import Paths
from cri_shim.sandbox.exec.files_limits import FilesLimits
from cri_shim.sandbox.exec.process import ExecProcesses
from cri_shim.sandbox.exec.session import ExecSessions
from cri_shim.sandbox.exec.sync import ExecResult, Execs
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from cri_shim.sandbox.store.model import ContainerStatus
from tests.fakes import exec_runtime
from tests.fakes.clock import until
from tests.unit.sandbox.records import make_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.oci.runtime import Runtime
    from cri_shim.sandbox.store.store import Container
    from cri_shim.slots import Slots

RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2)
MAX_OUTPUT, MAX_ANSWER = 4096, 6000


class ExecRuntime:
    """What exec asks of a `Runtime`."""

    def __init__(self, root_dir: Path) -> None:
        self.program = [sys.executable, "-SE", exec_runtime.__file__]
        self.settings = HandlerSettings(name="runc", path="runc", root_dir=root_dir)
        self.attached = False
        self.env: tuple[str, ...] = ()
        self.ended: list[int] = []

    async def exec_command(
        self, container_id: str, files: ExecFiles, console_socket: Path | None = None
    ) -> ExecCommand:
        options = ["--process", str(files.process), "--pid-file", str(files.pid)]
        if console_socket is not None:
            options += ["--console-socket", str(console_socket)]
        how = [] if self.attached else ["--detach"]
        return ExecCommand(
            [*self.program, "exec", *how, *options, container_id], self.attached, self.env
        )

    async def end_exec(self, container_id: str, files: ExecFiles, host_pid: int) -> None:
        self.ended.append(host_pid)

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"]}


class NoCgroups:
    """What exec asks of `Cgroups`, on a node whose kernel counts open files."""

    def __init__(self) -> None:
        self.lack_of_files_limits = ""
        self.gathered: list[str] = []
        self.refuses = False

    def gather_files(self, relative_dir: str) -> None:
        self.gathered.append(relative_dir)
        if self.refuses:
            raise TooManyFilesError(f"cgroup /{relative_dir}: more files are open")


class Node:
    """A running container to run commands in."""

    def __init__(self, base: Path, slots: Slots | None = None) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.host = Host()
        self.reaper = Reaper()
        self.background = Background()
        self.runtime = ExecRuntime(base)
        self.container = self._make_container("c")
        self.exec_dir = self.paths.container(self.container.id).exec_dir
        self.paths.console_dir.mkdir(parents=True)
        self.cgroups = NoCgroups()
        self.pids_in_container: list[int] = []
        processes = self.processes = ExecProcesses(
            host=self.host,
            paths=self.paths,
            runtime_of=lambda _handler: cast("Runtime", self.runtime),
            reaper=self.reaper,
            files_limits=FilesLimits(
                cast("Cgroups", self.cgroups), CgroupPaths(systemd=False, default_parent="")
            ),
            pids_of=lambda _container: self.pids_in_container,
            slots=slots,
        )
        self.sessions = ExecSessions(processes, paths=self.paths, background=self.background)
        self.execs = Execs(
            processes,
            background=self.background,
            max_output_bytes=MAX_OUTPUT,
            max_answer_bytes=MAX_ANSWER,
        )

    def _make_container(self, letter: str, pod: str = "s") -> Container:
        container = make_container(letter * 64, sandbox_id=pod * 64, status=RUNNING)
        container.process_spec = {"args": ["sh"], "env": [], "cwd": "/"}
        self.paths.container(container.id).exec_dir.mkdir(parents=True)
        return container

    def another_container(self, letter: str = "d", pod: str = "s") -> Container:
        return self._make_container(letter, pod)

    async def run(self, *command: str, timeout_s: float = 0) -> ExecResult:
        return await self.execs.exec_sync(self.container, command, cast("int", timeout_s))

    async def sh(self, script: str, timeout_s: float = 0) -> ExecResult:
        return await self.run("sh", "-c", script, timeout_s=timeout_s)

    def runtimes(self) -> list[int]:
        """Commands of the runtime that go on."""
        mine = f"\0{self.exec_dir}/".encode()
        return [pid for pid in process_table() if is_alive(pid) and mine in command_line(pid)]


@asynccontextmanager
async def exec_node(tmp_path: Path, slots: Slots | None = None) -> AsyncIterator[Node]:
    """One, looked after: nothing of its execs is left."""
    made = Node(tmp_path, slots)
    made.reaper.open()
    yield made
    await made.background.close(5)
    made.reaper.close()
    assert list(made.exec_dir.iterdir()) == []
    assert list(made.paths.console_dir.iterdir()) == []
    assert made.runtimes() == []


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def pid_in(path: Path) -> int:
    """The pid that a command writes into a file as soon as it runs."""
    await until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
