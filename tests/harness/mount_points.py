"""Lists mount points."""

from __future__ import annotations

import os
from pathlib import Path

from cri_shim.host.mountinfo import read_mounts


def mounts_below(directory: Path) -> list[Path]:
    """Mount points strictly below `directory`, each once, innermost first."""
    real = Path(os.path.realpath(directory))
    targets = {
        mount.target
        for mount in read_mounts()
        if mount.target != real and mount.target.is_relative_to(real)
    }
    return sorted(targets, key=lambda target: (-len(target.parts), target))
