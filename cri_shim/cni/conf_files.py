"""The files of the CNI configuration directory: finding them, reading one, and telling whether it changed since.

Rules:
- A `.conflist` may be completed by a folder beside it that has its network's name: each `.conf` in there is one plugin
  more. A change in the folder is a change of the file.
- A file that can't be used keeps the network it meant before, with the reason.

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
"""Device, inode, size, mtime and ctime in ns: what a change of a file changes."""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """One file: the network it last meant, if it ever meant one, and what is wrong with it now."""

    path: Path
    stamp: Stamp
    network: NetworkList | None
    problem: str
    folder: Path | None = None
    """Where more plugins of the list may stand; it need not exist."""
    folder_stamps: tuple[tuple[str, Stamp], ...] = ()

    def is_current(self, stamp: Stamp) -> bool:
        """Whether reading it again would tell nothing new."""
        if self.stamp != stamp:
            return False
        try:
            return self.folder is None or self.folder_stamps == _folder_stamps(self.folder)
        except OSError:
            return False  # reading it again says why


def scan(directory: Path, suffixes: tuple[str, ...] = _SUFFIXES) -> tuple[dict[str, Stamp], str]:
    """The files to read, in order, and what is wrong with the directory as a whole. Raises OSError."""
    with os.scandir(directory) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.endswith(suffixes) and not entry.name.startswith(".")
        )
    stamps: dict[str, Stamp] = {}
    for name in names[:MAX_FILES]:
        try:
            status = os.stat(directory / name)  # through links: a ConfigMap is mounted as links
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
    """Read a file of this stamp; `known` is what it was before."""
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
        problem += f" (the earlier configuration of network {quoted(kept.name)} stays in use)"
    return LoadedFile(path, stamp, kept, problem, folder, stamps)


def _folder_stamps(folder: Path) -> tuple[tuple[str, Stamp], ...]:
    try:
        stamps, problem = scan(folder, _FOLDER_SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    if problem:
        raise ConfigError(problem)
    return tuple(stamps.items())
