"""What the rest of the daemon sees of images: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from cri_shim.errors import BadImageReferenceError
from cri_shim.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cri_shim.image.manifest import ImageConfig


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here, whole."""

    id: str
    """Digest of its configuration."""
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    """Bytes that its layers take unpacked, shared ones included, and its documents; so never 0."""
    config: ImageConfig
    pinned: bool
    """Whether kubelet's garbage collection must leave it alone."""
    chain: tuple[str, ...]
    """Chain ids of its layers, lowest first."""
    manifest_digests: tuple[str, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those of its manifest: its maker's words."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return next(iter((*self.repo_tags, *self.repo_digests)), self.id)

    def name_for(self, wanted: str) -> str:
        """What to show to who asked for `wanted`: that very name, normalised, where it is one of this image's tags."""
        try:
            tagged = parse_reference(wanted).tagged
        except BadImageReferenceError:  # an ID
            tagged = None
        return tagged if tagged in self.repo_tags else self.name


EMPTY_DIR = ".empty"
"""Below the layers' directory: has empty directories, for mounts that need more layers than there are."""
EMPTY_LAYER = f"{EMPTY_DIR}/0"
"""The only one of an image that has no layer."""


@dataclass(frozen=True, slots=True)
class LayerStack:
    """What an overlay mount needs."""

    layers_dir: Path
    lowers: tuple[str, ...]
    """Names below `layers_dir`, topmost first; of an image without layers that of the empty one."""


@dataclass(frozen=True, slots=True)
class FsUsage:
    """What images take on disk."""

    mountpoint: Path
    used_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """A step of an import: `done` of `total` layers of `image` are there."""

    step: str
    """`received` (the whole archive is here), `layer` (one more is unpacked) or `committed`."""
    image: str
    """Its name, or its ID if it has none."""
    done: int
    total: int


class PullStep(StrEnum):
    """What is happening to one layer of an image that is being pulled."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    """It came whole; what was unpacked while it came is not unpacked again."""
    HERE = "here"
    """It was here already."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far one layer of a pull is."""

    step: PullStep
    blob: str
    """Digest of the layer as the registry keeps it."""
    done_bytes: int
    total_bytes: int
