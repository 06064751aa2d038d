"""A reaper, a network namespace that is not the host's, and a node with scripted plugins."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cri_shim.cni.attachment import Attachment
from cri_shim.cni.leftover import LeftoverPlugins
from cri_shim.cni.network import Cni
from cri_shim.host.process import Reaper
from tests.fakes.cni_plugin import install_plugin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CONTAINER_ID = "0123456789abcdef" * 4


@pytest_asyncio.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.open()
    yield reaper
    reaper.close()


@pytest.fixture(scope="session")
def netns() -> Iterator[str]:
    """A namespace of some process; needs no root where users may make namespaces of their own."""
    process = subprocess.Popen(
        ["unshare", "--map-root-user", "--net", "sh", "-c", "echo; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    yield f"/proc/{process.pid}/ns/net"
    process.kill()
    process.wait()
    process.stdout.close()


@dataclass
class Node:
    """A configuration directory, scripted plugins `first` and `second`, and what they were asked."""

    root: Path
    cni: Cni
    netns: str

    @property
    def conf_dir(self) -> Path:
        return self.root / "net.d"

    @property
    def cache_dir(self) -> Path:
        return self.root / "cache"

    def configure(
        self,
        *,
        version: str = "1.0.0",
        name: str = "pods",
        file: str = "10-pods.conflist",
        **more: bool,
    ) -> None:
        plugins = [
            {
                "type": plugin,
                "capabilities": {"portMappings": plugin == "second"},
                "script": {"record": str(self.root / "calls"), "leases": str(self.leases(plugin))},
                "script_file": str(self.root / f"{plugin}.json"),
            }
            for plugin in ("first", "second")
        ]
        document = {"cniVersion": version, "name": name, "plugins": plugins, **more}
        self.conf_dir.mkdir(exist_ok=True)
        (self.conf_dir / file).write_text(json.dumps(document))

    def script(self, plugin: str, **verbs: object) -> None:
        (self.root / f"{plugin}.json").write_text(json.dumps(verbs))
        (self.root / "bin" / f"{plugin}.json").write_text(json.dumps(verbs))

    def leases(self, plugin: str) -> Path:
        directory = self.root / f"leases-{plugin}"
        directory.mkdir(exist_ok=True)
        return directory

    def held(self) -> list[str]:
        """The plugins that still hold something for a container."""
        return [p for p in ("first", "second") if any(self.leases(p).iterdir())]

    def calls(self) -> list[dict[str, Any]]:
        file = self.root / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def order(self) -> list[str]:
        return [f"{call['verb']} {call['plugin']}" for call in self.calls()]

    def attachment(self, **changes: Any) -> Attachment:
        values: dict[str, Any] = {
            "container_id": CONTAINER_ID,
            "netns": self.netns,
            "ifname": "eth0",
            "network": "pods",
            "args": {"K8S_POD_NAME": "web"},
            "capability_args": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]},
        }
        return Attachment(**{**values, **changes})

    def cache_file(self) -> Path:
        return self.cache_dir / f"pods-{CONTAINER_ID}-eth0"


def make_cni(
    root: Path, reaper: Reaper, *, timeout_s: float = 20, loopback_plugin: bool = False
) -> Cni:
    return Cni(
        reaper,
        plugin_dirs=[root / "absent", root / "bin"],
        conf_dir=root / "net.d",
        cache_dir=root / "cache",
        leftovers=LeftoverPlugins([root / "absent", root / "bin"]),
        timeout_s=timeout_s,
        cancel_grace_s=0.2,
        loopback_plugin=loopback_plugin,
    )


@pytest_asyncio.fixture
async def node(tmp_path: Path, reaper: Reaper, netns: str) -> AsyncIterator[Node]:
    for plugin in ("first", "second"):
        install_plugin(tmp_path / "bin", plugin)
    node = Node(tmp_path, make_cni(tmp_path, reaper), netns)
    for plugin in ("first", "second"):
        node.script(plugin)
    node.configure()
    node.cni.load()
    yield node
    node.cni.close()
