"""Parse and normalise image references, by the distribution project's grammar and Docker's defaults.

    reference := [ domain "/" ] path [ ":" tag ] [ "@" digest ]

Rules: pure. Accepted references are normalised: `busybox` becomes `docker.io/library/busybox:latest`. An error names
the part that is wrong and what is allowed there. An IPv6 address as the domain stands in brackets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import NoReturn

from cri_shim.errors import BadImageReferenceError
from cri_shim.quoting import quoted

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
RESERVED_DOMAIN = "cri-shim.local"
"""The built-in images' domain: no archive and no registry can bring an image with such a name."""
MAX_NAME_LENGTH = 255
MAX_REFERENCE_LENGTH = 1024

_DOMAIN_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*|\[([A-Fa-f0-9:]+)\])(?::([0-9]+))?"
)
_PATH_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference, with a tag, a digest, or both."""

    domain: str
    """Registry host, with its port if the reference has one."""
    path: str
    """The repository's path below the domain."""
    tag: str | None = None
    digest: str | None = None

    @property
    def repository(self) -> str:
        """Domain and path: the first part of RepoTags and RepoDigests."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str | None:
        """`repository:tag`, the form of RepoTags."""
        return None if self.tag is None else f"{self.repository}:{self.tag}"

    @property
    def digested(self) -> str | None:
        """`repository@digest`, the form of RepoDigests."""
        return None if self.digest is None else f"{self.repository}@{self.digest}"

    def with_digest(self, digest: str) -> Reference:
        """The same repository with this digest and no tag."""
        return Reference(self.domain, self.path, None, digest)

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.repository}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a complete `sha256:` digest, the only algorithm that images use in practice."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Parse and normalise `text`. No look-up takes place.

    Raises BadImageReferenceError, which names the part that is wrong.
    """
    if not text:
        raise BadImageReferenceError("image reference: empty")
    if len(text) > MAX_REFERENCE_LENGTH:
        raise BadImageReferenceError(
            f"image reference {quoted(text)}: longer than {MAX_REFERENCE_LENGTH} characters"
        )
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        _refuse(
            text, f"digest {quoted(digest)} is not sha256: and 64 lower-case hexadecimal digits"
        )
    # A colon after the last slash begins a tag; an earlier one belongs to the domain's port.
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    name, tag = (rest, None) if colon < 0 else (rest[:colon], rest[colon + 1 :])
    if tag is not None and _TAG.fullmatch(tag) is None:
        _refuse(text, f"tag {quoted(tag)} is not 1 to 128 of letters, digits, '_', '.', '-'")
    domain, path = _split_domain(name)
    _check_domain(text, domain)
    _check_path(text, path)
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if len(domain) + 1 + len(path) > MAX_NAME_LENGTH:
        _refuse(text, f"the name without tag and digest exceeds {MAX_NAME_LENGTH} characters")
    if tag is None and not at:
        if _BARE_ID.fullmatch(text):
            _refuse(text, "64 hexadecimal digits are an image ID, not a name")
        tag = DEFAULT_TAG
    return Reference(domain, path, tag, digest if at else None)


def _split_domain(name: str) -> tuple[str, str]:
    """Split off the domain: the first component, if no repository component could look like it (as Docker decides)."""
    first, slash, rest = name.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, name
    if "." in first or ":" in first or first == "localhost" or first != first.lower():
        # index.docker.io is Docker Hub's old name, which still stands in configurations.
        return (DEFAULT_DOMAIN if first == "index.docker.io" else first), rest
    return DEFAULT_DOMAIN, name


def _check_domain(text: str, domain: str) -> None:
    match = _DOMAIN.fullmatch(domain)
    if match is None:
        _refuse(
            text, f"{quoted(domain)} is not a registry host (an IPv6 address stands in brackets)"
        )
    address, port = match.groups()
    if address is not None:
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            _refuse(text, f"{quoted(address)} is not an IPv6 address")
    if port is not None and not 0 < int(port[:6]) <= 65535:
        _refuse(text, f"port {port[:20]} is not between 1 and 65535")


def _check_path(text: str, path: str) -> None:
    for component in path.split("/"):
        if _PATH_COMPONENT.fullmatch(component) is not None:
            continue
        if not component:
            _refuse(text, "the repository name is missing, or empty between two slashes")
        if component != component.lower():
            _refuse(text, f"repository part {quoted(component)} must be lower case")
        _refuse(
            text,
            f"repository part {quoted(component)} is not lower-case letters and digits with single "
            "'.', '_', '__' or '-' between them",
        )


def _refuse(text: str, reason: str) -> NoReturn:
    raise BadImageReferenceError(f"image reference {quoted(text)}: {reason}")
