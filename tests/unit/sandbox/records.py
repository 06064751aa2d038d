"""Sandboxes and containers as a test wants them, without having made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.sandbox.store.model import (
    ContainerMetadata,
    ContainerRecord,
    ContainerStatus,
    NetworkAttachment,
    PodMetadata,
    SandboxRecord,
    SandboxStatus,
)
from cri_shim.sandbox.store.store import Container, Sandbox, as_json
from tests.fakes.node_harness import BOOT_ID, container_config, pod_config

if TYPE_CHECKING:
    from cri_shim._pb.cri.v1 import api_pb2 as api


def make_sandbox(
    sandbox_id: str = "5" * 64,
    *,
    name: str = "web",
    status: SandboxStatus | None = None,
    config: api.PodSandboxConfig | None = None,
    boot_id: str = BOOT_ID,
    created_at_ns: int = 1,
) -> Sandbox:
    """A sandbox that nothing was done for."""
    config = config or pod_config(name)
    of = config.metadata
    record = SandboxRecord(
        id=sandbox_id,
        metadata=PodMetadata(of.name, of.namespace, of.uid, of.attempt),
        handler="runc",
        digest="digest",
        created_at_ns=created_at_ns,
        boot_id=boot_id,
        cgroup_parent="",
        netns="",
        hostname="web",
        image_id="sha256:0",
        layers=("base",),
        config=as_json(config),
    )
    attachments = (NetworkAttachment("pods", "eth0"),)
    return Sandbox(record, status or SandboxStatus(attachments=attachments), config)


def make_container(
    container_id: str = "c" * 64,
    *,
    name: str = "main",
    sandbox_id: str = "5" * 64,
    status: ContainerStatus | None = None,
    config: api.ContainerConfig | None = None,
    boot_id: str = BOOT_ID,
    created_at_ns: int = 1,
) -> Container:
    """A container that nothing was done for."""
    config = config or container_config(name)
    record = ContainerRecord(
        id=container_id,
        sandbox_id=sandbox_id,
        metadata=ContainerMetadata(config.metadata.name, config.metadata.attempt),
        handler="runc",
        digest="digest",
        created_at_ns=created_at_ns,
        boot_id=boot_id,
        cgroup_parent="",
        image_id="sha256:0",
        image_ref="busybox",
        layers=("base",),
        log_path="",
        stop_signal=15,
        config=as_json(config),
    )
    return Container(record, status or ContainerStatus(), config)
