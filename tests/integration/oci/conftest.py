"""Real containers of a busybox root file system, made by hand; whatever a test leaves is taken away and named."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.host.process import Reaper
from cri_shim.oci.cli import CliRuntime
from cri_shim.oci.conmon import MonitorRequest, Monitors
from cri_shim.oci.runtime import HandlerSettings
from tests.harness.monitors import create_monitored
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cri_shim.oci.waiting_monitor import Monitored, MonitorIdentity

BUSYBOX = Path("/bin/busybox")
CGROUP_TOP = f"cri-shim-test-{os.getpid()}"


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Another process makes it true, so there is nothing to be woken by."""
    async with asyncio.timeout(timeout_s * SLOWNESS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class Made:
    """A bundle, and the files around it."""

    container_id: str
    dir: Path

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_TOP}/{self.container_id}"

    @property
    def pid_file(self) -> Path:
        return self.dir / "pid"

    @property
    def persist_dir(self) -> Path:
        return self.dir / "persist"

    @property
    def log_file(self) -> Path:
        return self.dir / "0.log"

    def request(self, **changes: Any) -> MonitorRequest:
        facts: dict[str, Any] = {
            "container_id": self.container_id,
            "bundle_dir": self.dir,
            "pid_file": self.pid_file,
            "persist_dir": self.persist_dir,
            "log_file": self.log_file,
        }
        return MonitorRequest(**(facts | changes))


class Host:
    """The parts under test, wired as the daemon does."""

    def __init__(self, top: Path, reaper: Reaper) -> None:
        self.top = top
        self.reaper = reaper
        self.cgroups = Cgroups.detect()
        self.exits_dir = top / "exits"
        self.exits_dir.mkdir()
        (top / "attach").mkdir()
        self.monitors = Monitors(
            reaper, "conmon", exits_dir=self.exits_dir, socket_dir=top / "attach"
        )
        self.runtime = self.runtime_of("runc")
        self.made: list[Made] = []
        self.spawned: list[MonitorIdentity] = []

    def runtime_of(self, path: str, *, name: str = "", args: tuple[str, ...] = ()) -> CliRuntime:
        settings = HandlerSettings(
            name or path, path, self.top / f"runtime-{name or path}", args=args
        )
        return CliRuntime(settings, self.reaper, timeout_s=30.0)

    def bundle(
        self, *args: str, terminal: bool = False, memory_limit: int | None = None, **process: Any
    ) -> Made:
        made = Made(secrets.token_hex(32), self.top / f"c{len(self.made)}")
        self.made.append(made)
        for name in ("rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/tmp", "persist"):
            (made.dir / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, made.dir / "rootfs/bin/busybox")
        for applet in ("sh", "sleep", "echo", "cat", "kill", "tail", "true", "ls"):
            (made.dir / "rootfs/bin" / applet).symlink_to("busybox")
        resources = {"memory": {"limit": memory_limit}} if memory_limit else {}
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {
                "terminal": terminal,
                "cwd": "/",
                "args": list(args),
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                **process,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
            "linux": {
                "cgroupsPath": f"/{made.cgroup}",
                "resources": resources,
                "namespaces": [
                    {"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")
                ],
            },
        }
        (made.dir / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        return made

    async def create(self, made: Made, **changes: Any) -> Monitored:
        return await create_monitored(
            self.monitors,
            made.request(**changes),
            self.runtime,
            timeout_s=30.0,
            on_spawn=self.spawned.append,
        )

    async def exit_code(self, made: Made, timeout_s: float = 10.0) -> int:
        await until((self.exits_dir / made.container_id).exists, timeout_s)
        return int((self.exits_dir / made.container_id).read_text(encoding="ascii"))

    async def logged(self, made: Made, count: int = 1) -> list[list[str]]:
        """The log's lines once there are `count`, each as time, stream, tag, text."""
        async with asyncio.timeout(10 * SLOWNESS):
            while True:
                text = made.log_file.read_text(encoding="utf-8") if made.log_file.exists() else ""
                if text.count("\n") >= count:
                    return [line.split(" ", 3) for line in text.splitlines()]
                await asyncio.sleep(0.005)

    async def take_away(self) -> None:
        """Everything, whatever state it is in; then say what should not have been there."""
        for made in self.made:
            await self.cgroups.kill_all(made.cgroup, 5.0)
            await self.runtime.delete(made.container_id, force=True)
            await self.cgroups.remove(made.cgroup)
        await self.cgroups.remove(CGROUP_TOP)
        await until(lambda: not self.monitors.find_monitors())  # they end with their containers
        assert os.listdir(self.top / "attach") == []
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        assert str(self.top) not in mounts


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    reaper = Reaper()
    reaper.open()
    host = Host(tmp_path, reaper)
    try:
        yield host
    finally:
        await host.take_away()
        reaper.close()


@pytest.fixture(scope="session", autouse=True)
def _needs() -> None:
    missing = [name for name in ("runc", "conmon") if shutil.which(name) is None]
    assert os.geteuid() == 0, "these tests need root"
    assert not missing, f"install {missing} (Debian: apt install runc conmon)"
    assert BUSYBOX.exists(), "install busybox-static"
