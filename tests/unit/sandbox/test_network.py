"""A pod's networks: planned once, attached in order, detached until nothing is left to detach."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    InvalidArgumentError,
    NotReadyError,
)
from cri_shim.paths import netns_file
from cri_shim.sandbox.model import NetworkAttachment, PodMetadata, SandboxStatus
from cri_shim.sandbox.network import HostPort, has_host_network, host_ports
from tests.fakes.house import House, pod_config
from tests.fakes.networks import FakeCni
from tests.unit.sandbox.interruptions import outcome_of
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from typing import Any

    from cri_shim.sandbox.store import Sandbox

METADATA = PodMetadata("web", "default", "uid-web", 0)
TWO = (NetworkAttachment("pods", "eth0"), NetworkAttachment("storage", "net1"))


@pytest_asyncio.fixture
async def joined(house: House) -> House:
    """A house with two networks."""
    house.cni = FakeCni(house.points, "pods", "storage")
    house._wire()
    return house


def stored(house: House) -> Sandbox:
    sandbox = make_sandbox(status=SandboxStatus(attachments=TWO))
    house.sandboxes.create(sandbox)
    return sandbox


@pytest.mark.asyncio
async def test_a_pod_joins_the_default_network(joined: House) -> None:
    assert joined.network.plan("a" * 64, METADATA, pod_config()) == (
        NetworkAttachment("pods", "eth0"),
    )


@pytest.mark.asyncio
async def test_a_pod_on_the_nodes_network_joins_none_and_needs_none(joined: House) -> None:
    joined.cni.ready = False
    assert joined.network.plan("a" * 64, METADATA, pod_config(host_network=True)) == ()
    with pytest.raises(NotReadyError):
        joined.network.plan("a" * 64, METADATA, pod_config())


@pytest.mark.asyncio
@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
async def test_a_pod_that_no_plugin_could_be_told_of_is_refused_beforehand(
    joined: House, field: str
) -> None:
    words = {"name": "n", "namespace": "s", "uid": "u", field: "x;IgnoreUnknown=0"}
    with pytest.raises(InvalidArgumentError, match="CNI argument"):
        joined.network.plan("a" * 64, PodMetadata(**words, attempt=0), pod_config())


@pytest.mark.asyncio
async def test_networks_are_attached_in_order_and_told_who_the_pod_is(joined: House) -> None:
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {"net.ipv4.ip_forward": "1"})
    assert await joined.network.attach(sandbox) == ("10.0.0.2", "10.1.0.2")
    first, second = joined.cni.attached.values()
    assert (first.ifname, second.ifname) == ("eth0", "net1")
    assert first.netns == str(netns_file(sandbox.id))
    assert first.args["K8S_POD_NAME"] == "web"
    assert first.args["K8S_POD_NAMESPACE"] == "default"
    assert first.args["K8S_POD_INFRA_CONTAINER_ID"] == sandbox.id
    assert first.args["K8S_POD_UID"] == "uid-web"


@pytest.mark.asyncio
async def test_an_address_that_two_networks_name_is_shown_once(joined: House) -> None:
    joined.cni.addresses["storage"] = joined.cni.addresses["pods"]
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {})
    assert await joined.network.attach(sandbox) == ("10.0.0.2",)


@pytest.mark.asyncio
async def test_networks_are_detached_last_first_and_forgotten(joined: House) -> None:
    sandbox = stored(joined)
    await joined.network.attach(sandbox)
    await joined.network.detach(sandbox)
    assert [a.network for a in joined.cni.deleted] == ["storage", "pods"]
    assert sandbox.status.attachments == ()
    await joined.network.detach(sandbox)
    assert len(joined.cni.deleted) == 2


@pytest.mark.asyncio
async def test_what_was_never_attached_is_detached_all_the_same(joined: House) -> None:
    sandbox = stored(joined)
    await joined.network.detach(sandbox)
    assert len(joined.cni.deleted) == 2
    assert joined.cni.deleted[0].netns == ""


@pytest.mark.asyncio
async def test_a_failing_detachment_stops_no_other_and_stays_noted(joined: House) -> None:
    sandbox = stored(joined)
    await joined.network.attach(sandbox)
    joined.points.fail("cni.del storage", CniPluginError("bridge", "DEL", "busy"))
    with pytest.raises(CniPluginError, match="busy"):
        await joined.network.detach(sandbox)
    assert list(sandbox.status.attachments) == [TWO[1]]
    [(_, again)] = joined.sandboxes.load()
    assert again.status == sandbox.status  # type: ignore[union-attr]
    joined.points.heal()
    await joined.network.detach(sandbox)
    assert list(sandbox.status.attachments) == []


@pytest.mark.asyncio
async def test_the_first_of_two_failures_is_raised(joined: House) -> None:
    sandbox = stored(joined)
    joined.points.fail("cni.del storage", CniPluginError("bridge", "DEL", "first"))
    joined.points.fail("cni.del pods", CniPluginError("bridge", "DEL", "second"))
    with pytest.raises(CniPluginError, match="first"):
        await joined.network.detach(sandbox)
    assert sandbox.status.attachments == TWO


@pytest.mark.asyncio
async def test_by_the_id_alone_everything_known_to_be_attached_is_detached(joined: House) -> None:
    sandbox = stored(joined)
    await joined.network.create_namespace(sandbox.id, {})
    await joined.network.attach(sandbox)
    await joined.network.release_by_id(sandbox.id)
    assert joined.cni.attached == {}
    assert joined.kernel.namespaces == {}
    await joined.network.release_by_id(sandbox.id)


# --- port mappings -----------------------------------------------------------------------------------------------


def with_ports(*mappings: dict[str, Any]) -> api.PodSandboxConfig:
    return api.PodSandboxConfig(port_mappings=[api.PortMapping(**m) for m in mappings])


@pytest.mark.asyncio
async def test_ports_are_described_as_the_portmap_plugin_wants_them(house: House) -> None:
    config = with_ports(
        {"host_port": 80, "container_port": 8080},
        {"host_port": 53, "container_port": 5353, "protocol": api.UDP, "host_ip": "127.0.0.1"},
        {"host_port": 1, "container_port": 2, "protocol": api.SCTP, "host_ip": "0.0.0.0"},
    )
    sandbox = make_sandbox(config=config)
    house.sandboxes.create(sandbox)
    await house.network.attach(sandbox)
    [attachment] = house.cni.attached.values()
    assert attachment.capability_args["portMappings"] == [
        {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"},
        {"hostPort": 1, "containerPort": 2, "protocol": "sctp"},
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize("published", [True, False])
async def test_host_ports_are_left_alone_where_something_else_publishes_them(
    house: House, *, published: bool
) -> None:
    house.publish_ports = published
    house._wire()
    config = with_ports({"host_port": 80, "container_port": 8080})
    sandbox = make_sandbox(config=config)
    house.sandboxes.create(sandbox)
    await house.network.attach(sandbox)
    [attachment] = house.cni.attached.values()
    assert bool(attachment.capability_args["portMappings"]) is published


def test_a_port_without_a_host_port_is_not_forwarded() -> None:
    assert host_ports(with_ports({"container_port": 80}, {"container_port": 80})) == {}


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        (("tcp", 80, ""), ("tcp", 80, ""), True),
        (("tcp", 80, ""), ("tcp", 80, "10.0.0.1"), True),
        (("tcp", 80, "10.0.0.1"), ("tcp", 80, "10.0.0.1"), True),
        (("tcp", 80, "10.0.0.1"), ("tcp", 80, "10.0.0.2"), False),
        (("tcp", 80, ""), ("udp", 80, ""), False),
        (("tcp", 80, ""), ("tcp", 81, ""), False),
    ],
    ids=str,
)
def test_a_port_is_one_of_a_protocol_on_an_address(
    one: tuple[str, int, str], other: tuple[str, int, str], *, collide: bool
) -> None:
    assert HostPort(*one).collides(HostPort(*other)) is collide
    assert HostPort(*other).collides(HostPort(*one)) is collide


def test_a_port_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="80/tcp: given twice"):
        host_ports(
            with_ports(
                {"host_port": 80, "container_port": 1},
                {"host_port": 80, "container_port": 2, "host_ip": "127.0.0.1"},
            )
        )


@pytest.mark.asyncio
async def test_a_port_that_another_pod_has_is_refused_until_that_one_is_gone(house: House) -> None:
    first, second = pod_config("first"), pod_config("second")
    for config, host_ip in ((first, "127.0.0.1"), (second, "")):
        config.port_mappings.add(host_port=80, container_port=8080, host_ip=host_ip)
    holder = await house.pods.run_pod_sandbox(first, "")
    before = house.leftovers()
    with pytest.raises(AlreadyExistsError, match=rf"80/tcp is held by sandbox {holder} .*first"):
        await house.pods.run_pod_sandbox(second, "")
    assert house.leftovers() == before
    # What is stopped is detached: its ports are free.
    await house.pods.stop_pod_sandbox(holder)
    await house.pods.run_pod_sandbox(second, "")


@pytest.mark.asyncio
async def test_of_two_pods_made_at_once_one_has_the_port(house: House) -> None:
    configs = [pod_config(name) for name in ("first", "second")]
    for config in configs:
        config.port_mappings.add(host_port=80, container_port=8080)
    outcomes = await asyncio.gather(
        *(outcome_of(house.pods.run_pod_sandbox(config, "")) for config in configs)
    )
    assert [type(outcome) for outcome in outcomes] == [str, AlreadyExistsError]


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["unpublished", "host-network"])
async def test_ports_that_we_do_not_publish_are_nobodys_here(house: House, how: str) -> None:
    house.publish_ports = how != "unpublished"
    house._wire()
    for name in ("first", "second"):
        config = pod_config(name, host_network=how == "host-network")
        config.port_mappings.add(host_port=80, container_port=8080)
        await house.pods.run_pod_sandbox(config, "")


@pytest.mark.parametrize(
    "mapping",
    [
        {"host_port": -1, "container_port": 80},
        {"host_port": 65536, "container_port": 80},
        {"host_port": 80, "container_port": 0},
        {"host_port": 80, "container_port": 65536},
        {"host_port": 80, "container_port": 80, "protocol": 9},
        {"host_port": 80, "container_port": 80, "host_ip": "localhost"},
    ],
    ids=str,
)
def test_ports_that_do_not_exist_are_refused(mapping: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.port_mappings"):
        host_ports(with_ports(mapping))


def test_only_the_nodes_network_is_the_hosts() -> None:
    assert has_host_network(pod_config(host_network=True))
    assert not has_host_network(pod_config())
    assert not has_host_network(api.PodSandboxConfig())
