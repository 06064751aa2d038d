"""Creates the directories below root and state, before anything else uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.paths import NETNS_DIR

if TYPE_CHECKING:
    from cri_shim.paths import Paths


def prepare_directories(paths: Paths) -> None:
    """Create the directories and restrict access to them. The caller holds the locks. Raises ConfigError."""
    try:
        # Other users must not reach the containers' files and state (CVE-2021-41103). `state` itself must be
        # searchable, since the group of the socket in it needs access to the socket.
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
            # The root of a user namespace must be able to reach its root file system through these. Each object's own
            # directory is closed to all other users.
            directory.mkdir(mode=0o711, exist_ok=True)
            directory.chmod(0o711)
        NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot prepare directory {error.filename}: {error.strerror}") from error
