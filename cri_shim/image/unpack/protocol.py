"""The protocol between the daemon and the unpacker's template process.

Rules: both sides import this, so nothing but structs and constants stands here. A job is one SEQPACKET packet with
three descriptors: input, directory, result. With a fourth, that is a file that still grows, and the input is a socket
that tells its size (`growing_file`). The result is one msgpack document written to the result descriptor,
which is then closed. It comes from a process that has read hostile bytes: the daemon bounds and checks it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from cri_shim.image.manifest import (
    MAX_LAYER_BYTES,
    Descriptor,
    ImageConfig,
    Manifest,
    Platform,
)
from cri_shim.image.planned import PlannedImage  # noqa: TC001 - msgspec reads the annotation

MAX_PACKET_BYTES = 4096
MAX_REPORTED_BYTES = 4 << 20
"""Of paths in one report, each with `PATH_BYTES`: more is refused, since the daemon holds it in memory."""
PATH_BYTES = 48
"""Of a path's object, beside its characters."""
MAX_RESULT_BYTES = 6 << 20
"""Of a whole result: reading one takes the daemon's loop some ten milliseconds at most."""
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255


class JobKind(StrEnum):
    """What the child does with its input."""

    LAYER = "layer"
    """Inflate it, hash the diff id, unpack the tar into the directory."""
    MEMBERS = "members"
    """Inflate it, put each regular file of the tar into the directory under a number of ours, read the documents."""
    MANIFEST = "manifest"
    """Read a manifest, or an index and choose from it."""
    CONFIG = "config"
    """Read an image configuration."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one job: past any of them the input is refused."""

    max_bytes: int = MAX_LAYER_BYTES
    """Inflated bytes; also the size of one file."""
    max_inodes: int = 4_000_000
    """Tar entries, and inodes made, also the directories that no entry names."""
    memory_bytes: int = 512 << 20
    """Address space of the child, shared libraries and thread stacks included."""
    cpu_s: int = 1800


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """Please do this; `number` comes back in `Ended`."""

    number: int
    kind: JobKind
    limits: Limits
    what: str = ""
    """What the input is called in errors."""
    platform: Platform = Platform()
    """The machine that images are to run on."""
    content_type: str = ""
    """What a registry called a manifest."""


class Kill(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """Please kill that job's child, if it still runs."""

    number: int


class StepAside(msgspec.Struct, frozen=True, kw_only=True, tag="step_aside"):
    """Please have that job's child take the processors only as far as others leave them."""

    number: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The template process can take jobs."""

    libarchive: int
    """Version as libarchive counts it: 3006002."""


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """The template process can't work on this machine; it ends."""

    reason: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """A job's child has ended and was reaped."""

    number: int
    wait_status: int


Request = Job | Kill | StepAside
Notice = Ready | Broken | Ended


class Fault(StrEnum):
    """Whose fault a failure is."""

    INPUT = "input"
    """Damaged, hostile or unsupported bytes."""
    SPACE = "space"
    """The disk, or a quota, is full."""
    HOST = "host"
    """Anything else: a bug, or the host refused."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """The job failed; what it left in the directory is to be removed."""

    fault: Fault
    reason: str


class LayerReport(msgspec.Struct, frozen=True, kw_only=True, tag="layer"):
    """A layer is unpacked, except for what needs more rights than the child has."""

    diff_id: str
    inflated_bytes: int
    disk_bytes: int
    inodes: int
    opaque_dirs: list[bytes]
    """Directories that hide what lower layers have in them; relative, real (no link on the way)."""
    implied_dirs: list[bytes]
    """Directories that no entry described, parents first; they may take after a lower layer's."""
    whiteout_dirs: list[bytes]
    """Directories in which there are whiteouts."""
    dropped_xattrs: int


class ArchiveReport(msgspec.Struct, frozen=True, kw_only=True, tag="archive"):
    """Every regular file of an archive lies in the directory, and these are the images in it."""

    images: list[PlannedImage]
    inflated_bytes: int


class ManifestReport(msgspec.Struct, frozen=True, kw_only=True, tag="manifest"):
    """What a document is: a manifest, or an index that leads to `entry`."""

    manifest: Manifest | None = None
    entry: Descriptor | None = None
    chosen: bool = False
    """Whether the index says that `entry` is for this machine, not only leaves it open."""


class ConfigReport(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """An image configuration, as far as it is kept."""

    config: ImageConfig


Result = Failure | LayerReport | ArchiveReport | ManifestReport | ConfigReport


class InputError(Exception):
    """In the child: the input is damaged, hostile or unsupported. The text names the entry."""
