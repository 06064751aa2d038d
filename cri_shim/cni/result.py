"""Parse a plugin's answer: the result of ADD, or an error document. Pure.

Rules:
- The four wire formats (0.1/0.2, 0.3, 0.4, 1.x) become one `Result`. What a format lacks is empty.
- The fields that we use are checked (addresses, indexes). Unknown fields stay in `raw`: the next plugin of the chain
  gets what the previous one printed, not what we understood of it.
- Any bytes give a Result or a ResultError, and nothing else.

CNI spec 1.1 §5 "Result Types"; 0.2.0 "Result" for `ip4` and `ip6`; 0.3.0 for the `version` of an address.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import msgspec

from cri_shim.cni.conf import KNOWN_VERSIONS, is_version_at_least
from cri_shim.errors import UNREADABLE_DOCUMENT
from cri_shim.quoting import quoted


class ResultError(ValueError):
    """The bytes are not a valid result. The caller names the plugin."""


class Interface(msgspec.Struct, frozen=True):
    """An interface that a plugin created. `sandbox` is empty for one on the host."""

    name: str
    mac: str | None = None
    sandbox: str | None = None


class Route(msgspec.Struct, frozen=True):
    """A route in the container: `dst` in CIDR form, `gw` the gateway's address, or empty."""

    dst: str
    gw: str | None = None


class Dns(msgspec.Struct, frozen=True):
    """Resolver settings. Pods get the kubelet's, so only the verbose status shows these."""

    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """An address with its prefix length. `interface` is an index into the result's interfaces."""

    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface
    gateway: str
    interface: int | None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an ADD."""

    cni_version: str
    interfaces: tuple[Interface, ...]
    ips: tuple[Address, ...]
    routes: tuple[Route, ...]
    dns: Dns
    raw: dict[str, Any]
    """The document as the plugin wrote it, always with a cniVersion."""


class PluginFailure(msgspec.Struct, frozen=True):
    """A plugin's error document (spec §5 "Error")."""

    code: int
    msg: str = ""
    details: str = ""


