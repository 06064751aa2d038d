"""Which images are pinned: the kubelet, `image gc` and nobody but a person who names one removes them.

Rules: an entry without `*` is a reference, completed as everywhere (`busybox` is `docker.io/library/busybox:latest`);
beside a tag a digest decides. An entry with `*` is a pattern for the whole name, completed or as Docker shortens it;
`*` stands for any characters, `/` included. The built-in images are always pinned.
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
    """The configured names and patterns."""

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
        """Whether an image that is called so is pinned."""
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
    """Each part at the first place where it can be: no pattern takes longer than the name is long."""
    first, *middle, last = pattern
    position, end = len(first), len(name) - len(last)
    if not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        position = name.find(part, position, end) + len(part)
        if position < len(part):
            return False
    return position <= end
