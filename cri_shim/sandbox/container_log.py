"""Checks and prepares the path of a container's log, which must stay inside the pod's log directory."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from cri_shim.errors import CriShimError, InvalidArgumentError, WrongStateError, host_step
from cri_shim.host.files import make_dirs_in_root
from cri_shim.host.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from cri_shim.kernel_call import working_on
from cri_shim.oci.spec.checks import MAX_NAME_BYTES, has_control_characters
from cri_shim.quoting import quoted

_IN_THE_WAY = (errno.EEXIST, errno.ELOOP, errno.ENOTDIR)
_NO_LINKS = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def log_path(log_directory: str, path: str) -> Path | None:
    """The path of the container's log, or None if the request has no log path.

    Raises InvalidArgumentError for a path outside the pod's log directory, and for one that conmon does not accept.
    """
    if not log_directory or not path:
        return None
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path or path.endswith("/"):
        raise InvalidArgumentError(
            f"config.log_path: {quoted(path)} is not a relative path without '..' below the pod's log_directory"
        )
    for field, text in (("config.log_path", path), ("the pod's log_directory", log_directory)):
        if ":" in text or has_control_characters(text):
            raise InvalidArgumentError(
                f"{field}: {quoted(text)} contains ':' or a control character, which the container monitor does not "
                "accept"
            )
    if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
        raise InvalidArgumentError(
            f"config.log_path: a component of {quoted(path)} has more than {MAX_NAME_BYTES} bytes"
        )
    return Path(log_directory) / path


def prepare_log(log_directory: str, log_file: Path | None) -> None:
    """Create the log's directory, and check the log file. Blocking.

    Raises what `make_log_directory` and `check_log_file` raise, UnavailableError.
    """
    if log_file is not None:
        working_on("config.log_path", str(log_file))
        make_log_directory(log_directory, log_file)
        check_log_file(log_directory, log_file)


def make_log_directory(log_directory: str, log_file: Path | None) -> None:
    """Create the log's directory below the pod's log directory, without following links out of it. Blocking.

    The kubelet creates it itself, users of crictl often do not. Raises WrongStateError if a link or a file is in the
    way, ResourceExhaustedError, CriShimError.
    """
    if log_file is None:
        return
    parent = str(log_file.parent.relative_to(log_directory))
    with host_step(f"creating log directory {log_file.parent}"):
        Path(log_directory).mkdir(parents=True, exist_ok=True, mode=0o755)
        try:
            make_dirs_in_root(Path(log_directory), parent, mode=0o755, uid=0, gid=0)
        except OSError as error:
            if error.errno in _IN_THE_WAY:
                raise _refusal(log_file.parent) from error
            raise


def check_log_file(log_directory: str, log_file: Path | None) -> None:
    """Refuse a log that is a link, is reached through one, or is not a regular file. Blocking. Raises WrongStateError.

    conmon runs as root and would write to the link's target. A container with the node's log directory as a volume can
    create such a link, also between a rotation and the reopening. For the latter conmon creates a `.tmp` file beside
    the log.
    """
    if log_file is None:
        return
    parent = str(log_file.parent.relative_to(log_directory))
    try:
        with host_step(f"config.log_path: {log_file}"):
            top = os.open(log_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                directory = openat2(top, parent, os.O_PATH | os.O_DIRECTORY, resolve=_NO_LINKS)
            finally:
                os.close(top)
    except CriShimError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _IN_THE_WAY:
            raise _refusal(log_file.parent) from error
        raise
    try:
        for name in (log_file.name, f"{log_file.name}.tmp"):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise _refusal(log_file.with_name(name))
    finally:
        os.close(directory)


def _refusal(path: Path) -> WrongStateError:
    return WrongStateError(
        f"config.log_path: {path} is a symbolic link or not a regular file: remove it"
    )
