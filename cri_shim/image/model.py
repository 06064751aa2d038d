"""Images as the rest of the daemon sees them: plain values."""

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
    """A complete image on this node."""

    id: str
    """Digest of the image's configuration."""
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    """Bytes of its unpacked layers, shared ones included, and of its documents; never 0, as CRI wants it."""
    config: ImageConfig
    pinned: bool
    """Whether kubelet's garbage collection must leave it alone."""
    chain: tuple[str, ...]
    """Chain IDs of its layers, lowest first."""
    manifest_digests: tuple[str, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The manifest's annotations. They are the image maker's text."""

    @property
    def name(self) -> str:
        """The image's name for messages: its first tag or digest name, else its ID."""
        return next(iter((*self.repo_tags, *self.repo_digests)), self.id)

    def name_for(self, wanted: str) -> str:
        """The name to show for a request of `wanted`: that name, normalised, if it is one of the image's tags."""
        try:
            tagged = parse_reference(wanted).tagged
        except BadImageReferenceError:  # `wanted` is an ID
            tagged = None
        return tagged if tagged in self.repo_tags else self.name


EMPTY_DIR = ".empty"
"""Below the layers' directory: holds empty directories, for mounts that need more lower layers than the image has."""
EMPTY_LAYER = f"{EMPTY_DIR}/0"
"""The one lower layer of an image without layers."""


@dataclass(frozen=True, slots=True)
class LayerStack:
    """The directories of an overlay mount."""

    layers_dir: Path
    lowers: tuple[str, ...]
    """Names below `layers_dir`, topmost first. Never empty: an image without layers has `EMPTY_LAYER`."""


@dataclass(frozen=True, slots=True)
class FsUsage:
    """Disk usage of all images."""

    mountpoint: Path
    used_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """A step of an import: `done` of `total` layers of `image` are unpacked."""

    step: str
    """`received` (the whole archive is here), `layer` (another one is unpacked) or `committed`."""
    image: str
    """The image's name, or its ID if it has none."""
    done: int
    total: int


class PullStep(StrEnum):
    """The state of one layer during a pull."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    """The blob is complete. A layer that was unpacked while it arrived is not unpacked again."""
    HERE = "here"
    """The layer was here before the pull."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """The progress of one layer of a pull."""

    step: PullStep
    blob: str
    """Digest of the layer's blob in the registry."""
    done_bytes: int
    total_bytes: int
