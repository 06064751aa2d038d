"""Parses the kernel's list of mounts, /proc/PID/mountinfo (proc(5)).

Paths are as the kernel has them: absolute, without symbolic links, here without octal escapes. Bytes that are not UTF-8
become surrogates, as everywhere in `os`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cri_shim.quoting import quoted

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DELETED = b"//deleted"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    """The directory of the file system that is mounted at `target`."""
    target: Path
    options: str
    propagation: tuple[str, ...]
    """`shared:N`, `master:N` and so on; empty for a private mount."""
    fs_type: str
    source: str
    super_options: str

    @property
    def is_shared(self) -> bool:
        """Whether mounts created below this mount propagate to its peers."""
        return any(field.startswith("shared:") for field in self.propagation)


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field))


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Every mount that is reachable by a path, in the kernel's order. Pure. Raises ValueError for a malformed line."""
    mounts = []
    for line in text.splitlines():
        fields = line.split(b" ")
        try:
            separator = fields.index(b"-", 6)
            fs_type, source, super_options = fields[separator + 1 : separator + 4]
            if fields[4].endswith(_DELETED):
                continue  # its mount point was removed, so no path leads to it
            mounts.append(
                Mount(
                    mount_id=int(fields[0]),
                    parent_id=int(fields[1]),
                    device=_unescape(fields[2]),
                    root=_unescape(fields[3]),
                    target=Path(_unescape(fields[4])),
                    options=_unescape(fields[5]),
                    propagation=tuple(_unescape(field) for field in fields[6:separator]),
                    fs_type=_unescape(fs_type),
                    source=_unescape(source),
                    super_options=_unescape(super_options),
                )
            )
        except (ValueError, IndexError) as error:
            raise ValueError(f"malformed line of mountinfo: {quoted(line)}") from error
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """The mount that `path` lies on. `path` has no symbolic links. Of several mounts at one target the last counts."""
    found: Mount | None = None
    for mount in mounts:
        if path.is_relative_to(mount.target) and (
            found is None or len(mount.target.parts) >= len(found.target.parts)
        ):
            found = mount
    return found
