"""The cgroup v1 controller `files` of openEuler's kernels, which limits the open files of a cgroup.

OCI runtimes do not know this controller, so this module creates, fills and removes the cgroups of its hierarchy.

Rules:
- A cgroup gets the processes that the same path has in the other hierarchies, where the runtime puts them.
- The limit is set before the first process is added. The kernel then refuses a process with more open files.
- Parent cgroups are removed with their last child, since no other program removes them.
- All functions are synchronous and short.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError, TooManyFilesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cri_shim.host.cgroups.layout import Hierarchy, Layout

CONTROLLER = "files"
_NO_LIMIT = "max"
_TRIES = 100
"""Rounds at most.

Each round moves all processes found outside, and their later children start inside: two usually do.
"""


def hierarchy_of_files(layout: Layout) -> Hierarchy | None:
    """The v1 hierarchy with the controller `files`, or None."""
    hierarchy = layout.of_controller(CONTROLLER)
    return hierarchy if hierarchy is not None and hierarchy.version == 1 else None


def lack_of_files_limits(layout: Layout) -> str:
    """Why open files cannot be limited on this node, or "" if they can."""
    hierarchy = hierarchy_of_files(layout)
    if hierarchy is None:
        return "this node has no cgroup v1 controller `files`, which only openEuler's kernels have"
    with contextlib.suppress(OSError):
        switch = hierarchy.mount_point / "files.no_acct"
        if switch.read_text("ascii").strip() not in ("", "0"):
            return f"the kernel does not count open files, since {switch} is set"
    return ""


def limit_in_force(hierarchy: Hierarchy, relative_dir: str) -> int | None:
    """The limit of a cgroup: -1 for none, None if the hierarchy does not have the cgroup. Raises OSError."""
    try:
        text = (hierarchy.directory(relative_dir) / "files.limit").read_text("ascii").strip()
    except FileNotFoundError:
        return None
    return -1 if text == _NO_LIMIT else int(text)


def set_limit(hierarchy: Hierarchy, relative_dir: str, limit: int) -> None:
    """Create the cgroup if it is missing, and set its limit. A `limit` of 0 or less is no limit. Raises OSError."""
    directory = hierarchy.directory(relative_dir)
    _make(directory)
    text = str(limit) if limit > 0 else _NO_LIMIT
    (directory / "files.limit").write_text(text, encoding="ascii")


def gather(
    hierarchy: Hierarchy,
    relative_dir: str,
    *,
    everywhere: Callable[[], Iterable[int]],
    inside: Callable[[], Iterable[int]],
) -> None:
    """Add every process that `everywhere` lists for the cgroup and `inside`, for this hierarchy, does not.

    Raises TooManyFilesError if a process has more open files than the limit leaves, OSError, and CriShimError if
    processes remain outside after `_TRIES` rounds.
    """
    processes = hierarchy.directory(relative_dir) / "cgroup.procs"
    for _ in range(_TRIES):
        outside = set(everywhere()).difference(inside())
        if not outside:
            return
        for pid in sorted(outside):
            try:
                with processes.open("a", encoding="ascii") as file:
                    file.write(f"{pid}\n")
            except ProcessLookupError:
                continue  # it has ended
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise TooManyFilesError(
                    f"cgroup /{relative_dir}: process {pid} has more open files than the limit leaves"
                ) from error
    raise CriShimError(
        f"cgroup /{relative_dir}: cannot move all processes to {processes}: "
        f"after {_TRIES} rounds {len(outside)} are outside, such as process {min(outside)}"
    )


def prune(hierarchy: Hierarchy, relative_dir: str) -> None:
    """Remove the parents of a removed cgroup, up to the first that still has children or processes. Raises OSError."""
    directory = hierarchy.directory(relative_dir).parent
    while directory != hierarchy.mount_point:
        try:
            directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return
            raise
        directory = directory.parent


def _make(directory: Path) -> None:
    for _ in range(_TRIES):
        # `prune` may remove a parent between two mkdir calls of `parents=True`.
        with contextlib.suppress(FileNotFoundError):
            directory.mkdir(parents=True, exist_ok=True)
            return
    directory.mkdir(parents=True, exist_ok=True)
