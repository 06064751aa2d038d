"""Requests that can't be met: the right gRPC code, a message that names the field and the cause, and nothing left.

`leak_guard` is around every test here, so that "nothing left" means all that it looks at. What happens when a request
is good and a part fails stands in `test_failing_parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1.api_pb2_grpc import RuntimeServiceStub
from cri_shim.rpc.handlers import python_name
from cri_shim.rpc.runtime_service import RuntimeService
from tests import images
from tests.integration.scene import (
    Pod,
    free_port,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

UNKNOWN_ID = "0" * 64
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
Change = Callable[[Any], object]
"""Makes a good config of a pod or a container bad."""


# --- requests for pods -------------------------------------------------------------------------------------------


def without(name: str) -> Change:
    """Clear a field of the metadata."""
    return lambda config: config.metadata.ClearField(name)


def sysctl(name: str, value: str) -> Change:
    return lambda config: config.linux.sysctls.update({name: value})


def port(**mapping: Any) -> Change:
    return lambda config: config.port_mappings.add(**mapping)


def field(name: str, value: object) -> Change:
    """Set a field of a message by its dotted name; a list is added to what is there."""

    def change(config: Any) -> None:
        *path, last = name.split(".")
        for part in path:
            config = getattr(config, part)
        if isinstance(value, list):
            getattr(config, last).extend(value)
        else:
            setattr(config, last, value)

    return change


BAD_PODS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no name": (without("name"), ("config.metadata.name",)),
    "no namespace": (without("namespace"), ("config.metadata.namespace",)),
    "no uid": (without("uid"), ("config.metadata.uid",)),
    "name that would forge CNI_ARGS": (field("metadata.name", "a;IP=10.0.0.9"), ("a;IP=10.0.0.9",)),
    "hostname with a space": (field("hostname", "a b"), ("hostname", "a b")),
    "hostname too long": (field("hostname", "x" * 65), ("hostname", "64")),
    "hostname that is a comment": (field("hostname", "a#b"), ("hostname", "a#b")),
    "hostname with a line break": (field("hostname", "a\nb"), ("hostname",)),
    "name server with a line break": (
        field("dns_config.servers", ["10.0.0.1\nnameserver 6.6.6.6"]),
        ("dns_config.servers",),
    ),
    "search domain with a space": (
        field("dns_config.searches", ["a b"]),
        ("dns_config.searches", "a b"),
    ),
    "relative log directory": (field("log_directory", "logs"), ("log_directory", "logs")),
    "log directory that goes up": (field("log_directory", "/a/../b"), ("log_directory",)),
    "sysctl of the node": (sysctl("kernel.panic", "1"), ("kernel.panic", "node")),
    "sysctl that leaves its directory": (sysctl("net.ipv4/../../kernel/panic", "1"), ("sysctl",)),
    "sysctl that no kernel has": (
        sysctl("net.ipv4.no_such_thing", "1"),
        ("net.ipv4.no_such_thing",),
    ),
    "sysctl of an interface that the pod has not": (
        sysctl("net.ipv4.conf.eth7.forwarding", "1"),
        ("net.ipv4.conf.eth7.forwarding", "no interface 'eth7'"),
    ),
    "sysctl that no interface has": (
        sysctl("net.ipv4.conf.eth0.no_such_thing", "1"),
        ("net.ipv4.conf.eth0.no_such_thing", "no such sysctl"),
    ),
    "sysctl value that an interface refuses": (
        sysctl("net.ipv4.conf.eth0.forwarding", "words"),
        ("net.ipv4.conf.eth0.forwarding", "words"),
    ),
    "sysctl value with a line break": (sysctl("net.ipv4.ip_forward", "1\n0"), ("ip_forward",)),
    "sysctl value the kernel refuses": (
        sysctl("net.ipv4.ip_local_port_range", "words"),
        ("ip_local_port_range", "words"),
    ),
    "host port too large": (port(host_port=70000, container_port=80), ("host_port", "70000")),
    "container port too large": (port(host_port=80, container_port=0), ("container_port",)),
    "negative host port": (port(host_port=-1, container_port=80), ("host_port", "-1")),
    "host address that is none": (
        port(host_port=8080, container_port=80, host_ip="10.0.0.256"),
        ("host_ip", "10.0.0.256"),
    ),
    "one host port twice": (
        lambda config: [port(host_port=8080, container_port=p)(config) for p in (80, 81)],
        ("port_mappings", "8080"),
    ),
    "cgroup parent that goes up": (field("linux.cgroup_parent", "/a/../../b"), ("cgroup",)),
    "negative user": (
        field("linux.security_context.run_as_user.value", -1),
        ("run_as_user", "-1"),
    ),
    "network of a container": (
        field("linux.security_context.namespace_options.network", api.CONTAINER),
        ("namespace_options.network", "CONTAINER"),
    ),
}


@pytest.mark.parametrize("case", BAD_PODS)
def test_pod_that_cannot_be_is_refused_by_the_fields_name(client: Client, case: str) -> None:
    change, words = BAD_PODS[case]
    config = client.pod_config()
    change(config)
    with refused(INVALID, *words):
        client.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config), timeout=20)
    assert client.pods() == []


def test_pod_without_a_config_or_metadata_is_refused(client: Client) -> None:
    with refused(INVALID, "config"):
        client.runtime.RunPodSandbox(api.RunPodSandboxRequest(), timeout=10)
    request = api.RunPodSandboxRequest(config=api.PodSandboxConfig(hostname="x"))
    with refused(INVALID, "config.metadata"):
        client.runtime.RunPodSandbox(request, timeout=10)


def test_unknown_runtime_handler_is_refused_by_name(client: Client) -> None:
    with refused(INVALID, "no-such-handler", "runc"):
        client.run_pod(client.pod_config(), handler="no-such-handler")
    assert client.pods() == []


def test_sysctl_of_a_network_that_is_the_nodes_is_refused(client: Client) -> None:
    config = client.pod_config(host_network=True)
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    with refused(INVALID, "net.ipv4.ip_forward", "network"):
        client.run_pod(config)


def test_user_namespace_without_mappings_is_refused(client: Client) -> None:
    config = client.pod_config()
    config.linux.security_context.namespace_options.userns_options.mode = api.POD
    with refused(INVALID, "userns_options"):
        client.run_pod(config)


# --- requests for containers -------------------------------------------------------------------------------------


def mount(**fields: Any) -> Change:
    return lambda config: config.mounts.add(**fields)


def env(key: str, value: bytes) -> Change:
    return lambda config: config.envs.add(key=key, value=value)


BAD_CONTAINERS: dict[str, tuple[Change, grpc.StatusCode, tuple[str, ...]]] = {
    "no name": (field("metadata.name", ""), INVALID, ("config.metadata",)),
    "no image": (field("image.image", ""), INVALID, ("config.image",)),
    "absent image": (
        field("image.image", "test.example/absent:1"),
        NOT_FOUND,
        ("image", "test.example/absent:1"),
    ),
    "impossible image": (field("image.image", "a:b:c"), INVALID, ("a:b:c",)),
    "log path that goes up": (field("log_path", "../out.log"), INVALID, ("log_path", "../out.log")),
    "absolute log path": (field("log_path", "/tmp/out.log"), INVALID, ("log_path",)),
    "log path with a colon": (field("log_path", "a:b.log"), INVALID, ("log_path", "a:b.log")),
    "negative user": (
        field("linux.security_context.run_as_user.value", -1),
        INVALID,
        ("run_as_user", "-1"),
    ),
    "user that wraps around": (
        field("linux.security_context.run_as_user.value", 1 << 32),
        INVALID,
        ("run_as_user", str(1 << 32)),
    ),
    "user that the image does not have": (
        field("linux.security_context.run_as_username", "nobody-here"),
        INVALID,
        ("nobody-here", "/etc/passwd"),
    ),
    "group without a user": (
        field("linux.security_context.run_as_group.value", 5),
        INVALID,
        ("run_as_group",),
    ),
    "negative supplemental group": (
        field("linux.security_context.supplemental_groups", [-5]),
        INVALID,
        ("supplemental_groups", "-5"),
    ),
    "environment name that is none": (env("A=B", b"c"), INVALID, ("envs", "A=B")),
    "environment value with a NUL": (env("A", b"b\0c"), INVALID, ("envs", "A")),
    "mount at a relative path": (
        mount(container_path="mnt", host_path="/usr"),
        INVALID,
        ("mounts[0].container_path", "mnt"),
    ),
    "mount over the root": (
        mount(container_path="/a/..", host_path="/usr"),
        INVALID,
        ("mounts[0].container_path",),
    ),
    "mount of a relative path": (
        mount(container_path="/mnt", host_path="usr"),
        INVALID,
        ("mounts[0].host_path", "usr"),
    ),
    "mount of a path that can not be there": (
        mount(container_path="/mnt", host_path="/etc/passwd/directory"),
        INVALID,
        ("mounts[0].host_path", "/etc/passwd/directory"),
    ),
    "recursive read-only without read-only": (
        mount(container_path="/mnt", host_path="/usr", recursive_read_only=True),
        INVALID,
        ("mounts[0].recursive_read_only",),
    ),
    "device that is not there": (
        lambda config: config.devices.add(
            container_path="/dev/x", host_path="/dev/no-such-device", permissions="rwm"
        ),
        INVALID,
        ("/dev/no-such-device",),
    ),
    "privileged in an ordinary pod": (
        field("linux.security_context.privileged", True),
        INVALID,
        ("privileged",),
    ),
    "target that is no container": (
        lambda config: config.linux.security_context.namespace_options.MergeFrom(
            api.NamespaceOption(pid=api.TARGET, target_id=UNKNOWN_ID)
        ),
        NOT_FOUND,
        (UNKNOWN_ID,),
    ),
    "processor that the node does not have": (
        field("linux.resources.cpuset_cpus", "4000"),
        INVALID,
        ("cpuset_cpus", "4000"),
    ),
    "memory limit below what a process needs": (
        field("linux.resources.memory_limit_in_bytes", 4096),
        INVALID,
        ("memory_limit_in_bytes", "4096"),
    ),
    "command that is a NUL": (field("command", ["a\0b"]), INVALID, ("command",)),
}


@pytest.mark.parametrize("case", BAD_CONTAINERS)
def test_container_that_cannot_be_is_refused_with_the_cause(
    client: Client, image: str, case: str
) -> None:
    change, code, words = BAD_CONTAINERS[case]
    pod = Pod.run(client, image)
    config = pod.container("true")
    change(config)
    with refused(code, *words):
        client.create(pod.id, config, pod.config)
    assert client.containers() == []


def test_creation_without_a_pod_or_a_config_is_refused(client: Client, image: str) -> None:
    config = client.container_config(image, ["true"])
    with refused(INVALID, "pod_sandbox_id"):
        client.runtime.CreateContainer(api.CreateContainerRequest(config=config), timeout=10)
    with refused(INVALID, "config"):
        request = api.CreateContainerRequest(pod_sandbox_id=UNKNOWN_ID)
        client.runtime.CreateContainer(request, timeout=10)
    with refused(NOT_FOUND, "sandbox", UNKNOWN_ID):
        client.create(UNKNOWN_ID, config, client.pod_config())


@pytest.fixture(scope="module")
def bare_image(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with nothing in it, and no word about what to run."""
    name = "test.example/bare:1"
    archive = tmp_path_factory.mktemp("bare") / "image.tar"
    archive.write_bytes(images.docker_archive(images.layer(images.directory("etc")), tags=[name]))
    daemon.client.import_image(archive)
    yield name
    spec = api.ImageSpec(image=name)
    daemon.client.images.RemoveImage(api.RemoveImageRequest(image=spec), timeout=30)