class _Ip(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Modern(msgspec.Struct):
    interfaces: list[Interface] | None = None
    ips: list[_Ip] | None = None
    routes: list[Route] | None = None
    dns: Dns | None = None


class _LegacyIp(msgspec.Struct):
    ip: str
    gateway: str | None = None
    routes: list[Route] | None = None


class _Legacy(msgspec.Struct):
    ip4: _LegacyIp | None = None
    ip6: _LegacyIp | None = None
    dns: Dns | None = None


def parse_result(data: bytes, *, cni_version: str) -> Result:
    """Parse what a plugin printed for ADD. `cni_version` applies if the result states none.

    Raises ResultError.
    """
    if not data.strip():
        raise ResultError("it printed no result")
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except UNREADABLE_DOCUMENT as error:
        raise ResultError(f"its result is not a JSON object: {error}") from error
    return parse_result_document(raw, cni_version=cni_version)


def parse_result_document(raw: dict[str, Any], *, cni_version: str) -> Result:
    """Like `parse_result`, for a decoded document, as the result cache holds it.

    Raises ResultError.
    """
    version = raw.get("cniVersion") or cni_version
    if version not in KNOWN_VERSIONS:
        raise ResultError(f"its result has the unknown cniVersion {quoted(version)}")
    try:
        modern = _from_legacy(raw) if _is_legacy(version) else msgspec.convert(raw, _Modern)
    except msgspec.ValidationError as error:
        raise ResultError(f"its result is malformed: {error}") from error
    interfaces = tuple(modern.interfaces or ())
    return Result(
        cni_version=version,
        interfaces=interfaces,
        ips=tuple(
            _address(ip, index, interfaces=len(interfaces))
            for index, ip in enumerate(modern.ips or ())
        ),
        routes=tuple(modern.routes or ()),
        dns=modern.dns or Dns(),
        raw={**raw, "cniVersion": version},
    )


def parse_failure(data: bytes) -> PluginFailure | None:
    """The error document that a failed plugin printed; None if it printed something else."""
    try:
        failure = msgspec.json.decode(data, type=PluginFailure)
    except UNREADABLE_DOCUMENT:
        return None
    return failure if failure.msg or failure.details or failure.code else None


def build_result_document(result: Result, *, cni_version: str) -> dict[str, Any]:
    """The result in the format of another version, for a plugin or a cache entry that needs that one.

    Between versions of one format, it stays as the plugin wrote it, unknown fields included.
    """
    if _form(result.cni_version) == _form(cni_version):
        return {**result.raw, "cniVersion": cni_version}
    dns = {key: value for key, value in msgspec.structs.asdict(result.dns).items() if value}
    if _is_legacy(cni_version):
        return {"cniVersion": cni_version, **_legacy_ips(result), "dns": dns}
    ips: list[dict[str, object]] = []
    for ip in result.ips:
        document: dict[str, object] = {"address": str(ip.address)}
        if not is_version_at_least(cni_version, "1.0.0"):
            document["version"] = str(ip.address.version)
        if ip.gateway:
            document["gateway"] = ip.gateway
        if ip.interface is not None:
            document["interface"] = ip.interface
        ips.append(document)
    return {
        "cniVersion": cni_version,
        "interfaces": [_without_empty(i, "name") for i in result.interfaces],
        "ips": ips,
        "routes": [_without_empty(route, "dst") for route in result.routes],
        "dns": dns,
    }


def pod_ips(result: Result, ifname: str) -> tuple[str, ...]:
    """The addresses of the sandbox's `ifname`, without prefix lengths, in the plugin's order.

    An address without an interface counts: plugins of early versions, and some of today, state none.
    """
    found: dict[str, None] = {}
    for ip in result.ips:
        if ip.interface is not None:
            interface = result.interfaces[ip.interface]
            if not interface.sandbox or interface.name != ifname:
                continue
        found[str(ip.address.ip)] = None
    return tuple(found)


def _form(version: str) -> int:
    return sum(is_version_at_least(version, first) for first in ("0.3.0", "1.0.0"))


def _is_legacy(version: str) -> bool:
    return _form(version) == 0


def _from_legacy(raw: dict[str, Any]) -> _Modern:
    legacy = msgspec.convert(raw, _Legacy)
    families = [family for family in (legacy.ip4, legacy.ip6) if family is not None]
    return _Modern(
        ips=[_Ip(address=family.ip, gateway=family.gateway) for family in families],
        routes=[route for family in families for route in family.routes or ()],
        dns=legacy.dns,
    )


def _legacy_ips(result: Result) -> dict[str, object]:
    """One address per family, since the early format has room for no more, with the routes of that family."""
    families: dict[str, object] = {}
    for ip in result.ips:
        key = f"ip{ip.address.version}"
        if key in families:
            continue
        routes = [
            _without_empty(route, "dst")
            for route in result.routes
            if (":" in route.dst) == (ip.address.version == 6)
        ]
        gateway = {"gateway": ip.gateway} if ip.gateway else {}
        families[key] = {"ip": str(ip.address), **gateway, "routes": routes}
    return families


def _address(ip: _Ip, index: int, *, interfaces: int) -> Address:
    try:
        if "/" not in ip.address:
            raise ValueError(f"{quoted(ip.address)} has no prefix length")
        address = ipaddress.ip_interface(ip.address)
        if ip.gateway:
            ipaddress.ip_address(ip.gateway)
    except ValueError as error:
        raise ResultError(f"its result is malformed: ips[{index}]: {error}") from error
    # Plugins with the first libraries of 0.3 write -1 for "no interface".
    interface = ip.interface if ip.interface is not None and ip.interface >= 0 else None
    if interface is not None and interface >= interfaces:
        raise ResultError(
            f"its result is malformed: ips[{index}]: interface {interface} of {interfaces}"
        )
    return Address(address=address, gateway=ip.gateway or "", interface=interface)


def _without_empty(struct: msgspec.Struct, required: str) -> dict[str, object]:
    fields = msgspec.structs.asdict(struct)
    return {key: value for key, value in fields.items() if value or key == required}
