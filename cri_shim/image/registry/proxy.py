"""Choose the HTTP proxy for a registry by the environment variables that Go programs use.

HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in upper or lower case. NO_PROXY lists hosts and domains (`example.org` includes
its subdomains, `.example.org` means only those), addresses and networks (`10.0.0.0/8`), each with an optional port, or
`*`. The loopback is always reached directly.

Rules: pure.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cri_shim.image.registry.hosts import is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The URL of the proxy for `url`, if there is one. It may contain credentials: never log it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = _setting(environment, f"{parts.scheme}_proxy")
    if not proxy or is_loopback(parts.netloc.rpartition("@")[2]):
        return None
    excepted = _setting(environment, "no_proxy").lower().replace(",", " ").split()
    if any(_matches(entry, host, port) for entry in excepted):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _setting(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            pass  # not a network; perhaps an address with a port
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit():
        if int(number) != port:
            return False
        entry = name.strip("[]")
    if address is not None:
        return entry == str(address)
    domain = entry.removeprefix("*").lstrip(".")
    return host.endswith(f".{domain}") or (host == domain and not entry.startswith((".", "*")))
