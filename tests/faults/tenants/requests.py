"""Attacks by what a pod's author writes into its specification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api

if TYPE_CHECKING:
    from tests.faults.tenants.tenant import Tenant
    from tests.integration.scene import Pod

SCHEMES = "://"
"""Looks like the middle of an address, again and again: what looks for addresses' passwords tries at each."""
HOST_PORTS = 10_000


def _creates(tenant: Tenant, pod: Pod, config: api.ContainerConfig) -> None:
    request = api.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
    )
    Path(pod.config.log_directory, config.log_path).parent.mkdir(parents=True, exist_ok=True)
    if tenant.tries(
        lambda: tenant.client.runtime.CreateContainer(request, timeout=tenant.left_s())
    ):
        listed = tenant.client.runtime.ListContainers(
            api.ListContainersRequest(filter=api.ContainerFilter(pod_sandbox_id=pod.id))
        )
        for container in listed.containers:
            tenant.client.remove(container.id)


def values_of_the_environment(tenant: Tenant) -> None:
    """Values that runtimes refuse, of 60 to 400 KB."""
    pod = tenant.pod()
    tenant.begin()
    while tenant.goes_on():
        for size in (60_000, 120_000, 400_000):
            for name in ("HOME", "A"):
                value = SCHEMES * (size // len(SCHEMES)) + "\n"
                config = pod.container("sleep", "1")
                config.envs.append(api.KeyValue(key=name, value=value.encode()))
                _creates(tenant, pod, config)


def host_ports(tenant: Tenant) -> None:
    """Thousands of host ports, the last of them twice, so that they are compared and then refused."""
    ports = [*range(1, HOST_PORTS), HOST_PORTS - 1]
    config = tenant.config()
    config.port_mappings.extend(
        api.PortMapping(protocol=api.UDP, host_port=port, container_port=1) for port in ports
    )
    request = api.RunPodSandboxRequest(config=config)
    tenant.begin()
    tenant.again_and_again(
        lambda: tenant.client.runtime.RunPodSandbox(request, timeout=tenant.left_s())
    )
