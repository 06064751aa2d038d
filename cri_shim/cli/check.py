"""`cri-shim check`: checks whether this node can run the daemon, with a remedy for each failure."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from cri_shim import log
from cri_shim.cli.checks import cgroups, daemon, kernel, network, resources, runtimes, security
from cri_shim.cli.checks.row import Level, Node, Row
from cri_shim.cli.output import json_text, paint, printable, wants_colour
from cri_shim.cli.parser import add_config_options
from cri_shim.config import load_config
from cri_shim.host.process import Reaper

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cri_shim.config import Config

COLOUR_OF = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red"}
MIN_WIDTH = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_options(parser)
    parser.epilog = (
        "Each row is ok, warning (some pods will lack something) or failed (the daemon can't do its job).\n"
        "Exit code 1 if a row failed. Run it as root, as the daemon will run."
    )


def run(args: argparse.Namespace) -> int:
    """Print a row per requirement; 1 if one failed. Raises ConfigError."""
    config = load_config(args.config, args.set)
    log.configure(level="error", format=config.log.format)  # the rows have the warnings
    rows = asyncio.run(collect(config))
    counts = {level: sum(row.level is level for row in rows) for level in Level}
    if args.json:
        document = {
            "ok": not counts[Level.FAILED],
            "rows": [
                {"name": r.name, "level": str(r.level), "detail": r.detail, "remedy": r.remedy}
                for r in rows
            ],
        }
        print(json_text(document))
    else:
        colour = wants_colour(sys.stdout)
        width = max(get_terminal_size((100, 24)).columns, MIN_WIDTH) if sys.stdout.isatty() else 0
        for line in format_rows(rows, colour=colour, width=width):
            print(line)
        print(_summary(counts, colour=colour))
    return 1 if counts[Level.FAILED] else 0


async def collect(config: Config, node: Node | None = None) -> list[Row]:
    """Check everything. Returns the rows in the order in which they are shown."""
    node = node or Node()
    layout = cgroups.read_layout(node)
    reaper = Reaper()
    reaper.open()
    try:
        handlers, conmon, pause, packet_filter = await asyncio.gather(
            runtimes.runtime_handlers(node, reaper, config.runtime, layout),
            runtimes.monitor(node, reaper, config.runtime.monitor),
            runtimes.pause_program(node, reaper, config.sandbox.image),
            network.packet_filter(node, reaper),
        )
        return [
            kernel.kernel_version(node),
            kernel.kernel_calls(),
            kernel.mount_api(),
            kernel.namespaces(node),
            kernel.user_namespaces(node),
            kernel.overlayfs(config.root),
            cgroups.cgroups(layout),
            cgroups.cgroup_driver(node, layout, config.cgroup_driver),
            *handlers,
            conmon,
            pause,
            runtimes.libarchive(node),
            network.cni_plugins(node, reaper, config.cni),
            network.cni_config(reaper, config.cni),
            await network.cni_versions(reaper, config.cni),
            network.cni_pending_deletes(config.root),
            packet_filter,
            security.seccomp(node),
            security.apparmor(node, config.security.apparmor_profile),
            security.selinux(node, config.security.selinux),
            security.oci_hooks(config.security.hooks_dirs, config.security.hook_spec),
            security.cdi_devices(config.security.cdi_dirs),
            security.capabilities(node, config.security.default_capabilities),
            security.open_files(),
            resources.directories(config.root, config.state),
            resources.disk_space(config.root),
            *resources.sysctls(node),
            *listeners(config, node),
            await asyncio.to_thread(daemon.operations, config),
        ]
    finally:
        reaper.close()


def listeners(config: Config, node: Node) -> list[Row]:
    """A row for each socket and port on which the daemon would listen."""
    rows = []
    for url in config.listen:
        if (path := url.socket_path) is not None:
            rows.append(network.unix_socket(path, config.socket))
        elif (tcp := url.tcp_address) is not None:
            rows.append(
                network.tcp_port(node, f"port {tcp.port}", tcp.host, tcp.port, key="listen")
            )
    streaming, metrics = config.streaming, config.metrics.address
    rows.append(
        network.tcp_port(
            node, "streaming port", streaming.address, streaming.port, key="streaming.port"
        )
    )
    if metrics is not None:
        rows.append(
            network.tcp_port(
                node, "metrics port", metrics.host, metrics.port, key="metrics.address"
            )
        )
    return rows


def format_rows(rows: Sequence[Row], *, colour: bool, width: int = 0) -> list[str]:
    """Rows as an aligned table, each remedy below its detail. Lines are wrapped to `width`, unless it is 0."""
    name_width = max(len(row.name) for row in rows)
    level_width = max(map(len, Level))
    indent = " " * (level_width + 2 + name_width + 2)
    lines = []
    for row in rows:
        level = paint(row.level.ljust(level_width), COLOUR_OF[row.level], enabled=colour)
        text = [printable(row.detail)]
        if row.remedy:
            text.append(f"-> {printable(row.remedy)}")
        if width:
            text = [part for long in text for part in textwrap.wrap(long, width - len(indent))]
        lines.append(f"{level}  {row.name.ljust(name_width)}  {text[0]}")
        lines.extend(indent + part for part in text[1:])
    return lines


def _summary(counts: dict[Level, int], *, colour: bool) -> str:
    if counts[Level.FAILED]:
        verdict, tint = "this node cannot run cri-shim yet", "red"
    elif counts[Level.WARNING]:
        verdict, tint = "this node can run cri-shim, with the limits above", "yellow"
    else:
        verdict, tint = "this node can run cri-shim", "green"
    numbers = ", ".join(f"{count} {level}" for level, count in counts.items())
    return f"{paint(verdict, tint, enabled=colour)}: {numbers}"
