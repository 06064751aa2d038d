"""Kernel parameters of a pod: which are allowed, and who writes them.

Rules of the file:
- Only parameters of a namespace the pod owns: `net.*` unless it shares the node's network, the System V and POSIX
  message queue ones unless it shares the node's IPC (CVE-2022-0532). Everything else under kernel, vm, fs changes
  the node and is refused (CVE-2022-0811).
- Names and values are checked byte by byte, so that neither can smuggle a path or a second line.
- `net.*` is written into the pinned network namespace before CNI runs, not by the OCI runtime; those of interfaces that
  plugins make, after it. A handler with a kernel of its own gets all of them in its spec instead.
- The node's defaults give way to the pod's, and are dropped where they don't apply; the pod's own are refused.
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
"""`all`, `default` and `lo` are there before any plugin."""
_SWAP_SEPARATORS = str.maketrans("./", "/.")


@dataclass(frozen=True, slots=True)
class PodSysctls:
    """A pod's parameters, by who writes them. A `/` in a name is a dot inside one component."""

    network: dict[str, str]
    """For the network namespace, before the first interface is made."""
    spec: dict[str, str]
    """For the OCI runtime."""
    interfaces: dict[str, str] = field(default_factory=dict)
    """For the network namespace, once the plugins have made its interfaces."""
    optional: frozenset[str] = frozenset()
    """Which of `interfaces` are defaults of the node, and not meant for a pod without that interface."""


def pod_sysctls(
    requested: Mapping[str, str],
    *,
    defaults: Mapping[str, str],
    kind: HandlerKind,
    host_network: bool,
    host_ipc: bool,
) -> PodSysctls:
    """Check the pod's parameters and divide them.

    Raises InvalidArgumentError for a name or value that is malformed, or for a parameter that isn't the pod's own.
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
                    "is not a parameter of a pod but of the node",
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
    """The name with dots between components, as sysctl(8) reads it: the first separator says which is which."""
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