def test_image_that_names_no_command_needs_one(client: Client, bare_image: str) -> None:
    pod = Pod.run(client, bare_image)
    with refused(INVALID, "command", bare_image):
        pod.create(pod.container())


# --- requests of any kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("PodSandboxStatus", api.PodSandboxStatusRequest(pod_sandbox_id=UNKNOWN_ID)),
        ("ContainerStatus", api.ContainerStatusRequest(container_id=UNKNOWN_ID)),
        ("StartContainer", api.StartContainerRequest(container_id=UNKNOWN_ID)),
        ("ExecSync", api.ExecSyncRequest(container_id=UNKNOWN_ID, cmd=["true"])),
        ("ReopenContainerLog", api.ReopenContainerLogRequest(container_id=UNKNOWN_ID)),
        ("ContainerStats", api.ContainerStatsRequest(container_id=UNKNOWN_ID)),
        ("PodSandboxStatus", api.PodSandboxStatusRequest(pod_sandbox_id="../../etc")),
        ("ContainerStatus", api.ContainerStatusRequest(container_id="not an id")),
    ],
)
def test_unknown_object_is_not_found(client: Client, method: str, request_: Message) -> None:
    wanted = getattr(request_, "container_id", "") or getattr(request_, "pod_sandbox_id", "")
    with refused(NOT_FOUND, wanted):
        getattr(client.runtime, method)(request_, timeout=10)


