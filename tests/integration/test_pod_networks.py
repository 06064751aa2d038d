"""The distribution's plugins through the whole daemon: chains, several networks, both families, and traffic that flows.

The session's node is a network namespace; `Outside` is another one beside it, a machine on the same wire. The networks
are files beside the session daemon's own, which stays the default network; pods name the others, or have nothing else.
The kernel has no SCTP: there the rules are looked at.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.host.namespaces import run_in_netns
from cri_shim.sandbox.network.annotations import CNI_ARGS_PREFIX, DISABLE_DEFAULT, NETWORKS
from cri_shim.sandbox.network.bandwidth import EGRESS, INGRESS, bandwidth
from tests.integration.scene import Pod, refused, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

pytestmark = pytest.mark.integration

CHAIN_V4, CHAIN_V6 = ip_network("10.62.0.0/24"), ip_network("fd62::/64")
WIRE = ip_network("10.63.0.0/24")
POINT_TO_POINT = ip_network("10.61.0.0/24")
NODE_V4, NODE_V6 = "192.0.2.1", "fd63::1"
OUTSIDE_V4, OUTSIDE_V6 = "192.0.2.2", "fd63::2"
PORT = 18081
BLOB_BYTES = 4_000_000
RATE = 40_000_000
"""Bits per second: the blob takes most of a second, once the burst is used up."""


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Networks:
    """What the fixture has put on the node, by the names that pods give in annotations."""

    chain: str
    point_to_point: str
    macvlan: str
    broken: str
    outside: Path

    def conflists(self, lease_dir: Path, bridge: str, wire: str) -> Iterator[dict[str, Any]]:
        def ipam(*subnets: object, routes: bool = False) -> dict[str, Any]:
            told = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] if routes else []
            ranges = [[{"subnet": str(subnet)}] for subnet in subnets]
            return {
                "type": "host-local",
                "dataDir": str(lease_dir),
                "ranges": ranges,
                "routes": told,
            }

        first = {
            "type": "bridge",
            "bridge": bridge,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": ipam(CHAIN_V4, CHAIN_V6, routes=True),
        }
        chained = [
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "firewall"},
            {
                "type": "tuning",
                "dataDir": str(lease_dir / "tuning"),
                "sysctl": {"net.core.somaxconn": "321"},
                "mtu": 1400,
            },
        ]
        yield {"cniVersion": "1.0.0", "name": self.chain, "plugins": [first, *chained]}
        pair = {"type": "ptp", "ipam": ipam(POINT_TO_POINT)}
        yield {"cniVersion": "0.4.0", "name": self.point_to_point, "plugins": [pair]}
        link = {"type": "macvlan", "master": wire, "mode": "bridge", "ipam": ipam(WIRE)}
        yield {"cniVersion": "1.0.0", "name": self.macvlan, "plugins": [link]}
        broken = {"type": "tuning", "sysctl": {"net.there.is.none": "1"}}
        yield {"cniVersion": "1.0.0", "name": self.broken, "plugins": [pair, broken]}


@pytest.fixture
def networks(daemon: Daemon, client: Client) -> Iterator[Networks]:
    """Four more networks on the node, and a machine outside; all of it goes, pods first."""
    names = Networks(
        f"{daemon.name}-chain",
        f"{daemon.name}-ptp",
        f"{daemon.name}-mv",
        f"{daemon.name}-broken",
        Path("/run/netns", f"{daemon.name}-out"),
    )
    bridge, wire = "chain0", "wire0"
    files = []
    run("ip", "netns", "add", names.outside.name)
    try:
        run("ip", "link", "add", wire, "type", "veth", "peer", "name", "out0")
        run("ip", "link", "set", "out0", "netns", names.outside.name)
        run("ip", "link", "set", wire, "up")
        outside = ("ip", "-n", names.outside.name)
        run(*outside, "link", "set", "out0", "up")
        for where, link, v4, v6 in (
            (("ip",), wire, NODE_V4, NODE_V6),
            (outside, "out0", OUTSIDE_V4, OUTSIDE_V6),
        ):
            run(*where, "addr", "add", f"{v4}/24", "dev", link)
            run(*where, "addr", "add", f"{v6}/64", "dev", link, "nodad")
        for number, conflist in enumerate(names.conflists(daemon.lease_dir, bridge, wire)):
            file = daemon.conf_dir / f"5{number}-more.conflist"
            files.append(file)
            file.write_text(json.dumps(conflist))
        yield names
        client.remove_all_pods()
    finally:
        for file in files:
            file.unlink(missing_ok=True)
        for link in (bridge, wire):
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        run("ip", "netns", "delete", names.outside.name)


def links_of(pod: Pod) -> dict[str, dict[str, Any]]:
    """The pod's interfaces as the kernel shows them."""
    shown = json.loads(run("ip", "-n", pod.netns.name, "-j", "addr"))
    return {link["ifname"]: link for link in shown}


