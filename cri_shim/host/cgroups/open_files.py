"""The cgroup v1 controller `files`, which openEuler's kernels have: how many files a cgroup's processes may have open.

No OCI runtime knows it, so its hierarchy is ours alone: here cgroups are made in it, limited and given their processes.
Rules:
- Processes are those that the same path has in the other hierarchies, where the runtime puts them.
- The limit stands before the first process comes: the kernel then refuses one that has more files open already.
- Cgroups above a container's are nobody else's to remove: they go when the last one below them has gone.
- Synchronous and short, as all here.
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
"""Each time everything that is outside is moved, and what those fork from then on is inside: two are many."""


def hierarchy_of_files(layout: Layout) -> Hierarchy | None:
    """The hierarchy that limits open files; None where the kernel has none of version 1."""
    hierarchy = layout.of_controller(CONTROLLER)
    return hierarchy if hierarchy is not None and hierarchy.version == 1 else None


def lack_of_files_limits(layout: Layout) -> str:
    """Why open files can't be limited on this node; "" where they can be."""
    hierarchy = hierarchy_of_files(layout)
    if hierarchy is None:
        return "this node has no cgroup v1 controller `files`, which only kernels of openEuler have"
    with contextlib.suppress(OSError):
        switch = hierarchy.mount_point / "files.no_acct"
        if switch.read_text("ascii").strip() not in ("", "0"):
            return f"this node's kernel does not count open files: {switch} was set"
    return ""


def limit_in_force(hierarchy: Hierarchy, relative_dir: str) -> int | None:
    """The limit of a cgroup, -1 for none; None where it has no directory in the hierarchy. Raises OSError."""
    try:
        text = (hierarchy.directory(relative_dir) / "files.limit").read_text("ascii").strip()
    except FileNotFoundError:
        return None
    return -1 if text == _NO_LIMIT else int(text)


def set_limit(hierarchy: Hierarchy, relative_dir: str, limit: int) -> None:
    """Make the cgroup if it is not there, and limit it; -1 is no limit. Raises OSError."""
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
    """Put every process that the cgroup has elsewhere into it here; `inside` lists those that are there.

    Raises TooManyFilesError where a process has more files open than are left, OSError, CriShimError for what can't be
    caught.
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
                    f"cgroup /{relative_dir}: process {pid} has more files open than its limit leaves"
                ) from error
    raise CriShimError(
        f"cgroup /{relative_dir}: processes {sorted(outside)} stay outside {processes}"
    )


def prune(hierarchy: Hierarchy, relative_dir: str) -> None:
    """Remove the cgroups above a removed one that hold nothing any more."""
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
        # A parent may be pruned between two steps.
        with contextlib.suppress(FileNotFoundError):
            directory.mkdir(parents=True, exist_ok=True)
            return
    directory.mkdir(parents=True, exist_ok=True)
