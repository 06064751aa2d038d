"""Complaints of common plugins that are false alarms: the network is as it was made, or is gone already. Pure.

Rules:
- Only complaints with a known cause are listed, identified by the plugin's type and its own message. All others count.
- A plugin stops at its first complaint. After a false one, the caller must have the rest checked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cri_shim.cni.result import Result
    from cri_shim.errors import CniPluginError

LOOK_INSIDE = ("bridge", "ptp")
"""Plugins whose DEL finds its rules on the node by the addresses inside the pod's namespace."""

_BRIDGE_ADDRESS = re.compile(r"Bridge interface (\S+) Mac doesn't match: ")
_OTHER_FAMILY = re.compile(r"could not check ipv([46]) dnat: ")
_NO_CHAIN = re.compile(r"Chain 'CNI-[^']*' does not exist|Couldn't load target `CNI-[^']*'")
"""The messages of iptables-nft and iptables-legacy about a rule whose target chain does not exist."""


def without_bridge_address(
    error: CniPluginError, prev_result: dict[str, Any]
) -> dict[str, Any] | None:
    """The result to repeat a CHECK of `bridge` with, without the bridge's own MAC; None for another complaint.

    Linux gives a bridge the lowest MAC of its ports, so it changes whenever pods come and go.
    """
    found = _BRIDGE_ADDRESS.search(str(error)) if error.plugin == "bridge" else None
    if found is None:
        return None
    interfaces = [
        {key: value for key, value in each.items() if key != "mac"}
        if each.get("name") == found[1] and not each.get("sandbox")
        else each
        for each in prev_result.get("interfaces") or ()
    ]
    return {**prev_result, "interfaces": interfaces}


def is_about_a_missing_family(error: CniPluginError, result: Result) -> bool:
    """Whether `portmap` misses rules for an address family that the pod lacks: it looks for both families' rules."""
    found = _OTHER_FAMILY.search(str(error)) if error.plugin == "portmap" else None
    return found is not None and all(ip.address.version != int(found[1]) for ip in result.ips)


def is_about_missing_rules(error: CniPluginError) -> bool:
    """Whether a DEL failed because the rules that it should remove are gone.

    iptables reports that in several ways. These plugins (1.1.1) handle one, which newer iptables doesn't use.
    """
    return error.plugin in LOOK_INSIDE and _NO_CHAIN.search(str(error)) is not None
