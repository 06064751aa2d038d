"""What common plugins complain of though nothing is wrong: the network is as it was made, or is gone already (pure).

Rules:
- Only complaints whose cause is known are here, told by the plugin's type and its own words: any other one counts.
- A plugin stops at its first complaint. What it would have looked at behind a false one is still to be looked at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cri_shim.cni.result import Result
    from cri_shim.errors import CniPluginError

LOOK_INSIDE = ("bridge", "ptp")
"""Plugins whose DEL finds the rules that they made on the node by the addresses in the pod's namespace."""

_BRIDGE_ADDRESS = re.compile(r"Bridge interface (\S+) Mac doesn't match: ")
_OTHER_FAMILY = re.compile(r"could not check ipv([46]) dnat: ")
_NO_CHAIN = re.compile(r"Chain 'CNI-[^']*' does not exist|Couldn't load target `CNI-[^']*'")
"""The words of iptables, with nf_tables and of old, for a rule that leads to a chain which isn't there."""


def without_bridge_address(
    error: CniPluginError, prev_result: dict[str, Any]
) -> dict[str, Any] | None:
    """The result of ADD to ask `bridge` with once more: without the address of the bridge itself.

    Linux gives a bridge the lowest address of its ports, so that it changes whenever pods come and go. None where the
    complaint is about something else.
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
    """Whether `portmap` misses rules for addresses of a family of which the pod has none: it looks for both's."""
    found = _OTHER_FAMILY.search(str(error)) if error.plugin == "portmap" else None
    return found is not None and all(ip.address.version != int(found[1]) for ip in result.ips)


def is_about_missing_rules(error: CniPluginError) -> bool:
    """Whether a DEL failed since the rules that it was to take away are gone already.

    Of the ways in which iptables says so, these plugins (1.1.1) know one that newer iptables don't use.
    """
    return error.plugin in LOOK_INSIDE and _NO_CHAIN.search(str(error)) is not None
