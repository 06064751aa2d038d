"""A configuration in a directory of its own, with small programs in the place of runtime and monitor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.config import Config
from cri_shim.config.model import (
    CniSettings,
    HandlerSettings,
    MetricsSettings,
    RuntimeSettings,
    StreamingSettings,
)
from cri_shim.config.values import Executable, HandlerName, HostPort, ListenUrl
from cri_shim.daemon import directories
from cri_shim.host.cgroups.tree import Cgroups
from cri_shim.host.process import Reaper
from cri_shim.log import set_level
from tests.fakes import version_runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """The daemon's directories, with its sockets."""
    return short_path


@pytest.fixture(autouse=True)
def level_of_the_log() -> Iterator[None]:
    """A reload may change it, and it is one for all loggers."""
    yield
    set_level("info")


@pytest.fixture
def install_runtime(tmp_path: Path) -> Callable[[str], Executable]:
    """Makes a runtime of that name."""

    def install(name: str) -> Executable:
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        shutil.copy(version_runtime.__file__, path)
        path.chmod(0o755)
        return Executable(str(path))

    return install


@pytest.fixture
def config(tmp_path: Path, install_runtime: Callable[[str], Executable]) -> Config:
    """Everything below one directory; two handlers, one of them not installed."""
    (tmp_path / "cni").mkdir()
    (tmp_path / "net.d").mkdir()
    return Config(
        root=tmp_path / "root",
        state=tmp_path / "state",
        listen=(ListenUrl(f"unix://{tmp_path}/s"),),
        runtime=RuntimeSettings(
            default_handler=HandlerName("rro"),
            handlers={
                HandlerName("gone"): HandlerSettings(path=Executable("/nonexistent/runtime")),
                HandlerName("rro"): HandlerSettings(path=install_runtime("rro")),
            },
            monitor=install_runtime("conmon"),
        ),
        cni=CniSettings(plugin_dirs=(tmp_path / "cni",), conf_dir=tmp_path / "net.d"),
        # Whichever are free: the usual ones may be another daemon's.
        metrics=MetricsSettings(address=HostPort("127.0.0.1:0")),
        streaming=StreamingSettings(port=0),
    )


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    """The one that waits for children."""
    opened = Reaper()
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def recorded_cgroups() -> Path:
    """The files of a node with cgroup v1."""
    return Path(__file__).parents[2] / "data/cgroups/v1"


@pytest.fixture
def netns_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the daemon pins namespaces, below the test's directory."""
    monkeypatch.setattr(directories, "NETNS_DIR", tmp_path / "netns")
    return tmp_path / "netns"


@pytest.fixture
def recorded_node(monkeypatch: pytest.MonkeyPatch, recorded_cgroups: Path, netns_dir: Path) -> None:
    """A node with cgroup v1, whatever this one has, and with namespaces of its own."""
    cgroups = Cgroups.detect(recorded_cgroups)
    monkeypatch.setattr(Cgroups, "detect", lambda: cgroups)
