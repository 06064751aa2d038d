"""Attacks by what a pod's author writes into its specification."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.oci.spec.mounts import MAX_DEPTH, MAX_MOUNTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.tenants.tenant import Tenant
    from tests.integration.scene import Pod

SCHEMES = "://"
"""Looks like the middle of an address, again and again: what looks for addresses' passwords tries at each."""
HOST_PORTS = 10_000
MOUNTS_A_SECOND = 60
"""An attack must not outlast its time by minutes."""
CALLS_AT_ONCE = 8


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


def long_texts(tenant: Tenant) -> None:
    """A working directory, a user, an image, a mount: each of hundreds of kilobytes."""
    text = SCHEMES * 100_000
    pod = tenant.pod()
    tenant.begin()
    while tenant.goes_on():
        config = pod.container("sleep", "1")
        config.working_dir = "/" + text
        _creates(tenant, pod, config)
        config = pod.container("sleep", "1")
        config.linux.security_context.run_as_username = text
        _creates(tenant, pod, config)
        config = pod.container("sleep", "1")
        config.image.image = text
        _creates(tenant, pod, config)
        config = pod.container("sleep", "1")
        config.mounts.append(api.Mount(host_path=text, container_path="/" + text))
        _creates(tenant, pod, config)


def long_commands(tenant: Tenant) -> None:
    """A program's name that no kernel takes."""
    pod = tenant.pod()
    tenant.begin()
    while tenant.goes_on():
        _creates(tenant, pod, pod.container(SCHEMES * 100_000))


def values_of_sysctls(tenant: Tenant) -> None:
    """A pod's sysctls with values, and names, that the kernel refuses."""
    text = SCHEMES * 100_000
    requests = []
    for name, value in (("net.ipv4.ip_forward", text), ("net.ipv4." + text, "1")):
        config = tenant.config()
        config.linux.sysctls[name] = value
        Path(config.log_directory).mkdir(parents=True, exist_ok=True)
        requests.append(api.RunPodSandboxRequest(config=config))
    tenant.begin()
    while tenant.goes_on():
        for request in requests:
            call = partial(tenant.client.runtime.RunPodSandbox, request, timeout=tenant.left_s())
            assert not tenant.tries(call), "the kernel took it"


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


def nested_mounts(tenant: Tenant) -> None:
    """Containers of as many mounts as may be, in a tree of them as deep as may be; and of ones that lie deeper."""
    n_mounts = min(MAX_MOUNTS, round(tenant.seconds * MOUNTS_A_SECOND))
    pod = tenant.pod()
    source = tenant.directory / "empty"
    source.mkdir()
    deep = ["/m" * depth for depth in range(1, MAX_DEPTH)]
    wide = [f"{deep[-1]}/{number}" for number in range(n_mounts - len(deep))]
    too_deep = ["/m" * depth for depth in range(1, n_mounts + 1)]
    tenant.begin()

    def create(paths: Sequence[str]) -> None:
        config = pod.container("sleep", "1000000")
        config.mounts.extend(
            api.Mount(host_path=str(source), container_path=path) for path in paths
        )
        while tenant.goes_on():
            config.metadata.attempt += 1
            _creates(tenant, pod, config)

    creates = [partial(create, [*deep, *wide])] * (CALLS_AT_ONCE - 1)
    tenant.at_once(*creates, partial(create, too_deep))
