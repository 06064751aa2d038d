"""What common plugins complain of at CHECK though the network is as it was made (pure).

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

_BRIDGE_ADDRESS = re.compile(r"Bridge interface (\S+) Mac doesn't match: ")
_OTHER_FAMILY = re.compile(r"could not check ipv([46]) dnat: ")


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