@pytest.mark.parametrize(
    ("method", "field_"),
    [
        ("StopPodSandbox", "pod_sandbox_id"),
        ("RemovePodSandbox", "pod_sandbox_id"),
        ("PodSandboxStatus", "pod_sandbox_id"),
        ("StartContainer", "container_id"),
        ("StopContainer", "container_id"),
        ("RemoveContainer", "container_id"),
        ("ContainerStatus", "container_id"),
        ("ReopenContainerLog", "container_id"),
        ("ContainerStats", "container_id"),
    ],
)
def test_request_without_an_id_is_refused(client: Client, method: str, field_: str) -> None:
    with refused(INVALID, field_):
        getattr(client.runtime, method)(getattr(api, f"{method}Request")(), timeout=10)


SERVICE = api.DESCRIPTOR.services_by_name["RuntimeService"]
NOT_SERVED = [rpc for rpc in SERVICE.methods if not hasattr(RuntimeService, python_name(rpc.name))]


@pytest.mark.parametrize("rpc", NOT_SERVED, ids=lambda rpc: rpc.name)
def test_part_of_the_api_that_is_not_served_says_so(client: Client, rpc: MethodDescriptor) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED, rpc.name, "does not implement"):
        answer = getattr(client.runtime, rpc.name)(getattr(api, rpc.input_type.name)(), timeout=10)
        if rpc.server_streaming:
            next(answer)


