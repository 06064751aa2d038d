"""What is written down of each object of a shim: by which a later daemon finds the shim again, dead or alive.

A file per object in the handler's directory, which its `clear` removes; its form is this daemon's own business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import host_step
from cri_shim.host.files import read_bounded, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 16 << 10


class ShimRecord(msgspec.Struct, frozen=True):
    """One object, and the shim that it is in."""

    pod_id: str
    bundle_dir: str
    socket: str
    """See `bootstrap.Bootstrapped`."""
    version: int
    pid: int
    start_ticks: int


def write_record(directory: Path, object_id: str, record: ShimRecord) -> None:
    """Write it down. Raises CriShimError."""
    with host_step(f"{object_id}: noting its shim"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(directory / f"{object_id}.json", msgspec.json.encode(record))


def read_record(directory: Path, object_id: str) -> ShimRecord | None:
    """What was written down; None if nothing was, or it can't be read."""
    try:
        document = read_bounded(directory / f"{object_id}.json", MAX_BYTES)
        return msgspec.json.decode(document, type=ShimRecord)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