def addresses_of(link: dict[str, Any]) -> set[str]:
    return {a["local"] for a in link["addr_info"] if a["scope"] == "global"}


def info_of(pod: Pod) -> list[dict[str, Any]]:
    """The networks as the verbose status tells them."""
    info = json.loads(pod.client.pod_status(pod.id, verbose=True).info["info"])
    found: list[dict[str, Any]] = info["cniResult"]
    return found


def only(network: str, **annotations: str) -> dict[str, str]:
    """The annotations of a pod on one network that is not the default one."""
    asked = json.dumps({"name": network, "interface": "eth0"})
    return {DISABLE_DEFAULT: "true", NETWORKS: asked, **annotations}


def serving(pod: Pod, directory: Path) -> str:
    """A container that serves what is in `directory`, in both families; ready to be asked."""
    config = pod.container("httpd", "-f", "-p", "80", "-h", "/www")
    config.mounts.add(container_path="/www", host_path=str(directory), readonly=True)
    container = pod.start(config)
    wait_until(lambda: get(None, (pod.ip, 80), "name") is not None)
    return container


def get(netns: Path | None, place: tuple[str, int], name: str) -> bytes | None:
    """GET over one connection from a namespace, the node's by default; None when nobody is there."""

    def connect() -> socket.socket:
        return socket.create_connection(place, timeout=5)

    try:
        connection = run_in_netns(netns, connect) if netns else connect()
    except OSError:
        return None
    with connection:
        connection.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    return body


def assert_shaped(seconds: float) -> None:
    """Whether the blob took as long as RATE says; a machine under load may take longer, but not by far."""
    shaped_bytes = BLOB_BYTES - bandwidth({INGRESS: str(RATE)})["ingressBurst"] // 8
    rate = shaped_bytes * 8 / seconds
    assert 0.4 * RATE < rate < 1.15 * RATE, f"{rate / 1e6:.1f} Mbit/s"


