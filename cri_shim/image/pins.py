"""Pinned images: neither the kubelet's garbage collection nor `image gc` removes them, only a removal by name.

Rules: an entry without `*` is a reference and is normalised: `busybox` is `docker.io/library/busybox:latest`. If it has
a tag and a digest, the digest counts. An entry with `*` is a pattern for the whole name, either normalised or in
Docker's short form; `*` matches any characters, `/` included. The built-in images are always pinned.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cri_shim.errors import BadImageReferenceError, ConfigError
from cri_shim.image.reference import DEFAULT_DOMAIN, RESERVED_DOMAIN, parse_reference
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATTERN = re.compile(r"[A-Za-z0-9\[\]_.:/@*-]+")


class Pins:
    """The configured references and patterns."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        """Raises ConfigError for an entry that can name no image."""
        self._names: set[str] = set()
        self._patterns: list[tuple[str, ...]] = []
        for entry in entries:
            if "*" in entry:
                self._patterns.append(_pattern(entry))
                continue
            try:
                reference = parse_reference(entry)
            except BadImageReferenceError as error:
                raise ConfigError(f"images.pinned: {error}") from None
            self._names.add(reference.digested or str(reference))

    def match(self, names: Iterable[str]) -> bool:
        """Whether an image with these names is pinned."""
        return any(self._has(name) for name in names)

    def _has(self, name: str) -> bool:
        if name in self._names or name.startswith(f"{RESERVED_DOMAIN}/"):
            return True
        short = name.removeprefix(f"{DEFAULT_DOMAIN}/").removeprefix("library/")
        return any(_fits(pattern, each) for pattern in self._patterns for each in (name, short))


def _pattern(entry: str) -> tuple[str, ...]:
    if _PATTERN.fullmatch(entry) is None:
        raise ConfigError(
            f"images.pinned: {quoted(entry)} has characters that no image name has; only '*' stands for others"
        )
    return tuple(entry.split("*"))


def _fits(pattern: tuple[str, ...], name: str) -> bool:
    """Match each part at the first place where it occurs: linear, and no later place could succeed where it fails."""
    first, *middle, last = pattern
    position, end = len(first), len(name) - len(last)
    if not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        position = name.find(part, position, end) + len(part)
        if position < len(part):
            return False
    return position <= end
