"""Checks pod networks, and the sockets and ports of the daemon."""

from __future__ import annotations

import errno
import grp
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, nearest_existing, ok, warning
from cri_shim.cli.programs import ask
from cri_shim.cni.invoke import PluginRunner
from cri_shim.cni.network_verbs import supported_versions
from cri_shim.cni.watch import NetworkConfigs
from cri_shim.errors import CniPluginError
from cri_shim.paths import Paths
from cri_shim.sandbox.network.pending_deletes import read_pending_deletes

if TYPE_CHECKING:
    from cri_shim.config.model import CniSettings, SocketSettings
    from cri_shim.host.process import Reaper

USUAL_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
CONNECT_TIMEOUT_S = 2.0


def cni_plugins(node: Node, reaper: Reaper, settings: CniSettings) -> Row:
    """Whether the usual CNI plugins are installed."""
    runner = PluginRunner(reaper, settings.plugin_dirs, timeout_s=settings.timeout_s)
    missing = [name for name in USUAL_PLUGINS if runner.find(name) is None]
    install = node.install("containernetworking-plugins")
    if len(missing) == len(USUAL_PLUGINS):
        return warning("cni plugins", f"none in {runner.where()}: pods get no network", install)
    where = sorted({str(path.parent) for name in USUAL_PLUGINS if (path := runner.find(name))})
    if missing:
        return warning(
            "cni plugins",
            f"{', '.join(where)} lacks {', '.join(missing)}",
            f"{install}, if a network needs it",
        )
    return ok("cni plugins", f"{', '.join(USUAL_PLUGINS)} in {', '.join(where)}")


def cni_config(reaper: Reaper, settings: CniSettings) -> Row:
    """Whether pods can join the default network: its configuration is valid and its plugins are installed."""
    name = "cni configuration"
    configs = NetworkConfigs(settings.conf_dir)
    configs.load()
    default = configs.default
    if default is None and not configs.problems:
        return warning(
            name,
            f"none in {settings.conf_dir}: NetworkReady is false, only pods on the host's network can run",
            "install the cluster's network add-on, which writes one, or write a .conflist with bridge, host-local and "
            "portmap yourself; no restart is needed",
        )
    status = configs.status(
        PluginRunner(reaper, settings.plugin_dirs, timeout_s=settings.timeout_s)
    )
    if not status.ready:
        return failed(name, status.message, "correct it; no restart is needed")
    network = default.network if default else None
    chain = ", ".join(plugin.type for plugin in network.plugins) if network else ""
    says = f"{network.name if network else ''} ({chain}) in {default.path if default else ''}"
    if status.message:
        return warning(name, f"{says}; but {status.message}", "correct or remove that file")
    return ok(name, says)


async def cni_versions(reaper: Reaper, settings: CniSettings) -> Row:
    """Whether the plugins of the default network support the cniVersion of its configuration."""
    name = "cni versions"
    configs = NetworkConfigs(settings.conf_dir)
    configs.load()
    network = configs.default.network if configs.default else None
    if network is None:
        return ok(name, "not checked: there is no default network")
    runner = PluginRunner(reaper, settings.plugin_dirs, timeout_s=settings.timeout_s)
    complaints = []
    for plugin in network.plugins:
        if runner.find(plugin.type) is None:
            continue  # the row `cni configuration` reports it
        try:
            versions = await supported_versions(runner, network, plugin)
        except CniPluginError as error:
            complaints.append(str(error))
            continue
        if versions and network.cni_version not in versions:
            complaints.append(f"{plugin.type} supports {', '.join(versions)}")
    if complaints:
        return warning(
            name,
            f"network {network.name} asks for {network.cni_version}; but {'; '.join(complaints)}",
            "set a cniVersion that each plugin supports, or install other plugins",
        )
    return ok(name, f"the plugins of {network.name} support {network.cni_version}")


def cni_pending_deletes(root: Path) -> Row:
    """Network attachments of removed pods whose CNI DEL has not succeeded yet."""
    name = "cni pending deletes"
    directory = Paths(root, root).pending_deletes_dir
    try:
        pending_deletes = sorted(
            read_pending_deletes(directory), key=lambda pending: pending.since_ns
        )
    except OSError as error:
        return warning(name, f"cannot read {directory}: {error.strerror}", "run this as root")
    if not pending_deletes:
        return ok(name, "none")
    first = pending_deletes[0]
    return warning(
        name,
        f"{len(pending_deletes)} network attachments of removed pods could not be deleted; the first, of "
        f"{first.pod or first.container_id[:13]}: {first.error}",
        f"repair the plugin; the daemon retries by itself. To give one up, stop the daemon and remove its file "
        f"in {directory}",
    )