def test_a_chain_of_plugins_carries_and_shapes_the_traffic_of_both_families(
    client: Client, image: str, networks: Networks, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "blob").write_bytes(bytes(BLOB_BYTES))
    (tmp_path / "name").write_text("first")
    config = client.pod_config(
        annotations=only(networks.chain, **{INGRESS: str(RATE), EGRESS: str(RATE)})
    )
    for protocol in (api.TCP, api.UDP, api.SCTP):
        config.port_mappings.add(protocol=protocol, host_port=PORT, container_port=80)
    # Side by side: an IPv6 address takes a moment to be sure that it is alone.
    with ThreadPoolExecutor(2) as threads:
        other_config = client.pod_config(annotations=only(networks.chain))
        other_pod = threads.submit(Pod.run, client, image, other_config)
        pod = Pod.run(client, image, config)
        other = other_pod.result()

    # Both families, the plugin's first one first.
    network = client.pod_status(pod.id).status.network
    (second,) = (item.ip for item in network.additional_ips)
    assert ip_address(network.ip) in CHAIN_V4
    assert ip_address(second) in CHAIN_V6
    link = links_of(pod)["eth0"]
    assert addresses_of(link) == {network.ip, second}
    assert link["mtu"] == 1400
    assert pod.says("cat /proc/sys/net/core/somaxconn") == "321\n"
    (told,) = info_of(pod)
    (interface,) = told["interfaces"]
    assert (told["network"], told["attached"]) == (networks.chain, True)
    assert (interface["name"], interface["mac"]) == ("eth0", link["address"])
    assert [ip["gateway"] for ip in interface["ips"]] == [str(CHAIN_V4[1]), str(CHAIN_V6[1])]
    assert {route["dst"] for route in told["routes"]} == {"0.0.0.0/0", "::/0"}

    # Node to pod, pod to pod, pod to node, and through the host port: from outside in both families, from this node
    # over its loopback, and from a pod of the same network.
    serving(pod, tmp_path)
    asking = other.sleeper()
    for address in (network.ip, second):
        assert get(None, (address, 80), "name") == b"first"
        host = f"[{address}]" if ":" in address else address
        assert other.asks(asking, f"wget -q -O - http://{host}/name") == "first"
    for netns, address in (
        (networks.outside, NODE_V4),
        (networks.outside, NODE_V6),
        (None, "127.0.0.1"),
    ):
        assert get(netns, (address, PORT), "name") == b"first", address
    assert other.asks(asking, f"wget -q -O - http://{NODE_V4}:{PORT}/name") == "first"
    assert hears_from(None, NODE_V4, other, asking) == other.ip
    assert hears_from(networks.outside, OUTSIDE_V4, other, asking) == NODE_V4  # masqueraded
    assert echo_udp(pod.netns, networks.outside, (NODE_V4, PORT)) == b"ping"
    for command, address in (("iptables-save", network.ip), ("ip6tables-save", f"[{second}]")):
        rules = run(command, "-t", "nat").splitlines()
        assert any("-p sctp" in r and f"--to-destination {address}:80" in r for r in rules)

    # A port is taken in both families; and it is the same pod's for a retry of its request.
    taken = client.pod_config(annotations=only(networks.chain))
    taken.port_mappings.add(host_port=PORT, container_port=80, host_ip="::")
    with refused(grpc.StatusCode.ALREADY_EXISTS, f"{PORT}/tcp on ::", pod.id):
        client.run_pod(taken)
    assert client.run_pod(config) == pod.id

    # What leaves the pod, and what comes in.
    began = time.monotonic()
    body = get(networks.outside, (NODE_V4, PORT), "blob")
    assert body is not None
    assert len(body) == BLOB_BYTES
    assert_shaped(time.monotonic() - began)
    serving(other, tmp_path)
    config_of_getter = pod.sleeper()
    began = time.monotonic()
    pod.asks(config_of_getter, f"wget -q -O /dev/null http://{other.ip}/blob")
    assert_shaped(time.monotonic() - began)

    # The port ends with the pod.
    client.stop_pod(pod.id)
    assert client.pod_status(pod.id).status.network.ip == ""
    for address in (NODE_V4, NODE_V6):
        assert get(networks.outside, (address, PORT), "name") is None


def hears_from(netns: Path | None, address: str, pod: Pod, container: str) -> str:
    """Who a connection from the pod to a server at `address` comes from; the answer must reach the pod."""

    def listen() -> socket.socket:
        return socket.create_server((address, 0))

    with run_in_netns(netns, listen) if netns else listen() as server, ThreadPoolExecutor(1) as one:
        server.settimeout(5)
        port = server.getsockname()[1]
        asked = one.submit(pod.asks, container, f"nc -w 2 {address} {port} </dev/null")
        connection, (client_ip, _) = server.accept()
        with connection:
            connection.sendall(b"an answer")
        assert asked.result() == "an answer"
        return str(client_ip)


def echo_udp(server_netns: Path, client_netns: Path, place: tuple[str, int]) -> bytes:
    """One datagram there and back."""

    def bound() -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 80))
        return server

    server = run_in_netns(server_netns, bound)
    client = run_in_netns(client_netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with server, client:
        server.settimeout(5)
        client.settimeout(5)
        client.sendto(b"ping", place)
        said, who = server.recvfrom(16)
        server.sendto(said, who)
        answer, whence = client.recvfrom(16)
        assert whence == place
        return answer


def test_two_pods_share_a_host_port_one_in_each_family(
    client: Client, image: str, networks: Networks, tmp_path: Path
) -> None:
    def pod_on(host_ip: str) -> Pod:
        config = client.pod_config(annotations=only(networks.chain))
        config.port_mappings.add(host_port=PORT, container_port=80, host_ip=host_ip)
        directory = tmp_path / host_ip.replace(":", "x")
        directory.mkdir(parents=True)
        directory.chmod(0o755)
        (directory / "name").write_text(host_ip)
        pod = Pod.run(client, image, config)
        serving(pod, directory)
        return pod

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(pod_on, ("0.0.0.0", "::")))
    assert get(networks.outside, (NODE_V4, PORT), "name") == b"0.0.0.0"
    assert get(networks.outside, (NODE_V6, PORT), "name") == b"::"


