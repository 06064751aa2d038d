"""The servers of a registry, from `hosts.toml` in containerd's layout and meaning.

    DIR/<host>/hosts.toml      also DIR/<host>_<port>_/hosts.toml; DIR/_default/hosts.toml for every host without one

    server = "https://registry.example"       the registry itself, asked last
    [host."https://mirror.example"]           mirrors, asked in the order of the file
      capabilities = ["pull", "resolve"]      resolve: may be asked what a tag means
      ca = "ca.pem"                           or a list; relative to the file
      client = [["client.pem", "client.key"]] or "both-in-one.pem", or a list of such
      skip_verify = true
      override_path = true                    the URL's path is the root of the API: /v2 is not appended
      [host."https://mirror.example".header]
        X-Name = "value"                      or a list

At the top level, the keys of a host apply to `server`.

Rules: parsing is pure. Files are read again for each pull, so a change applies at once. Without a file, the registry is
reached by https, one on the loopback by plain http.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec

from cri_shim.errors import ConfigError
from cri_shim.host.files import read_bounded
from cri_shim.image.reference import DEFAULT_DOMAIN
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
_HOSTS_FILE = "hosts.toml"
_DEFAULT_DIR = "_default"
_MAX_HOSTS_BYTES = 1 << 20
_DOCKER_HUB_SERVER = "registry-1.docker.io"
_HOST_AND_PORT = re.compile(
    r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\])(?::([0-9]{1,5}))?"
)
_MAX_PORT = 65535
_NOT_IN_URL = re.compile(r"[?#\\\s]")
_SHOWN_CHARS = 200
_MAX_REASON_CHARS = 1000
_FORBIDDEN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "range", "connection"}
)


class Capability(StrEnum):
    """A permitted use of a host."""

    PULL = "pull"
    """Fetching content by digest."""
    RESOLVE = "resolve"
    """Resolving tags."""
    PUSH = "push"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry's server or a mirror of it."""

    url: str
    """Root of the API, `/v2` included, without a trailing slash."""
    is_registry: bool = False
    """The registry itself, which gets the registry's credentials, and not a mirror."""
    capabilities: frozenset[Capability] = frozenset(Capability)
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    """Certificates with their keys; None if the key is in the same file."""
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Left out of `repr`: they may be secret."""

    @property
    def host(self) -> str:
        """Host, with its port if the URL has one."""
        return urlsplit(self.url).netloc

    @property
    def origin(self) -> str:
        """The server's name in messages."""
        parts = urlsplit(self.url)
        return parts.netloc if parts.scheme == "https" else f"{parts.scheme}://{parts.netloc}"


class _Host(msgspec.Struct, frozen=True, kw_only=True):
    capabilities: list[str] | None = None
    ca: str | list[str] | None = None
    client: str | list[str | list[str]] | None = None
    skip_verify: bool = False
    header: dict[str, str | list[str]] = {}
    override_path: bool = False


class _Document(_Host, frozen=True, kw_only=True):
    server: str = ""
    host: dict[str, _Host] = {}


def load_endpoints(registry_config: Path | None, domain: str) -> list[Endpoint]:
    """The servers for images of `domain`, in order. Raises ConfigError with the file and the key."""
    if registry_config is not None:
        for directory in _directories(registry_config, domain):
            path = directory / _HOSTS_FILE
            try:
                data = read_bounded(path, _MAX_HOSTS_BYTES)
            except (FileNotFoundError, NotADirectoryError):
                if directory.is_dir():
                    break  # a directory without a file overrides _default: the built-in rule applies
                continue
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from error
            return parse_hosts(data, path, domain)
    return [Endpoint(_api_url(default_server(domain)), is_registry=True)]


def _directories(registry_config: Path, domain: str) -> list[Path]:
    names = [domain, _DEFAULT_DIR]
    host, colon, port = domain.rpartition(":")
    if colon and port.isdigit():
        names.insert(0, f"{host}_{port}_")
    return [registry_config / name for name in names]