def test_bytes_that_are_no_request_are_refused(daemon: Daemon) -> None:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        call: Any = channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")
        with refused(INVALID, "RunPodSandbox"):
            call(b"\xff\xff\xff no message", timeout=10)
        unknown: Any = channel.unary_unary("/runtime.v1.RuntimeService/NoSuchMethod")
        with refused(grpc.StatusCode.UNIMPLEMENTED):
            unknown(b"", timeout=10)


def test_request_larger_than_the_limit_is_refused(daemon: Daemon, client: Client) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix:{daemon.socket}", options=options) as channel:
        config = client.pod_config(annotations={"large": "x" * (17 << 20)})
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            RuntimeServiceStub(channel).RunPodSandbox(
                api.RunPodSandboxRequest(config=config), timeout=20
            )
    assert client.is_serving()


def test_host_port_that_another_pod_has_is_refused_and_named(client: Client) -> None:
    taken = free_port()
    holder = client.run_pod(client.pod_config(host_ports={taken: 80}))
    with refused(grpc.StatusCode.ALREADY_EXISTS, str(taken), holder):
        client.run_pod(client.pod_config(host_ports={taken: 81}))
    assert [pod.id for pod in client.pods()] == [holder]
    client.remove_pod(holder)
    assert client.run_pod(client.pod_config(host_ports={taken: 81})) != holder


def test_host_port_wanted_by_two_pods_at_once_goes_to_one_of_them(client: Client) -> None:
    taken = free_port()
    configs = [client.pod_config(host_ports={taken: 80}) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        errors = [each.exception() for each in [pool.submit(client.run_pod, c) for c in configs]]
    assert sorted(error is None for error in errors) == [False, False, True]
    assert len(client.pods()) == 1
