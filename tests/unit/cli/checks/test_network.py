from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.cli.checks import network
from cri_shim.cli.checks.row import Level, Node, Row
from cri_shim.cni.attachment import Attachment
from cri_shim.config.model import CniSettings, SocketSettings
from cri_shim.config.values import FileMode, GroupName
from cri_shim.host.process import Reaper
from cri_shim.sandbox.network.pending_deletes import PendingDeletes
from tests.unit.cli.checks.trees import plant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.unit.cli.conftest import Program

CONFLIST = '{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}'


def with_reaper(function: Callable[[Reaper], Awaitable[Row]]) -> Row:
    async def run() -> Row:
        reaper = Reaper()
        reaper.open()
        try:
            return await function(reaper)
        finally:
            reaper.close()

    return asyncio.run(run())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return plant(tmp_path / "node", {"/etc/os-release": "ID=debian"})


@pytest.fixture
def cni(tmp_path: Path) -> CniSettings:
    (tmp_path / "net.d").mkdir()
    (tmp_path / "plugins").mkdir()
    return CniSettings(plugin_dirs=(tmp_path / "plugins",), conf_dir=tmp_path / "net.d")


def install(cni: CniSettings, *names: str) -> None:
    for name in names:
        (cni.plugin_dirs[0] / name).write_text("#!/bin/sh\n")
        (cni.plugin_dirs[0] / name).chmod(0o755)


def test_missing_plugins_are_named_with_their_package(node: Node, cni: CniSettings) -> None:
    row = network.cni_plugins(node, Reaper(), cni)
    assert (row.level, row.remedy) == (
        Level.WARNING,
        "apt-get install containernetworking-plugins",
    )
    install(cni, "bridge", "host-local", "loopback")
    row = network.cni_plugins(node, Reaper(), cni)
    assert (row.level, row.detail) == (Level.WARNING, f"{cni.plugin_dirs[0]} lacks portmap")
    install(cni, "portmap")
    assert network.cni_plugins(node, Reaper(), cni).level is Level.OK


def test_a_node_without_network_configuration_is_a_warning(cni: CniSettings) -> None:
    row = network.cni_config(Reaper(), cni)
    assert row.level is Level.WARNING
    assert "NetworkReady is false" in row.detail


def test_a_network_whose_plugin_is_missing_fails(cni: CniSettings) -> None:
    (cni.conf_dir / "10-pods.conflist").write_text(CONFLIST)
    install(cni, "bridge")
    row = network.cni_config(Reaper(), cni)
    assert row.level is Level.FAILED
    assert "needs the CNI plugin portmap" in row.detail


def test_a_broken_network_configuration_fails(cni: CniSettings) -> None:
    (cni.conf_dir / "10-pods.conflist").write_text("{")
    assert network.cni_config(Reaper(), cni).level is Level.FAILED


def test_a_sound_network_is_ok_and_a_broken_file_beside_it_a_warning(cni: CniSettings) -> None:
    (cni.conf_dir / "10-pods.conflist").write_text(CONFLIST)
    install(cni, "bridge", "portmap")
    row = network.cni_config(Reaper(), cni)
    assert (row.level, row.detail) == (
        Level.OK,
        f"pods (bridge, portmap) in {cni.conf_dir}/10-pods.conflist",
    )
    (cni.conf_dir / "20-x.conflist").write_text("{")
    assert network.cni_config(Reaper(), cni).level is Level.WARNING


def test_iptables_must_be_there_and_its_nat_table_usable(program: Program, node: Node) -> None:
    row = with_reaper(lambda reaper: network.packet_filter(node, reaper))
    assert (row.level, row.remedy) == (Level.WARNING, "apt-get install iptables")
    program(
        "iptables", 'case $1 in -w) echo "no table nat" >&2; exit 3;; esac; echo "iptables v1.8.9"'
    )
    row = with_reaper(lambda reaper: network.packet_filter(node, reaper))
    assert row.level is Level.WARNING
    assert "no table nat" in row.detail
    program("iptables", 'echo "iptables v1.8.9 (nf_tables)"')
    assert with_reaper(lambda reaper: network.packet_filter(node, reaper)).level is Level.OK


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        yield server


def test_a_socket_is_free_held_or_blocked(tmp_path: Path, listener: socket.socket) -> None:
    settings = SocketSettings()
    held = network.unix_socket(tmp_path / "s", settings)
    assert (held.level, held.detail) == (Level.OK, f"a server answers there (pid {os.getpid()})")
    listener.close()
    assert network.unix_socket(tmp_path / "s", settings).detail == "free"
    assert "created in" in network.unix_socket(tmp_path / "a" / "s", settings).detail
    (tmp_path / "file").write_text("")
    assert network.unix_socket(tmp_path / "file", settings).level is Level.FAILED


