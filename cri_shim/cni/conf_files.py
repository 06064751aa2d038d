"""The files of the CNI configuration directory: list them, read one, detect changes.

Rules:
- A `.conflist` can be completed by a folder beside it with its network's name. Each `.conf` in it is another plugin,
  and a change in the folder counts as a change of the file.
- A file that can't be used keeps the network it defined before, together with the reason.

CNI spec 1.1 §1 "loadOnlyInlinedPlugins".
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.cni.conf import (
    MAX_CONF_BYTES,
    NetworkList,
    parse_conf,
    parse_conflist,
    parse_list_head,
)
from cri_shim.errors import ConfigError
from cri_shim.host.files import read_bounded
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILES = 200

_SUFFIXES = (".conflist", ".conf", ".json")
_FOLDER_SUFFIXES = (".conf",)

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in ns, at least one of which changes with the file."""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """One file: the last network it defined, if any, and its present problem."""

    path: Path
    stamp: Stamp
    network: NetworkList | None
    problem: str
    folder: Path | None = None
    """The folder for more plugins of the list; it need not exist."""
    folder_stamps: tuple[tuple[str, Stamp], ...] = ()

    def is_current(self, stamp: Stamp) -> bool:
        """Whether neither the file nor its folder has changed since."""
        if self.stamp != stamp:
            return False
        try:
            return self.folder is None or self.folder_stamps == _folder_stamps(self.folder)
        except OSError:
            return False  # reading it again gives the reason


def scan(directory: Path, suffixes: tuple[str, ...] = _SUFFIXES) -> tuple[dict[str, Stamp], str]:
    """The files to read, in order, and the problem of the directory as a whole, if any. Raises OSError."""
    with os.scandir(directory) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.endswith(suffixes) and not entry.name.startswith(".")
        )
    stamps: dict[str, Stamp] = {}
    for name in names[:MAX_FILES]:
        try:
            status = os.stat(
                directory / name
            )  # following links: a mounted ConfigMap consists of links
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            stamps[name] = (
                status.st_dev,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
    problem = ""
    if len(names) > MAX_FILES:
        problem = f"{directory}: {len(names)} configuration files; only the first {MAX_FILES} count"
    return stamps, problem


def load_file(path: Path, stamp: Stamp, known: LoadedFile | None) -> LoadedFile:
    """Read a file with this stamp. `known` is its earlier content."""
    folder: Path | None = None
    stamps: tuple[tuple[str, Stamp], ...] = ()
    try:
        data = read_bounded(path, MAX_CONF_BYTES)
        if path.suffix == ".conflist":
            head = parse_list_head(data, source=str(path))
            if not head.load_only_inlined:
                folder = path.parent / head.name
                stamps = _folder_stamps(folder)
            more = [
                (str(folder / name), read_bounded(folder / name, MAX_CONF_BYTES))
                for name, _ in stamps
                if folder is not None
            ]
            network = parse_conflist(data, source=str(path), folder=more)
        else:
            network = parse_conf(data, source=str(path))
    except ConfigError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or path}: can't be read: {error.strerror}"
    else:
        return LoadedFile(path, stamp, network, "", folder, stamps)
    kept = known.network if known is not None else None
    if kept is not None:
        problem += f" (network {quoted(kept.name)} keeps its earlier configuration)"
    return LoadedFile(path, stamp, kept, problem, folder, stamps)


def _folder_stamps(folder: Path) -> tuple[tuple[str, Stamp], ...]:
    try:
        stamps, problem = scan(folder, _FOLDER_SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    if problem:
        raise ConfigError(problem)
    return tuple(stamps.items())
