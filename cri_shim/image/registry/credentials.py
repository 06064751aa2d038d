"""Registry credentials, and the registry that they are for.

Rules: pure, except for `load_auth_file`. No secret appears in a `repr`, in an error, or in the key that distinguishes
pulls.

Forms: CRI's AuthConfig, and Docker's `config.json` (`auths` only; credential helpers are programs and not run).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT, ConfigError, InvalidArgumentError
from cri_shim.host.files import read_bounded
from cri_shim.image.reference import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.image.reference import Reference

_MAX_AUTH_FILE_BYTES = 1 << 20
_DOCKER_HUB = frozenset({DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io"})
_PROCESS_KEY = secrets.token_bytes(32)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Credentials for one registry. The first that is set is used: registry token, identity token, user."""

    registry: str = ""
    """Host, with its port if there is one; empty for the registry of whatever is pulled."""
    username: str = ""
    password: str = field(default="")
    identity_token: str = ""
    """An OAuth2 refresh token, exchanged at the registry's token server."""
    registry_token: str = ""
    """A bearer token, sent to the registry as it is."""

    def __repr__(self) -> str:
        return f"Credentials(for {self.registry or 'the image'!s})"

    @property
    def usable(self) -> bool:
        """Whether any credential is set."""
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    def fit(self, domain: str) -> bool:
        """Whether they are for images of the registry `domain`."""
        return not self.registry or same_registry(self.registry, domain)

    def key(self) -> str:
        """Equal for equal credentials, and useless outside this process (keyed hash)."""
        digest = hashlib.blake2b(key=_PROCESS_KEY, digest_size=12)
        for part in (
            self.registry,
            self.username,
            self.password,
            self.identity_token,
            self.registry_token,
        ):
            digest.update(len(part).to_bytes(4) + part.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def credentials_of(
    *,
    username: str = "",
    password: str = "",
    auth: str = "",
    server_address: str = "",
    identity_token: str = "",
    registry_token: str = "",
) -> Credentials | None:
    """Credentials from the fields of CRI's AuthConfig; None if all are empty.

    `auth` is base64 of `user:password`, and is used only without `username`. `server_address` may be a URL.
    Raises InvalidArgumentError for a malformed `auth`, without quoting it.
    """
    if auth and not username:
        username, password = _decode_auth(auth)
    found = Credentials(
        registry=registry_host(server_address),
        username=username,
        password=password,
        identity_token=identity_token,
        registry_token=registry_token,
    )
    return found if found.usable else None


def _decode_auth(auth: str) -> tuple[str, str]:
    """Tolerates hand-made values: `base64` wraps lines, and padding gets lost."""
    packed = "".join(auth.split()).rstrip("=")
    packed += "=" * (-len(packed) % 4)
    try:
        text = base64.b64decode(packed, validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgumentError("auth.auth: not base64") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise InvalidArgumentError("auth.auth: not base64 of user:password")
    return username, password.strip("\0")


def registry_host(address: str) -> str:
    """A registry's host as in references, from a host or a URL such as `https://index.docker.io/v1/`."""
    host = address.partition("://")[2] or address
    host = host.partition("/")[0].rpartition("@")[2].lower()
    return DEFAULT_DOMAIN if host in _DOCKER_HUB else host


def same_registry(one: str, other: str) -> bool:
    """Whether two addresses name one registry; Docker Hub has three names."""
    return registry_host(one) == registry_host(other)


class _Entry(msgspec.Struct, frozen=True):
    """Members may be null: Go programs write unset ones so."""

    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _AuthFile(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry | None] | None = None


def load_auth_file(
    path: Path, reference: Reference, *, named_by: str = "images.auth_file"
) -> Credentials | None:
    """The credentials for `reference` in Docker's `config.json` at `path`, if any.

    Raises ConfigError, whose text begins with `named_by`, the setting that names the file.
    """
    try:
        data = read_bounded(path, _MAX_AUTH_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{named_by}: {path}: {error}") from error
    return parse_auth_file(data, path, reference, named_by=named_by)


def parse_auth_file(
    data: bytes, path: Path, reference: Reference, *, named_by: str = "images.auth_file"
) -> Credentials | None:
    """The credentials for `reference` in a `config.json`, read from `path`. The entry with the longest match counts.

    Raises ConfigError for a malformed file. Credential helpers are not run.
    """
    try:
        document = msgspec.json.decode(data, type=_AuthFile)
    except UNREADABLE_DOCUMENT as error:
        # msgspec's text has the position and the type of the error, never a value.
        raise ConfigError(f"{named_by}: {path}: {error}") from None
    best: tuple[int, str] | None = None
    auths = {address: entry for address, entry in (document.auths or {}).items() if entry}
    for address in auths:
        rank = _fits(address, reference)
        if rank and (best is None or rank > best[0]):
            best = rank, address
    if best is None:
        return None
    entry = auths[best[1]]
    try:
        return credentials_of(
            username=entry.username or "",
            password=entry.password or "",
            auth=entry.auth or "",
            server_address=reference.domain,
            identity_token=entry.identitytoken or "",
            registry_token=entry.registrytoken or "",
        )
    except InvalidArgumentError:
        address = "".join(c if c.isprintable() else "?" for c in best[1][:200])
        raise ConfigError(
            f"{named_by}: {path}: auths.{address}.auth is not base64 of user:password"
        ) from None


def _fits(address: str, reference: Reference) -> int:
    """How well an entry matches: 0 for another registry or repository, more for a longer path."""
    if not same_registry(address, reference.domain):
        return 0
    path = (address.partition("://")[2] or address).partition("/")[2].strip("/")
    if not path or path in ("v1", "v2"):
        return 1
    return 1 + len(path) if f"{reference.path}/".startswith(f"{path}/") else 0
