"""Runtime-specs of pause containers: what is refused early, and what is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    InvalidArgumentError,
)
from cri_shim.sandbox.store.model import SandboxStatus
from tests.fakes.node_harness import pod_config
from tests.unit.sandbox.records import make_sandbox
from tests.unit.sandbox.spec_node import Node

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# --- sandboxes ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_pause_container_is_built_from_its_record_and_image(node: Node) -> None:
    sandbox = make_sandbox(status=SandboxStatus())
    spec = await node.sandbox_specs.build(
        sandbox,
        node.sandbox_specs.plan(sandbox.config, "runc"),
        node.image(entrypoint=("/pause",), cmd=()),
        None,
    )
    assert spec["process"]["args"] == ["/pause"]
    assert spec["root"]["path"] == str(node.paths.sandbox(sandbox.id).rootfs_dir)
    assert spec["linux"]["cgroupsPath"].endswith(sandbox.id)


def test_the_pods_network_parameters_are_ours_to_write(node: Node) -> None:
    config = pod_config()
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    assert node.sandbox_specs.plan(config, "runc").sysctls.network == {"net.ipv4.ip_forward": "1"}


@pytest.mark.parametrize("sysctl", ["vm.swappiness", "net.ipv4/../../x"])
def test_parameters_that_no_pod_may_set_are_refused_early(node: Node, sysctl: str) -> None:
    config = pod_config()
    config.linux.sysctls[sysctl] = "1"
    with pytest.raises(InvalidArgumentError):
        node.sandbox_specs.plan(config, "runc")


def test_a_user_that_no_pause_container_can_have_is_refused_early(node: Node) -> None:
    config = pod_config()
    config.linux.security_context.run_as_user.value = -1
    with pytest.raises(InvalidArgumentError, match="run_as_user"):
        node.sandbox_specs.plan(config, "runc")


@pytest.mark.asyncio
async def test_what_the_request_said_is_taken_from_the_plan(node: Node) -> None:
    config = pod_config()
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    plan = node.sandbox_specs.plan(config, "runc")
    sandbox = make_sandbox(status=SandboxStatus())  # whose own request says nothing of it
    spec = await node.sandbox_specs.build(
        sandbox, plan, node.image(entrypoint=("/pause",), cmd=()), None
    )
    assert spec["linux"]["sysctl"] == {"kernel.shm_rmid_forced": "1"}
