"""The distribution's plugins, for real: what ADD makes is there and works, what DEL leaves is nothing.

The node is a network namespace of its own: the plugins run in it (through a one-line wrapper each), so bridges,
rules and forwarding stay out of the machine's, and whatever a broken test left would go with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cri_shim.cni.attachment import Attachment
from cri_shim.cni.leftover import LeftoverPlugins
from cri_shim.cni.network import Cni
from cri_shim.cni.result import pod_ips
from cri_shim.errors import CniPluginError
from cri_shim.host.namespaces import create_netns, remove_netns, run_in_netns
from cri_shim.host.process import Reaper
from tests.fakes.clock import MovableClock
from tests.fakes.cni_plugin import install_plugin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

NETNS_DIR = Path("/run/netns")
PLUGIN_DIR = Path("/usr/lib/cni")
PLUGINS = ("bridge", "ptp", "host-local", "portmap", "firewall")
BRIDGE = "cri-it0"
SUBNET = "10.89.77"
HOST_PORT = 18080
TIMEOUT_S = 30.0

# What portmap and firewall make once for all pods and never remove.
SHARED_CHAINS = {
    "CNI-HOSTPORT-DNAT",
    "CNI-HOSTPORT-MASQ",
    "CNI-HOSTPORT-SETMARK",
    "CNI-FORWARD",
    "CNI-ADMIN",
}


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@dataclass
class Node:
    root: Path
    netns: Path
    reaper: Reaper
    cni: Cni

    @property
    def leases_dir(self) -> Path:
        return self.root / "leases"

    def make_cni(self, *, timeout_s: float = TIMEOUT_S, cancel_grace_s: float = 5) -> Cni:
        cni = Cni(
            self.reaper,
            plugin_dirs=[self.root / "bin"],
            conf_dir=self.root / "net.d",
            cache_dir=self.root / "results",
            leftovers=LeftoverPlugins([self.root / "bin"]),
            timeout_s=timeout_s,
            cancel_grace_s=cancel_grace_s,
        )
        cni.load()
        return cni

    def configure(
        self,
        *more: dict[str, Any],
        version: str = "1.0.0",
        v6: bool = False,
        masquerade: bool = True,
        plugin: str = "bridge",
    ) -> None:
        """bridge (or ptp) with host-local, portmap, and `more` at the end."""
        ranges = [[{"subnet": f"{SUBNET}.0/24"}]] + ([[{"subnet": "fd89:77::/64"}]] if v6 else [])
        bridge = {
            "type": plugin,
            "bridge": BRIDGE,
            "isGateway": True,
            "ipMasq": masquerade,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.leases_dir),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}] + ([{"dst": "::/0"}] if v6 else []),
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
        document = {"cniVersion": version, "name": "pods", "plugins": [bridge, portmap, *more]}
        (self.root / "net.d" / "10-pods.conflist").write_text(json.dumps(document))

    def ip(self, *arguments: str) -> list[dict[str, Any]]:
        output = run("nsenter", f"--net={self.netns}", "ip", "-json", *arguments)
        found: list[dict[str, Any]] = json.loads(output or "[]")
        return found

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link", "show")}

    def rules(self) -> list[str]:
        """Rules and chains of CNI in both families, less the declarations of the shared chains."""
        lines = []
        for command in ("iptables-save", "ip6tables-save"):
            lines += run("nsenter", f"--net={self.netns}", command).splitlines()
        return [line for line in lines if "CNI" in line]

    def leases(self) -> set[str]:
        """Addresses held."""
        directory = self.leases_dir / "pods"
        names = {file.name for file in directory.iterdir()} if directory.exists() else set()
        return {name for name in names if re.fullmatch(r"[0-9a-f.:]+", name)}

    def assert_nothing_left(self) -> None:
        assert self.leases() == set()
        assert self.links() <= {"lo", BRIDGE}
        for rule in self.rules():
            assert set(re.findall(r"CNI-[A-Za-z0-9-]+", rule)) <= SHARED_CHAINS, rule
            assert SUBNET not in rule
        assert list((self.root / "results").iterdir()) == []


@pytest.fixture
def node_netns() -> Iterator[Path]:
    path = NETNS_DIR / f"cri-it-{secrets.token_hex(4)}"
    create_netns(path, {})
    yield path
    remove_netns(path)


@pytest_asyncio.fixture
async def node(tmp_path: Path, node_netns: Path) -> AsyncIterator[Node]:
    reaper = Reaper()
    reaper.open()
    for name in ("bin", "net.d", "results"):
        (tmp_path / name).mkdir()
    for plugin in PLUGINS:
        real = PLUGIN_DIR / plugin
        assert real.exists(), f"{real} is missing; apt-get install containernetworking-plugins"
        wrapper = tmp_path / "bin" / plugin
        wrapper.write_text(f"#!/bin/sh\nexec nsenter --net={node_netns} {real}\n")
        wrapper.chmod(0o755)
    install_plugin(tmp_path / "bin", "scripted")
    node = Node(tmp_path, node_netns, reaper, None)  # type: ignore[arg-type]
    node.configure()
    node.cni = node.make_cni()
    yield node
    reaper.close()


@contextlib.contextmanager
def pod(**changes: Any) -> Iterator[Attachment]:
    """The attachment of a pod with a namespace of its own."""
    container_id = secrets.token_hex(32)
    netns = NETNS_DIR / f"cri-{container_id[:32]}"
    create_netns(netns, {})
    values: dict[str, Any] = {
        "container_id": container_id,
        "netns": str(netns),
        "ifname": "eth0",
        "network": "pods",
        "args": {"IgnoreUnknown": "1", "K8S_POD_NAME": "web"},
    }
    try:
        yield Attachment(**{**values, **changes})
    finally:
        remove_netns(netns)


PORT_MAPPING: dict[str, object] = {
    "portMappings": [{"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"}]
}


def addresses(attachment: Attachment) -> list[str]:
    output = run("nsenter", f"--net={attachment.netns}", "ip", "-json", "addr", "show", "eth0")
    return [
        address["local"]
        for address in json.loads(output)[0]["addr_info"]
        if address["scope"] != "link"
    ]


async def test_a_pod_is_reached_by_its_address_and_host_port_and_leaves_nothing(
    node: Node,
) -> None:
    assert node.cni.status.ready, node.cni.status.message
    with pod(capability_args=PORT_MAPPING) as attachment:
        result = await node.cni.add(attachment)
        (address,) = pod_ips(result, "eth0")
        assert address.startswith(SUBNET)
        assert addresses(attachment) == [address]
        assert node.leases() == {address}
        routes = run("nsenter", f"--net={attachment.netns}", "ip", "route")
        assert f"default via {SUBNET}.1 dev eth0" in routes
        assert any(f"--to-destination {address}:80" in rule for rule in node.rules())
        assert len(node.links() - {"lo", BRIDGE}) == 1
        for place in ((address, 80), (f"{SUBNET}.1", HOST_PORT)):
            assert talk(Path(attachment.netns), node.netns, place) == b"hello"
        await node.cni.delete(attachment)
        node.assert_nothing_left()
        await node.cni.delete(attachment)
        node.assert_nothing_left()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_both_families_and_every_version_the_plugins_know(node: Node, version: str) -> None:
    node.configure(version=version, v6=True)
    with pod(capability_args=PORT_MAPPING) as attachment:
        result = await node.cni.add(attachment)
        v4, v6 = pod_ips(result, "eth0")
        assert (v4[: len(SUBNET)], v6[:8]) == (SUBNET, "fd89:77:")
        assert sorted(addresses(attachment)) == sorted([v4, v6])
        assert node.leases() == {v4, v6}
        await node.cni.delete(attachment)
        node.assert_nothing_left()


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@pytest.mark.parametrize("left", ["nothing", "a bare file"])
async def test_delete_after_the_namespace_and_the_configuration_have_gone(
    node: Node, version: str, plugin: str, left: str
) -> None:
    # These plugins find what to unmasquerade by the addresses in the namespace: they get a stand-in.
    node.configure(version=version, v6=True, plugin=plugin)
    with pod(capability_args=PORT_MAPPING) as attachment:
        await node.cni.add(attachment)
    assert len(node.leases()) == 2
    assert any("POSTROUTING" in rule and attachment.container_id in rule for rule in node.rules())
    (node.root / "net.d" / "10-pods.conflist").unlink()
    netns = Path(attachment.netns)
    if left == "a bare file":
        netns.touch(0o000)
    successor = node.make_cni()
    assert not successor.status.ready
    (known,) = successor.attachments(attachment.container_id)
    await successor.delete(known)
    node.assert_nothing_left()
    assert not netns.exists()


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@pytest.mark.parametrize("namespace", ["lives", "is gone"])
async def test_delete_after_the_nodes_rules_were_flushed(
    node: Node, plugin: str, namespace: str
) -> None:
    """As by a firewall that is loaded anew, or by a reboot; then the plugin fails at a chain that isn't there."""
    node.configure(v6=True, plugin=plugin)
    with pod(capability_args=PORT_MAPPING) as attachment:
        await node.cni.add(attachment)
        run("nsenter", f"--net={node.netns}", "nft", "flush", "ruleset")
        if namespace == "is gone":
            remove_netns(Path(attachment.netns))
        await node.cni.delete(attachment)
        node.assert_nothing_left()
        assert Path(attachment.netns).exists() == (namespace == "lives")


