"""The report of a check, a repair or a collection: damage that `check` found, what `repair` could do about it, what
`collect` took away."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Damage(StrEnum):
    """What is wrong with one object."""

    MANIFEST = "manifest"
    """An image's manifest is missing, or not what its digest says."""
    CONFIG = "config"
    """The same of its configuration."""
    BLOB = "blob"
    """A packed layer has other bytes than its digest says. Containers don't need it, so a missing one is no damage."""
    LAYER_MISSING = "layer missing"
    """An unpacked layer has no directory, or no record."""
    LAYER_ALTERED = "layer altered"
    """An unpacked layer is not what was unpacked, or can't be read."""
    UNVERIFIED = "unverified"
    """Nothing is known to be wrong, but there is nothing to compare an unpacked layer with."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that is not as it should be."""

    damage: Damage
    object: str
    """Its digest; of an unpacked layer the chain id."""
    images: tuple[str, ...]
    """Names, or else IDs, of the images that need it."""
    detail: str
    """What was seen, for a person."""


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """How far the check of one object is."""

    what: str
    """`layer DIGEST` or `blob DIGEST`."""
    done_bytes: int
    total_bytes: int
    """0 where it isn't known beforehand."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and what is wrong."""

    images: int
    layers: int
    blobs: int
    checked_bytes: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged; what could not be verified is no damage."""
        return all(finding.damage is Damage.UNVERIFIED for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Unrepaired:
    """Damage that is left."""

    finding: Finding
    reason: str
    """Why, and what to do."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found and did."""

    checked: CheckReport
    repaired: tuple[Finding, ...]
    left: tuple[Unrepaired, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection took away, or would take."""

    images: tuple[str, ...]
    """Names, or else IDs."""
    layers: int
    blobs: int
    leftovers: int
    """Directories that work which was cut short, or a replaced layer, left behind."""
    freed_bytes: int
    freed_inodes: int
