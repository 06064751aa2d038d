"""Describes a sandbox's networks for its verbose status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cri_shim.cni.result import Address, Result
    from cri_shim.sandbox.store.model import NetworkAttachment


def network_details(attachment: NetworkAttachment, result: Result | None) -> dict[str, object]:
    """The interfaces, addresses and routes in one network's ADD result. `attached` is false without a result."""
    told: dict[str, object] = {
        "network": attachment.network,
        "interface": attachment.ifname,
        "attached": result is not None,
    }
    if result is None:
        return told
    inside = {i: each for i, each in enumerate(result.interfaces) if each.sandbox}
    interfaces = [
        {
            "name": interface.name,
            "mac": interface.mac or "",
            "ips": [_address(ip) for ip in result.ips if ip.interface == index],
        }
        for index, interface in inside.items()
    ]
    # Results of early CNI versions name no interfaces. Their addresses belong to the requested interface.
    if nowhere := [_address(ip) for ip in result.ips if ip.interface is None]:
        asked = next((each for each in interfaces if each["name"] == attachment.ifname), None)
        if asked is None:
            interfaces.append({"name": attachment.ifname, "mac": "", "ips": nowhere})
        else:
            asked["ips"] = [*asked["ips"], *nowhere]
    return {
        **told,
        "interfaces": interfaces,
        "routes": [{"dst": route.dst, "gw": route.gw or ""} for route in result.routes],
        "dns": {k: v for k, v in msgspec.structs.asdict(result.dns).items() if v},
    }


def _address(ip: Address) -> dict[str, str]:
    return {"address": str(ip.address), "gateway": ip.gateway}
