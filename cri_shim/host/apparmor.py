"""Queries the kernel's AppArmor and loads a profile.

Rules:
- The kernel's list of profiles is read at each call: others unload profiles (`systemctl reload apparmor` drops those
  without a file in /etc/apparmor.d).
- `root` is a directory that takes the place of / in tests.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import CommandError, UnsupportedError
from cri_shim.host.files import write_atomic

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper

PARSER = "apparmor_parser"
LOAD_TIMEOUT_S = 30.0
_ENABLED = "sys/module/apparmor/parameters/enabled"
_PROFILES = "sys/kernel/security/apparmor/profiles"


def enabled(root: Path = Path("/")) -> bool:
    """Whether AppArmor is enabled in the kernel, even if this process cannot read its profiles."""
    try:
        return (root / _ENABLED).read_text().strip() == "Y"
    except OSError:
        return False


def loaded_profiles(root: Path = Path("/")) -> frozenset[str] | None:
    """The names of the loaded profiles, or None if AppArmor is disabled. Blocks for microseconds.

    Also None if the list cannot be read, as inside a container: the host then manages profiles.
    """
    if not enabled(root):
        return None
    try:
        lines = (root / _PROFILES).read_text().splitlines()
    except OSError:
        return None
    # A line is `name (mode)`. The name itself may contain spaces and parentheses.
    return frozenset(line.rpartition(" (")[0] for line in lines)


def parser() -> str | None:
    """The path of apparmor_parser, or None if it is not installed."""
    return shutil.which(PARSER)


async def load_profile(reaper: Reaper, name: str, text: str, file: Path) -> None:
    """Write the profile to `file` and load it, replacing a loaded profile of the same name.

    Raises UnsupportedError if apparmor_parser is missing, CommandError with its stderr if it fails, and OSError if
    the file cannot be written.
    """
    program = parser()
    if program is None:
        raise UnsupportedError(
            f"cannot load AppArmor profile {name}: {PARSER} is not installed (package apparmor)"
        )
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(file, text.encode())
    argv = [program, "--replace", "--skip-cache", str(file)]
    done = await reaper.run(argv, timeout_s=LOAD_TIMEOUT_S)
    if not done.ok:
        raise CommandError(
            f"loading AppArmor profile {name}", argv, done.ending.describe(), done.stderr_tail
        )