def test_a_pod_with_two_extra_networks_has_three_interfaces_that_all_work(
    client: Client, image: str, networks: Networks, daemon: Daemon, tmp_path: Path
) -> None:
    asked = [{"name": networks.point_to_point}, {"name": networks.macvlan, "interface": "fast0"}]
    config = client.pod_config(annotations={NETWORKS: json.dumps(asked)})
    pod = Pod.run(client, image, config)
    links = links_of(pod)
    assert list(links) == ["lo", "eth0", "net1", "fast0"]
    subnets = {"eth0": ip_network(daemon.subnet), "net1": POINT_TO_POINT, "fast0": WIRE}
    ips = {}
    for name, subnet in subnets.items():
        (ips[name],) = addresses_of(links[name])
        assert ip_address(ips[name]) in subnet
    # The pod's address is the default network's; the others are told to whoever asks for all of it.
    network = client.pod_status(pod.id).status.network
    assert (network.ip, list(network.additional_ips)) == (ips["eth0"], [])
    told = {each["interface"]: each for each in info_of(pod)}
    assert list(told) == list(subnets)
    for name, subnet in subnets.items():
        (interface,) = told[name]["interfaces"]
        (ip,) = interface["ips"]
        assert interface["mac"] == links[name]["address"]
        assert ip["address"] == f"{ips[name]}/{subnet.prefixlen}"

    (tmp_path / "name").write_text("three")
    tmp_path.chmod(0o755)
    serving(pod, tmp_path)
    assert get(None, (ips["eth0"], 80), "name") == b"three"
    assert get(None, (ips["net1"], 80), "name") == b"three"
    # By macvlan pods see each other and the wire, and the node does not see them. This one asks for its address.
    wanted = str(WIRE[77])
    annotations = only(networks.macvlan, **{f"{CNI_ARGS_PREFIX}address": f"IP={wanted}"})
    neighbour = Pod.run(client, image, client.pod_config(annotations=annotations))
    assert neighbour.ip == wanted
    assert neighbour.says(f"wget -q -O - http://{ips['fast0']}/name") == "three\n"


def test_a_second_network_that_fails_leaves_nothing_of_the_first(
    client: Client, networks: Networks
) -> None:
    config = client.pod_config(annotations={NETWORKS: json.dumps({"name": networks.broken})})
    with refused(grpc.StatusCode.UNAVAILABLE, f"network {networks.broken}", "tuning"):
        client.run_pod(config)
    assert client.pods() == []
    unknown = client.pod_config(annotations={NETWORKS: '{"name": "elsewhere"}'})
    with refused(grpc.StatusCode.UNAVAILABLE, NETWORKS, "'elsewhere'", networks.chain):
        client.run_pod(unknown)
    twice = client.pod_config(annotations={NETWORKS: '{"name": "a", "interface": "eth0"}'})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, NETWORKS, "'eth0'", "another network has it"):
        client.run_pod(twice)


@pytest.mark.parametrize("left", ["nothing", "a bare file"])
def test_rules_go_with_a_pod_whose_namespace_has_vanished(
    client: Client, image: str, left: str
) -> None:
    pod = Pod.run(client, image, client.pod_config(host_ports={PORT: 80}))
    assert pod.id in run("iptables-save", "-t", "nat")
    run("ip", "netns", "delete", pod.netns.name)
    if left == "a bare file":
        pod.netns.touch()
    client.stop_pod(pod.id)
    assert not pod.netns.exists()
    assert pod.id not in run("iptables-save", "-t", "nat")
    pod.netns.touch()
    client.remove_pod(pod.id)
    assert not pod.netns.exists()
