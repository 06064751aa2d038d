"""Kernel parameters of a pod: which are allowed, and who sets them.

Rules:
- Only parameters of a namespace that the pod owns are allowed: `net.*` unless it shares the node's network, those of
  System V IPC and POSIX message queues unless it shares the node's IPC (CVE-2022-0532). Everything else below kernel,
  vm and fs changes the node and is refused (CVE-2022-0811).
- Names and values are checked byte by byte, so that neither can contain a path or a second line.
- The daemon writes `net.*` into the pinned network namespace before CNI runs, and parameters of the plugins' interfaces
  after it. The OCI runtime writes the rest. A handler with its own kernel gets all of them in its spec instead.
- The pod's parameters override the node's defaults. Defaults that don't apply to a pod are dropped; the pod's own are
  refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.config.model import HandlerKind
from cri_shim.oci.spec.checks import refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+")
_VALUE = re.compile(r"[\x20-\x7e\t]{1,4096}")
_IPC_NAMES = frozenset(
    {
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    }
)
_OF_AN_INTERFACE = re.compile(
    r"net\.(?:ipv4\.(?:conf|neigh)|ipv6\.(?:conf|neigh)|mpls\.conf)\.(?!(?:all|default|lo)\.)[^.]+\..+"
)
"""`all`, `default` and `lo` exist before any plugin runs."""
_SWAP_SEPARATORS = str.maketrans("./", "/.")


@dataclass(frozen=True, slots=True)
class PodSysctls:
    """A pod's parameters, by who sets them. A `/` in a name is a dot inside one component."""

    network: dict[str, str]
    """Set in the network namespace before the first interface is created."""
    spec: dict[str, str]
    """Set by the OCI runtime."""
    interfaces: dict[str, str] = field(default_factory=dict)
    """Set in the network namespace after the plugins have created its interfaces."""
    optional: frozenset[str] = frozenset()
    """The node's defaults among `interfaces`, which are skipped for a pod without that interface."""


def pod_sysctls(
    requested: Mapping[str, str],
    *,
    defaults: Mapping[str, str],
    kind: HandlerKind,
    host_network: bool,
    host_ipc: bool,
) -> PodSysctls:
    """Check and group the pod's parameters.

    Raises InvalidArgumentError for a malformed name or value, and for a parameter that a pod does not own.
    """
    network: dict[str, str] = {}
    ipc: dict[str, str] = {}
    own = set()
    for values, is_default in ((defaults, True), (requested, False)):
        for given, value in values.items():
            name = _checked(given, value)
            if not is_default:
                own.add(name)
            if name.startswith("net."):
                if not host_network:
                    network[name] = value
                elif not is_default:
                    refuse(f"sysctls[{quoted(given)}]", value, "the pod shares the node's network")
            elif name in _IPC_NAMES or name.startswith("fs.mqueue."):
                if not host_ipc:
                    ipc[name] = value
                elif not is_default:
                    refuse(f"sysctls[{quoted(given)}]", value, "the pod shares the node's IPC")
            else:
                refuse(
                    f"sysctls[{quoted(given)}]",
                    value,
                    "is a parameter of the node, not of a pod",
                )
    if kind is HandlerKind.VM:
        return PodSysctls({}, network | ipc)
    interfaces = {name: value for name, value in network.items() if _OF_AN_INTERFACE.match(name)}
    return PodSysctls(
        network={name: value for name, value in network.items() if name not in interfaces},
        spec=ipc,
        interfaces=interfaces,
        optional=frozenset(interfaces) - own,
    )


def _checked(name: str, value: str) -> str:
    """The name with dots between components. As in sysctl(8), the first separator decides what `.` and `/` mean."""
    if len(name) > 256 or _NAME.fullmatch(name) is None:
        refuse(
            f"sysctls[{quoted(name)}]",
            value,
            "is not a name of letters, digits, '-', '_' and separators",
        )
    if _VALUE.fullmatch(value) is None:
        refuse(f"sysctls[{quoted(name)}]", value, "must be 1 to 4096 printable ASCII characters")
    first = min(position for position in (name.find("."), name.find("/")) if position >= 0)
    return name.translate(_SWAP_SEPARATORS) if name[first] == "/" else name
