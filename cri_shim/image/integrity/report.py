"""The results of a check, a repair and a collection, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Damage(StrEnum):
    """The kind of damage of one object."""

    MANIFEST = "manifest"
    """An image's manifest is missing, or its bytes don't have its digest."""
    CONFIG = "config"
    """An image's configuration is missing, or its bytes don't have its digest."""
    BLOB = "blob"
    """A packed layer's bytes don't have its digest. A missing one is no damage, since containers don't need it."""
    LAYER_MISSING = "layer missing"
    """An unpacked layer has no directory or no record."""
    LAYER_ALTERED = "layer altered"
    """An unpacked layer differs from what was unpacked, or can't be read."""
    UNVERIFIED = "unverified"
    """There is nothing to compare an unpacked layer with. It may be sound."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One object with damage, or unverified."""

    damage: Damage
    object: str
    """Its digest, or the chain ID of an unpacked layer."""
    images: tuple[str, ...]
    """The images that need it, by a name or else by ID."""
    detail: str
    """The check's observation, for operators."""


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """The progress of one object's check."""

    what: str
    """`layer DIGEST` or `blob DIGEST`."""
    done_bytes: int
    total_bytes: int
    """0 if it is not known in advance."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The extent of a check, and its findings."""

    images: int
    layers: int
    blobs: int
    checked_bytes: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged. Unverified layers don't count as damaged."""
        return all(finding.damage is Damage.UNVERIFIED for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """Damage that a repair could not mend."""

    finding: Finding
    reason: str
    """Why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of a repair."""

    checked: CheckReport
    repaired: tuple[Finding, ...]
    left: tuple[Unrepaired, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """The images, layers and blobs that a collection removed, or would remove."""

    images: tuple[str, ...]
    """By a name, or else by ID."""
    layers: int
    blobs: int
    leftovers: int
    """Directories that interrupted work, or a replaced layer, left behind."""
    freed_bytes: int
    freed_inodes: int