def test_a_socket_needs_its_group_and_is_no_ones_but_roots(tmp_path: Path) -> None:
    unknown = SocketSettings(group=GroupName("no-such-group"))
    row = network.unix_socket(tmp_path / "s", unknown)
    assert (row.level, row.detail) == (Level.FAILED, "group no-such-group does not exist")
    assert (
        network.unix_socket(tmp_path / "s", SocketSettings(group=GroupName("0"))).level is Level.OK
    )
    open_to_all = SocketSettings(mode=FileMode(0o666))
    assert network.unix_socket(tmp_path / "s", open_to_all).level is Level.WARNING


def test_a_port_is_free_or_its_holder_is_named(node: Node) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        row = network.tcp_port(Node(Path("/")), "port", "127.0.0.1", port, key="listen")
        assert row.level is Level.FAILED
        assert f"is taken by process {os.getpid()} (" in row.detail
        unknown = network.tcp_port(node, "port", "127.0.0.1", port, key="listen")
        assert "is taken by another process" in unknown.detail
    free = network.tcp_port(node, "port", "127.0.0.1", port, key="listen")
    assert (free.level, free.detail) == (Level.OK, f"127.0.0.1:{port} is free")


def test_a_port_of_the_running_daemon_is_ours(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        # local_address ... st ... inode, as in proc(5)
        table = (
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
            f"   0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 4711 1 0 100 0 0 10 0\n"
        )
        recorded = plant(
            tmp_path,
            {
                "/proc/net/tcp": table,
                "/proc/77/cmdline": "/usr/bin/python3\0-m\0cri_shim\0serve\0",
                "/proc/77/fd/": "",
            },
        )
        (tmp_path / "proc/77/fd/5").symlink_to("socket:[4711]")
        row = network.tcp_port(recorded, "port", "127.0.0.1", port, key="listen")
        assert (row.level, row.detail) == (
            Level.OK,
            f"127.0.0.1:{port} is the running daemon's (pid 77)",
        )


def test_an_address_that_is_not_this_nodes_fails(node: Node) -> None:
    row = network.tcp_port(node, "port", "192.0.2.1", 5, key="listen")
    assert row.level is Level.FAILED
    assert "Cannot assign requested address" in row.detail


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/opt/cri-shim/venv/bin/python /usr/local/bin/cri-shim serve", True),
        ("python -m cri_shim serve --config /etc/cri-shim/config.yaml", True),
        ("/usr/src/cri-shim/.venv/bin/python /usr/src/cri-shim/.venv/bin/pytest", False),
        ("cri-shim image list", False),
    ],
)
def test_the_daemon_is_told_by_its_command_not_by_its_directory(
    command: str, expected: bool
) -> None:
    assert network.is_daemon(command) is expected


# --- CNI versions and pending deletes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "level", "detail"),
    [
        (
            '{"supportedVersions": ["0.4.0", "1.0.0"]}',
            Level.OK,
            "the plugins of pods support 1.0.0",
        ),
        ('{"supportedVersions": ["0.4.0"]}', Level.WARNING, "asks for 1.0.0; but bridge supports"),
        ("what?", Level.OK, "support"),
    ],
)
def test_plugins_are_asked_which_versions_they_speak(
    cni: CniSettings, answer: str, level: Level, detail: str
) -> None:
    (cni.conf_dir / "10.conflist").write_text(CONFLIST)
    (cni.plugin_dirs[0] / "bridge").write_text(f"#!/bin/sh\necho '{answer}'\n")
    (cni.plugin_dirs[0] / "bridge").chmod(0o755)
    row = with_reaper(lambda reaper: network.cni_versions(reaper, cni))
    assert row.level is level
    assert detail in row.detail


def test_a_plugin_that_fails_to_tell_its_versions_is_quoted(cni: CniSettings) -> None:
    assert with_reaper(lambda reaper: network.cni_versions(reaper, cni)).level is Level.OK
    (cni.conf_dir / "10.conflist").write_text(CONFLIST)
    (cni.plugin_dirs[0] / "bridge").write_text("#!/bin/sh\necho it hurts >&2; exit 1\n")
    (cni.plugin_dirs[0] / "bridge").chmod(0o755)
    row = with_reaper(lambda reaper: network.cni_versions(reaper, cni))
    assert row.level is Level.WARNING
    assert "it hurts" in row.detail


def test_what_plugins_have_not_let_go_of_is_shown(tmp_path: Path) -> None:
    assert network.cni_pending_deletes(tmp_path).level is Level.OK
    pending_deletes = PendingDeletes(tmp_path / "pending_deletes")
    for name in ("a1", "b2"):
        attachment = Attachment(container_id=name, netns="", ifname="eth0", network="pods")
        pending_deletes.add(attachment, pod="default/web", error=f"{name} is busy")
    row = network.cni_pending_deletes(tmp_path)
    assert row.level is Level.WARNING
    assert "2 network attachments" in row.detail
    assert "default/web: a1 is busy" in row.detail
    assert str(tmp_path / "pending_deletes") in row.remedy