async def test_pods_attached_side_by_side_have_addresses_of_their_own(node: Node) -> None:
    with contextlib.ExitStack() as pods:
        attachments = [pods.enter_context(pod()) for _ in range(6)]
        results = await asyncio.gather(*map(node.cni.add, attachments))
        assert len({ip for result in results for ip in pod_ips(result, "eth0")}) == 6
        assert len(node.leases()) == 6
        await asyncio.gather(*map(node.cni.delete, attachments))
        node.assert_nothing_left()


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({"do": "fail", "code": 11, "msg": "not now"}, r"scripted: ADD: not now \(code 11\)"),
        (
            {"do": "die", "stderr": "panic: boom"},
            "scripted: ADD: exited with status 3: panic: boom",
        ),
        ({"do": "garbage"}, "scripted: ADD: its result is not a JSON object"),
        ({"do": "silent"}, "scripted: ADD: it printed no result"),
        ({"do": "flood"}, "scripted: ADD: printed more than 1048576 bytes"),
        ({"do": "hang", "helper": True}, r"scripted: ADD: no answer within 30 s; it was killed"),
    ],
)
async def test_a_chain_that_breaks_at_its_end_leaves_nothing_after_delete(
    node: Node, step: dict[str, object], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, hangs = MovableClock(monkeypatch), node.root / "hangs"
    script = {"ADD": {**step, "mark": str(hangs)}}
    node.configure({"type": "firewall"}, {"type": "scripted", "script": script})
    with pod(capability_args=PORT_MAPPING) as attachment:
        adding = asyncio.ensure_future(node.cni.add(attachment))
        if step["do"] == "hang":
            # The real plugins before it have all the time that they need; only then is its own time over.
            await until(hangs.exists, adding)
            clock.move(TIMEOUT_S)
        with pytest.raises(CniPluginError, match=complaint):
            await adding
        assert len(node.leases()) == 1
        assert any(f"{SUBNET}." in rule and "CNI-FORWARD" in rule for rule in node.rules())
        await node.cni.delete(attachment)
        node.assert_nothing_left()


async def test_a_daemon_that_dies_during_add_leaves_its_successor_enough_to_undo_it(
    node: Node,
) -> None:
    node.configure({"type": "scripted", "script": {"ADD": {"do": "hang"}}})
    cni = node.make_cni(cancel_grace_s=0)
    with pod(capability_args=PORT_MAPPING) as attachment:
        work = asyncio.ensure_future(cni.add(attachment))
        await until(lambda: any("CNI-DN" in rule for rule in node.rules()), work)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        successor = node.make_cni()
        (known,) = successor.attachments(attachment.container_id)
        await successor.delete(known)
        node.assert_nothing_left()


async def test_an_add_cancelled_at_any_moment_is_undone_by_delete(node: Node) -> None:
    for delay_s in (0.0, 0.004, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05):
        with pod(capability_args=PORT_MAPPING) as attachment:
            work = asyncio.ensure_future(node.cni.add(attachment))
            await asyncio.sleep(delay_s)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            await node.cni.delete(attachment)
            node.assert_nothing_left()


async def test_a_delete_that_fails_is_finished_by_the_next(node: Node) -> None:
    script = node.root / "scripted.json"
    script.write_text('{"DEL": {"do": "fail", "msg": "busy"}}')
    node.configure({"type": "scripted", "script_file": str(script)})
    with pod(capability_args=PORT_MAPPING) as attachment:
        await node.cni.add(attachment)
        with pytest.raises(CniPluginError, match="scripted: DEL: busy"):
            await node.cni.delete(attachment)
        script.write_text("{}")
        (known,) = node.cni.attachments(attachment.container_id)
        await node.cni.delete(known)
        node.assert_nothing_left()


async def test_a_full_subnet_is_an_error_in_the_plugins_own_words(node: Node) -> None:
    node.configure()
    file = node.root / "net.d" / "10-pods.conflist"
    document = json.loads(file.read_text())
    document["plugins"][0]["ipam"]["ranges"] = [[{"subnet": f"{SUBNET}.0/30"}]]
    file.write_text(json.dumps(document))
    with pod() as first, pod() as second:
        await node.cni.add(first)
        with pytest.raises(CniPluginError, match=r"bridge: ADD: .*no IP addresses available"):
            await node.cni.add(second)
        await node.cni.delete(second)
        await node.cni.delete(first)
        node.assert_nothing_left()


def talk(server_netns: Path, client_netns: Path, place: tuple[str, int]) -> bytes:
    """Serve port 80 in one namespace, connect from another to `place`, and return what came through."""
    server = run_in_netns(server_netns, lambda: socket.create_server(("0.0.0.0", 80)))
    client = run_in_netns(client_netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with server, client:
        server.settimeout(5)
        client.settimeout(5)
        client.connect(place)
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"hello")
        return client.recv(16)


async def until(condition: Callable[[], bool], work: asyncio.Future[Any]) -> None:
    async with asyncio.timeout(20):
        while not condition() and not work.done():  # noqa: ASYNC110 - rules ring no bell
            await asyncio.sleep(0.05)
    assert not work.done()
