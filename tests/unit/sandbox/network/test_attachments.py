"""What is said of each network of a pod, and what of the pod can't be done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.cni.conf import NetworkList, parse_conflist
from cri_shim.errors import InvalidArgumentError
from cri_shim.sandbox.network.annotations import CNI_ARGS_PREFIX
from cri_shim.sandbox.network.attachments import PodAttachments
from cri_shim.sandbox.network.bandwidth import INGRESS
from cri_shim.sandbox.store.model import NetworkAttachment, PodMetadata, SandboxStatus
from tests.fakes.networks import FakeCni
from tests.fakes.node_harness import pod_config
from tests.fakes.points import Points
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from cri_shim.cni.network import Cni
    from cri_shim.sandbox.store.store import Sandbox

TWO = (NetworkAttachment("pods", "eth0"), NetworkAttachment("storage", "net1"))


@pytest.fixture
def cni() -> FakeCni:
    """Two networks whose plugins declare everything."""
    return FakeCni(Points(), "pods", "storage")


def deaf(name: str) -> NetworkList:
    """A network whose plugin wants to know nothing."""
    document = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "macvlan"}]}
    return parse_conflist(json.dumps(document).encode(), source=name)


def attachments(cni: FakeCni, *, publish_ports: bool = True) -> PodAttachments:
    return PodAttachments(cast("Cni", cni), publish_ports=publish_ports)


def demanding() -> Sandbox:
    """A pod on two networks that asks for all that there is."""
    config = pod_config()
    config.annotations.update({INGRESS: "1M", f"{CNI_ARGS_PREFIX}address": "IP=10.0.0.9"})
    config.dns_config.servers.append("10.96.0.10")
    config.port_mappings.add(host_port=80, container_port=8080)
    config.port_mappings.add(host_port=1, container_port=2, protocol=api.SCTP, host_ip="0.0.0.0")
    return make_sandbox(status=SandboxStatus(attachments=TWO), config=config)


def test_each_network_is_told_what_it_declares_and_no_more(cni: FakeCni) -> None:
    cni.networks["storage"] = deaf("storage")
    sandbox = demanding()
    first, second = (attachments(cni).of(sandbox, each) for each in TWO)
    assert (first.network, first.ifname, first.netns) == ("pods", "eth0", "")
    assert first.container_id == second.container_id == sandbox.id
    assert first.capability_args["dns"] == {"servers": ["10.96.0.10"]}
    assert first.capability_args["portMappings"] == [
        {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": 1, "containerPort": 2, "protocol": "sctp", "hostIP": "0.0.0.0"},
    ]
    assert set(first.capability_args) == {
        *("portMappings", "bandwidth", "dns", "io.kubernetes.cri.pod-annotations")
    }
    assert second.capability_args == {}
    assert first.args["IP"] == second.args["IP"] == "10.0.0.9"


def test_host_ports_are_left_alone_where_something_else_publishes_them(cni: FakeCni) -> None:
    said = attachments(cni, publish_ports=False).of(demanding(), TWO[0])
    assert "portMappings" not in said.capability_args


@pytest.mark.parametrize("publisher", ["pods", "storage"])
def test_the_first_network_that_can_publishes_the_ports(cni: FakeCni, publisher: str) -> None:
    if publisher == "storage":
        cni.networks["pods"] = deaf("pods")
    said = [attachments(cni).of(demanding(), each) for each in TWO]
    assert [a.network for a in said if "portMappings" in a.capability_args] == [publisher]


def test_what_no_network_of_the_pod_can_do_is_told_to_the_log(cni: FakeCni) -> None:
    cni.networks.update(pods=deaf("pods"))
    with capture_logs() as said:
        attachments(cni).warn_of_deaf_networks(demanding())
    assert said == []
    del cni.networks["storage"]
    with capture_logs() as said:
        attachments(cni).warn_of_deaf_networks(demanding())
    assert [line["capability"] for line in said] == ["portMappings", "bandwidth"]
    with capture_logs() as said:
        attachments(cni).warn_of_deaf_networks(make_sandbox())
    assert said == []


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_a_pod_that_no_plugin_could_be_told_of_is_refused(cni: FakeCni, field: str) -> None:
    words = {"name": "n", "namespace": "s", "uid": "u", field: "x;IgnoreUnknown=0"}
    with pytest.raises(InvalidArgumentError, match="CNI argument"):
        attachments(cni).check("a" * 64, PodMetadata(**words, attempt=0), pod_config(), {}, TWO)