def parse_hosts(data: bytes, path: Path, domain: str) -> list[Endpoint]:
    """The servers for `domain` that a `hosts.toml` names, in order. `data` was read from `path`.

    Raises ConfigError with the file and the key.
    """
    try:
        document = msgspec.toml.decode(data, type=_Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    server_url = _checked(document.server or default_server(domain), path, "server")
    # `server` in _default applies to every registry: it must not get the credentials of all of them.
    own = {urlsplit(f"//{domain}").netloc, urlsplit(default_server(domain)).netloc}
    if path.parent.name != _DEFAULT_DIR:
        own.add(urlsplit(server_url).netloc)
    found: dict[str, Endpoint] = {}
    for url, host in [*document.host.items(), (server_url, document)]:
        key = "server" if host is document else f'host."{_shown(url)}"'
        endpoint = _endpoint(_checked(url, path, key), host, path, key)
        if endpoint.host in own:
            endpoint = replace(endpoint, is_registry=True)
        known = found.setdefault(endpoint.url, endpoint)
        if known is not endpoint:
            # `server` also has a table among the hosts, perhaps for its certificates. Ask it once.
            both = known.capabilities | endpoint.capabilities
            found[endpoint.url] = replace(known, capabilities=both)
    return list(found.values())


def default_server(domain: str) -> str:
    """The URL of the registry `domain` when no file names one."""
    if domain == DEFAULT_DOMAIN:
        return f"https://{_DOCKER_HUB_SERVER}"
    return f"{'http' if is_loopback(domain) else 'https'}://{domain}"


def is_host(text: str) -> bool:
    """Whether `text` is a host with an optional port, unambiguous to every URL parser."""
    match = _HOST_AND_PORT.fullmatch(text)
    return match is not None and 0 < int(match.group(1) or 1) <= _MAX_PORT


def is_loopback(host: str) -> bool:
    """Whether `host`, with or without a port, is the loopback. Raises ValueError if it is no host."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _endpoint(url: str, host: _Host, path: Path, key: str) -> Endpoint:
    capabilities = frozenset(Capability)
    if host.capabilities is not None:
        try:
            capabilities = frozenset(map(Capability, host.capabilities))
        except ValueError as error:
            allowed = ", ".join(Capability)
            _refuse(path, f"{key}: capabilities: {error}; allowed are {allowed}")
    return Endpoint(
        url=_api_url(url, override_path=host.override_path),
        capabilities=capabilities,
        ca=tuple(path.parent / name for name in _listed(host.ca)),
        client=tuple(_pair(item, path, key) for item in _listed(host.client)),
        skip_verify=host.skip_verify,
        headers=tuple(_headers(host.header, path, key)),
    )


def _checked(url: str, path: Path, key: str) -> str:
    try:
        if "://" not in url:
            url = f"{'http' if is_loopback(url.partition('/')[0]) else 'https'}://{url}"
        parts = urlsplit(url)
        # Without a user part, which is refused below with its own message.
        sound = parts.scheme in ("http", "https") and is_host(parts.netloc.rpartition("@")[2])
    except ValueError:
        sound = False
    if not sound or _NOT_IN_URL.search(url) or not url.isprintable():
        _refuse(
            path,
            f"{key}: {quoted(_shown(url))}: expected http:// or https://, a host and an optional path",
        )
    if parts.username is not None:
        # The URL appears in messages.
        _refuse(path, f"{key}: credentials in the URL are not allowed; use images.auth_file")
    if parts.netloc == DEFAULT_DOMAIN:
        # Common in existing files, although docker.io is a web site: the registry has another host name.
        return url.replace(DEFAULT_DOMAIN, _DOCKER_HUB_SERVER, 1)
    return url


def _shown(url: str) -> str:
    """The URL for a message: bounded, without a user part."""
    return url.rpartition("@")[2][:_SHOWN_CHARS]


def _api_url(url: str, *, override_path: bool = False) -> str:
    url = url.rstrip("/")
    if override_path or urlsplit(url).path.endswith("/v2"):
        return url
    return f"{url}/v2"


def _pair(item: str | list[str], path: Path, key: str) -> tuple[Path, Path | None]:
    names = [item] if isinstance(item, str) else item
    match names:
        case [certificate] | [certificate, ""]:
            return path.parent / certificate, None
        case [certificate, private]:
            return path.parent / certificate, path.parent / private
        case _:
            _refuse(
                path, f"{key}: client: {len(names)} file names; expected a certificate and a key"
            )


def _headers(found: dict[str, str | list[str]], path: Path, key: str) -> list[tuple[str, str]]:
    headers = []
    for name, values in found.items():
        sound = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not sound or name.lower() in _FORBIDDEN_HEADERS:
            _refuse(path, f"{key}: header: {quoted(name)} is invalid or reserved")
        for value in _listed(values):
            if not value.isprintable():
                _refuse(path, f"{key}: header: the value of {name} has control characters")
            headers.append((name, value))
    return headers


def _listed(value: str | list[T] | None) -> list[T | str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [*value]


def _refuse(path: Path, reason: str) -> NoReturn:
    # `reason` quotes the file.
    text = "".join(c if c.isprintable() else "?" for c in reason[:_MAX_REASON_CHARS])
    raise ConfigError(f"{path}: {text}")
