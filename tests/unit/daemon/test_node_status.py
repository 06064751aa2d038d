"""How the node stands, as Status tells it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.cni.attachment import Attachment
from cri_shim.cni.pod_cidr import PodCidr
from cri_shim.daemon.handlers import Handlers
from cri_shim.daemon.node_status import NodeState
from cri_shim.oci.conmon import Monitors
from cri_shim.paths import Paths
from cri_shim.sandbox.network.pending_deletes import PendingDeletes
from tests.fakes.networks import FakeCni
from tests.fakes.points import Points
from tests.fakes.task_shim import shims_of

if TYPE_CHECKING:
    from cri_shim.cni.network import Cni
    from cri_shim.config import Config
    from cri_shim.host.process import Reaper

pytestmark = pytest.mark.asyncio


class Node:
    """A node state and what it looks at."""

    def __init__(self, config: Config, reaper: Reaper) -> None:
        paths = Paths(config.root, config.state)
        self.cni = FakeCni(Points(), "pods", "storage")
        self.pending_deletes = PendingDeletes(paths.pending_deletes_dir)
        self.config = config
        self.handlers = Handlers(
            config.runtime,
            paths=paths,
            reaper=reaper,
            shims=shims_of(Paths(config.root, config.state), reaper),
            systemd=False,
        )
        self.state = NodeState(
            cni=cast("Cni", self.cni),
            pending_deletes=self.pending_deletes,
            pod_cidr=PodCidr(cast("Cni", self.cni), conf_dir=config.root, template=None),
            handlers=self.handlers,
            monitors=Monitors(
                reaper, config.runtime.monitor, exits_dir=paths.exits_dir, socket_dir=Path("/run/t")
            ),
            config=lambda: self.config,
            systemd=True,
        )


@pytest.fixture
def node(config: Config, reaper: Reaper) -> Node:
    return Node(config, reaper)


async def test_a_node_with_everything_is_ready(node: Node) -> None:
    status = node.state.status()
    assert status.runtime.ok
    assert status.network.ok


async def test_a_node_without_a_network_says_what_is_missing(node: Node) -> None:
    node.cni.ready = False
    network = node.state.status().network
    assert (network.ok, network.reason) == (False, "NetworkPluginNotReady")
    assert network.message


@pytest.mark.parametrize("missing", ["rro", "conmon"])
async def test_a_node_whose_programs_are_gone_is_not_ready_until_they_come_back(
    node: Node, tmp_path: Path, missing: str
) -> None:
    program = tmp_path / "bin" / missing
    program.rename(tmp_path / "elsewhere")
    runtime = node.state.status().runtime
    assert not runtime.ok
    assert missing in runtime.message
    (tmp_path / "elsewhere").rename(program)
    assert node.state.status().runtime.ok


async def test_only_handlers_that_were_found_to_work_are_shown_the_default_one_also_as_none(
    node: Node,
) -> None:
    assert node.state.status().handlers == []
    await node.handlers.discover()
    assert [(h.name, h.recursive_read_only_mounts) for h in node.state.status().handlers] == [
        ("", True),
        ("rro", True),
    ]


async def test_information_holds_the_configuration_and_the_networks(node: Node) -> None:
    info = node.state.info()
    assert isinstance(info["config"], dict)
    assert info["config"]["root"] == str(node.config.root)
    assert info["cni"] == {
        "ready": True,
        "reason": "",
        "message": "",
        "networks": ["pods", "storage"],
        "pendingDeletes": [],
    }


async def test_information_names_what_plugins_have_pending(node: Node) -> None:
    attachment = Attachment(container_id="a1", netns="", ifname="eth0", network="pods")
    node.pending_deletes.add(attachment, pod="default/web", error="busy")
    cni = node.state.info()["cni"]
    assert isinstance(cni, dict)
    (pending,) = cni["pendingDeletes"]
    assert pending.pop("sinceNs") > 0
    assert pending == {
        "pod": "default/web",
        "sandbox": "a1",
        "network": "pods",
        "interface": "eth0",
        "error": "busy",
    }


async def test_the_cgroup_driver_is_told(node: Node) -> None:
    assert node.state.uses_systemd_cgroups()
