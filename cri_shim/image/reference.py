"""Image references: parsing and normalising them, as the distribution project's grammar and Docker's habits have it.

    reference := [ domain "/" ] path [ ":" tag ] [ "@" digest ]

Rules: pure; what is accepted is normalised (`busybox` is `docker.io/library/busybox:latest`), what is refused says
which part is wrong and what is allowed there. A reference whose domain is an IPv6 address has it in brackets.
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
"""The built-in images' own: no archive and no registry can bring an image of such a name."""
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
    """A normalised reference: at least one of `tag` and `digest` is there."""

    domain: str
    """Registry host, with its port if one was written."""
    path: str
    """Repository below the domain."""
    tag: str | None = None
    digest: str | None = None

    @property
    def repository(self) -> str:
        """Domain and path: what RepoTags and RepoDigests begin with."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str | None:
        """`repository:tag`, as RepoTags has it."""
        return None if self.tag is None else f"{self.repository}:{self.tag}"

    @property
    def digested(self) -> str | None:
        """`repository@digest`, as RepoDigests has it."""
        return None if self.digest is None else f"{self.repository}@{self.digest}"

    def with_digest(self, digest: str) -> Reference:
        """The same repository by content: no tag, this digest."""
        return Reference(self.domain, self.path, None, digest)

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.repository}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a whole `sha256:` digest, the one algorithm that images use in practice."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """`text` normalised.

    Raises BadImageReferenceError with the part that is wrong. It does not look anything up.
    """
    if not text:
        raise BadImageReferenceError("image reference: it is empty")
    if len(text) > MAX_REFERENCE_LENGTH:
        raise BadImageReferenceError(
            f"image reference {quoted(text)}: longer than {MAX_REFERENCE_LENGTH} characters"
        )
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        _refuse(
            text, f"digest {quoted(digest)} is not sha256: and 64 lower-case hexadecimal digits"
        )
    # A colon after the last slash begins a tag; one before it belongs to the domain's port.
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
    """The first component is a domain if no repository component could look like it."""
    first, slash, rest = name.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, name
    if "." in first or ":" in first or first == "localhost" or first != first.lower():
        # Docker's own registry has a second name, kept from its first years.
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
            _refuse(text, "an empty part between slashes, or no repository name at all")
        if component != component.lower():
            _refuse(text, f"repository part {quoted(component)} must be lower case")
        _refuse(
            text,
            f"repository part {quoted(component)} is not lower-case letters and digits with single "
            "'.', '_', '__' or '-' between them",
        )


def _refuse(text: str, reason: str) -> NoReturn:
    raise BadImageReferenceError(f"image reference {quoted(text)}: {reason}")