async def packet_filter(node: Node, reaper: Reaper) -> Row:
    """Try to list the NAT table with iptables, which the plugins bridge (ipMasq) and portmap use."""
    name = "iptables"
    version = await ask(reaper, "iptables")
    if version.problem:
        nft = await ask(reaper, "nft")
        instead = (
            f"; {nft.first_line} is installed, but only newer CNI plugins use it"
            if not nft.problem
            else ""
        )
        return warning(
            name,
            f"{version.problem}: no host ports and no masquerading{instead}",
            node.install("iptables"),
        )
    nat = await ask(reaper, "iptables", ["-w", "2", "-t", "nat", "-S", "PREROUTING"])
    if nat.problem:
        return warning(
            name,
            f"{version.first_line}, but it cannot list the NAT table: {nat.problem}",
            "run this as root; modprobe iptable_nat or nft_chain_nat",
        )
    return ok(name, f"{version.first_line} ({version.path})")


def unix_socket(path: Path, settings: SocketSettings) -> Row:
    """Whether the daemon can create its CRI socket, or a server listens on it already."""
    name = f"socket {path}"
    if not settings.group.isdigit() and not _group_exists(settings.group):
        return failed(
            name,
            f"group {settings.group} does not exist",
            f"groupadd --system {settings.group}, or set socket.group",
        )
    if path.exists() and not path.is_socket():
        return failed(name, "a file that is not a socket exists there", f"rm {path}, or set listen")
    if settings.mode & 0o007:
        return warning(
            name,
            f"with socket.mode {settings.mode:04o} every user of this node can become root through the socket",
            'set socket.mode to "0660"',
        )
    pid = _listening_pid(path)
    if pid is not None:
        return ok(name, f"a server answers there (pid {pid})")
    place = nearest_existing(path.parent)
    return ok(
        name, "free" if place == path.parent else f"free, its directory will be created in {place}"
    )


def _group_exists(group: str) -> bool:
    try:
        grp.getgrnam(group)
    except KeyError:
        return False
    return True


def _listening_pid(path: Path) -> int | None:
    """The pid of the server on a unix socket, or None. SO_PEERCRED has the process that called listen(2)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return None
    pid: int = struct.unpack("iII", credentials)[0]
    return pid


def tcp_port(node: Node, name: str, address: str, port: int, *, key: str) -> Row:
    """Whether the daemon can listen on the port, or does so already."""
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        families = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        return failed(name, f"{where}: {error.strerror}", f"set {key}")
    family, kind, protocol, _, target = families[0]
    with socket.socket(family, kind, protocol) as probe:
        # As asyncio's servers do: connections of a former server in TIME_WAIT do not make the bind fail.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(target)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return failed(name, f"{where}: {error.strerror}", f"set {key}")
        else:
            return ok(name, f"{where} is free")
    holder = port_holder(node, port)
    if holder is not None and is_daemon(holder[1]):
        return ok(name, f"{where} is the running daemon's (pid {holder[0]})")
    whom = f"process {holder[0]} ({holder[1]})" if holder else "another process"
    return failed(name, f"{where} is taken by {whom}", f"stop that, or set {key}")


def is_daemon(command: str) -> bool:
    """Whether a command line is `cri-shim serve` or `python -m cri_shim serve`."""
    words = command.split()
    return "serve" in words and any(Path(word).name in ("cri-shim", "cri_shim") for word in words)


def port_holder(node: Node, port: int) -> tuple[int, str] | None:
    """The pid and command line of the process that listens on a TCP port, or None if it cannot be found."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in (node.read(f"/proc/net/{table}") or "").splitlines()[1:]:
            fields = line.split()
            # /proc/net/tcp (proc(5)): field 1 is the local address in hex, 3 the state (0A is LISTEN), 9 the inode.
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for pid in filter(str.isdigit, node.names("/proc")):
        for fd in node.names(f"/proc/{pid}/fd"):
            try:
                link = (node.root / "proc" / pid / "fd" / fd).readlink()
            except OSError:
                continue
            if str(link) in inodes:
                command = (node.read(f"/proc/{pid}/cmdline") or "").replace("\0", " ").strip()
                return int(pid), command
    return None
