"""The directories of a root and a state, made before anything else uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.paths import NETNS_DIR

if TYPE_CHECKING:
    from cri_shim.paths import Paths


def prepare_directories(paths: Paths) -> None:
    """Make them and close them to others; the caller holds the locks. Raises ConfigError."""
    try:
        # Others must not look into containers' files, nor into their state (CVE-2021-41103): what is below `state`
        # is closed, but the socket in it must be reachable for its group.
        paths.root.chmod(0o700)
        paths.state.chmod(0o711)
        for directory in (
            paths.sandboxes_dir,
            paths.containers_dir,
            paths.pending_deletes_dir,
            paths.exits_dir,
            paths.console_dir,
            paths.state / "runtime",
        ):
            directory.mkdir(mode=0o700, exist_ok=True)
        for directory in (paths.state / "sandboxes", paths.state / "containers"):
            # The way to the root file systems, which the root of a user namespace must go; each object's own
            # directory is closed to everyone else.
            directory.mkdir(mode=0o711, exist_ok=True)
            directory.chmod(0o711)
        NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{error.filename}: can't be made: {error.strerror}") from error
