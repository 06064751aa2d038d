"""What plugins are told of a pod."""

from __future__ import annotations

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.sandbox.network.annotations import CNI_ARGS_PREFIX
from cri_shim.sandbox.network.bandwidth import EGRESS
from cri_shim.sandbox.network.host_ports import HostPort
from cri_shim.sandbox.network.plugin_args import build_args, build_capability_args, maps_any
from cri_shim.sandbox.store.model import PodMetadata


def test_arguments_tell_who_the_pod_is_and_then_what_it_adds() -> None:
    metadata = PodMetadata("web", "default", "uid-web", 0)
    args = build_args("a" * 64, metadata, {f"{CNI_ARGS_PREFIX}x": "MAC=02:00:00:00:00:09"})
    assert args == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "default",
        "K8S_POD_NAME": "web",
        "K8S_POD_INFRA_CONTAINER_ID": "a" * 64,
        "K8S_POD_UID": "uid-web",
        "MAC": "02:00:00:00:00:09",
    }


def test_a_pod_that_asks_for_nothing_has_nothing_to_say() -> None:
    assert build_capability_args(api.PodSandboxConfig(), {}, cgroup_parent="") == {}


def test_every_capability_has_the_form_of_its_convention() -> None:
    config = api.PodSandboxConfig(
        annotations={EGRESS: "10M", "team": "blue"},
        dns_config=api.DNSConfig(
            servers=["10.96.0.10"], searches=["cluster.local"], options=["ndots:5"]
        ),
    )
    ports = {HostPort("tcp", 8080, ""): 80}
    assert build_capability_args(config, ports, cgroup_parent="/kubepods/pod1") == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"egressRate": 10_000_000, "egressBurst": 1_048_576},
        "dns": {
            "servers": ["10.96.0.10"],
            "searches": ["cluster.local"],
            "options": ["ndots:5"],
        },
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": {EGRESS: "10M", "team": "blue"},
    }


def test_an_earlier_pods_arguments_tell_which_ports_it_had() -> None:
    ports = {HostPort("tcp", 8080, ""): 80, HostPort("udp", 53, "192.0.2.1"): 53}
    told = build_capability_args(api.PodSandboxConfig(), ports, cgroup_parent="")
    assert maps_any(told, [HostPort("tcp", 8080, "192.0.2.1")])
    assert maps_any(told, [HostPort("tcp", 1, ""), HostPort("udp", 53, "0.0.0.0")])
    assert not maps_any(told, [HostPort("tcp", 53, ""), HostPort("udp", 53, "192.0.2.2")])
    assert not maps_any({}, [HostPort("tcp", 8080, "")])
