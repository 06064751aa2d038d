"""Where a container's log goes: always inside the pod's log directory, whatever a client writes into the path."""

from __future__ import annotations

from pathlib import Path

from cri_shim.errors import InvalidArgumentError, host_step
from cri_shim.host.files import make_dirs_in_root
from cri_shim.oci.spec.checks import MAX_NAME_BYTES, has_control_characters


def log_path(log_directory: str, path: str) -> Path | None:
    """Where the container's log goes: inside the pod's log directory, or nowhere when CRI names no path.

    Raises InvalidArgumentError for a path that leaves the directory.
    """
    if not log_directory or not path:
        return None
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or path.endswith("/"):
        raise InvalidArgumentError(
            f"config.log_path: {path!r}: a relative path without '..' below the pod's log_directory"
        )
    for field, text in (("config.log_path", path), ("the pod's log_directory", log_directory)):
        if ":" in text or has_control_characters(text):
            raise InvalidArgumentError(
                f"{field}: {text!r}: the container monitor takes no ':' and no control character"
            )
    if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
        raise InvalidArgumentError(f"config.log_path: a name of more than {MAX_NAME_BYTES} bytes")
    return Path(log_directory) / path


def make_log_directory(log_directory: str, log_file: Path | None) -> None:
    """What kubelet makes itself and a person with crictl forgets; never out of the pod's directory by a link."""
    if log_file is None:
        return
    parent = str(log_file.parent.relative_to(log_directory))
    with host_step(f"log directory {log_file.parent}"):
        Path(log_directory).mkdir(parents=True, exist_ok=True, mode=0o755)
        make_dirs_in_root(Path(log_directory), parent, mode=0o755, uid=0, gid=0)
