"""The messages between the daemon and the unpacker's template process.

Rules: both sides import this module, so it has structs and constants only. A job is one SEQPACKET packet with three
descriptors: input, directory, result. If the input is a file that still grows, that file is a fourth descriptor, and
the input is a socket that carries the file's size (`growing_file`). The result is one msgpack document, written to the
result descriptor, which is then closed. Its writer has parsed hostile bytes, so the daemon bounds and checks it.
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
"""Paths in one report, each with `PATH_BYTES`. A layer that needs more is refused: the daemon holds them in memory."""
PATH_BYTES = 48
"""Overhead of a path's object."""
MAX_RESULT_BYTES = 6 << 20
"""One result. To decode it blocks the daemon's loop for some ten milliseconds at most."""
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255


class JobKind(StrEnum):
    """The work of a job's child."""

    LAYER = "layer"
    """Inflate the input, hash its diff ID, unpack the tar into the directory."""
    MEMBERS = "members"
    """Inflate the input, store each regular file of the tar under a number in the directory, read the documents."""
    MANIFEST = "manifest"
    """Parse a manifest, or an index and choose an entry of it."""
    CONFIG = "config"
    """Parse an image configuration."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one job. Input that exceeds one is refused."""

    max_bytes: int = MAX_LAYER_BYTES
    """Inflated bytes of the input, and bytes of one file."""
    max_inodes: int = 4_000_000
    """Tar entries, and inodes created, including directories that no entry names."""
    memory_bytes: int = 512 << 20
    """Address space of the child, shared libraries and thread stacks included."""
    cpu_s: int = 1800


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    """Request: do this job. `Ended` repeats `number`."""

    number: int
    kind: JobKind
    limits: Limits
    what: str = ""
    """The input's name in errors."""
    platform: Platform = Platform()
    """The platform that images must run on."""
    content_type: str = ""
    """The Content-Type that a manifest arrived with."""


class Kill(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """Request: kill the job's child, if it still runs."""

    number: int


class StepAside(msgspec.Struct, frozen=True, kw_only=True, tag="step_aside"):
    """Request: lower the CPU priority of the job's child."""

    number: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Notice: the template process accepts jobs."""

    libarchive: int
    """libarchive's version number, such as 3006002."""


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """Notice: the template process can't work on this machine and exits."""

    reason: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """Notice: a job's child has exited and was reaped."""

    number: int
    wait_status: int


Request = Job | Kill | StepAside
Notice = Ready | Broken | Ended


class Fault(StrEnum):
    """The cause of a failure."""

    INPUT = "input"
    """Damaged, hostile or unsupported bytes."""
    SPACE = "space"
    """The disk or a quota is full."""
    HOST = "host"
    """Anything else: a bug, or an error of the host."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """Result: the job failed. The caller removes what it left in the directory."""

    fault: Fault
    reason: str


class LayerReport(msgspec.Struct, frozen=True, kw_only=True, tag="layer"):
    """Result: a layer is unpacked, except for what needs more privileges than the child has (`finish`)."""

    diff_id: str
    inflated_bytes: int
    disk_bytes: int
    inodes: int
    opaque_dirs: list[bytes]
    """Directories that hide the content of lower layers. Relative paths without links."""
    implied_dirs: list[bytes]
    """Directories without an entry of their own, parents first. They may inherit a lower layer's attributes."""
    whiteout_dirs: list[bytes]
    """Directories that contain whiteouts."""
    dropped_xattrs: int


class ArchiveReport(msgspec.Struct, frozen=True, kw_only=True, tag="archive"):
    """Result: the archive's regular files are in the directory. `images` are the images it has."""

    images: list[PlannedImage]
    inflated_bytes: int


class ManifestReport(msgspec.Struct, frozen=True, kw_only=True, tag="manifest"):
    """Result: the document is `manifest`, or an index from which `entry` was chosen."""

    manifest: Manifest | None = None
    entry: Descriptor | None = None
    chosen: bool = False
    """Whether the entry states this platform, rather than none."""


class ConfigReport(msgspec.Struct, frozen=True, kw_only=True, tag="config"):
    """Result: an image configuration, reduced to what is kept."""

    config: ImageConfig


Result = Failure | LayerReport | ArchiveReport | ManifestReport | ConfigReport


class InputError(Exception):
    """Raised in the child: the input is damaged, hostile or unsupported. The text names the entry."""
