"""The kernel's AppArmor: whether it is there, which profiles are loaded, and loading one.

Rules: the kernel's list is read each time, since profiles come and go without us (`systemctl reload apparmor` drops
what has no file of its own). `root` stands in for / in tests.
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
    """Whether the kernel has AppArmor, whether or not it is within reach."""
    try:
        return (root / _ENABLED).read_text().strip() == "Y"
    except OSError:
        return False


def loaded_profiles(root: Path = Path("/")) -> frozenset[str] | None:
    """The names of the profiles that the kernel has; None where it has no AppArmor. Blocks for microseconds.

    Also None where the list can't be read, as inside a container: profiles are then another's business.
    """
    if not enabled(root):
        return None
    try:
        lines = (root / _PROFILES).read_text().splitlines()
    except OSError:
        return None
    # `name (mode)`; a name may have spaces and parentheses of its own.
    return frozenset(line.rpartition(" (")[0] for line in lines)


def parser() -> str | None:
    """The program that loads profiles; None where it is not installed."""
    return shutil.which(PARSER)


async def load_profile(reaper: Reaper, name: str, text: str, file: Path) -> None:
    """Write the profile to `file` and load it, over an older one of its name.

    Raises UnsupportedError without the parser, CommandError with its words, OSError when the file can't be written.
    """
    program = parser()
    if program is None:
        raise UnsupportedError(
            f"AppArmor profile {name}: can't be loaded: {PARSER} is not installed (package apparmor)"
        )
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomic(file, text.encode())
    argv = [program, "--replace", "--skip-cache", str(file)]
    done = await reaper.run(argv, timeout_s=LOAD_TIMEOUT_S)
    if not done.ok:
        raise CommandError(
            f"loading AppArmor profile {name}", argv, done.ending.describe(), done.stderr_tail
        )
