"""The networks that are configured now: the CNI configuration directory, loaded and followed.

Rules:
- Files that end in .conflist, .conf or .json, in the order of their names, at most 200. The first network is the
  default. Of two networks with one name, the first counts.
- Each query returns what the directory says now: it compares the identities and times of the files with what was
  loaded. That costs a few microseconds and misses nothing, even if the directory appears late, is replaced, or is a
  link that moves. inotify only makes it prompt: the log shows at once whether a new file is good.
- A file that becomes invalid keeps its last valid network, with the reason: a slip in an editor must not switch the
  node to another network or stop pods. A file that is removed takes its network with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from cri_shim.cni.conf_files import LoadedFile, Stamp, load_file, scan
from cri_shim.errors import ResourceExhaustedError
from cri_shim.host.inotify import FILES_CHANGED, DirectoryWatch
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cri_shim.cni.conf import NetworkList
    from cri_shim.cni.invoke import PluginRunner

log = structlog.get_logger()

NOT_READY = "NetworkPluginNotReady"
"""The reason that the kubelet and its users know."""


@dataclass(frozen=True, slots=True)
class CniStatus:
    """CRI's NetworkReady condition: `reason` is one word; `message` tells operators what to do."""

    ready: bool
    reason: str
    message: str


class NetworkConfigs:
    """Follows one configuration directory. Use it on the event loop's thread."""

    def __init__(self, conf_dir: Path, *, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called after each change that was found. It must not query this object."""
        self.conf_dir = conf_dir
        self._changed = changed
        self._files: dict[str, LoadedFile] = {}
        self._dir_problem = ""
        self._networks: dict[str, LoadedFile] = {}
        self._problems: tuple[str, ...] = ()
        self._watching = False
        self._watch: DirectoryWatch | None = None
        self._watched: tuple[int, int] | None = None

    @property
    def networks(self) -> Mapping[str, NetworkList]:
        """The usable networks by name, the default one first."""
        self.refresh()
        return {
            name: file.network for name, file in self._networks.items() if file.network is not None
        }

    @property
    def default(self) -> LoadedFile | None:
        """The file of the default network, or None."""
        self.refresh()
        return next(iter(self._networks.values()), None)

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of the directory's files, one sentence each."""
        self.refresh()
        return self._problems

    def status(self, runner: PluginRunner) -> CniStatus:
        """Whether a pod can join the default network now."""
        return self.status_of(self.default, runner)

    def status_of(self, default: LoadedFile | None, runner: PluginRunner) -> CniStatus:
        """Like `status`, for a `default` that the caller has just queried."""
        if default is None or default.network is None:
            cause = (
                f"no usable network configuration in {self.conf_dir}: {'; '.join(self._problems)}"
                if self._problems
                else f"no network configuration found in {self.conf_dir}: put a .conflist there, or install the "
                "cluster's network add-on, which does so; no restart is needed"
            )
            return CniStatus(ready=False, reason=NOT_READY, message=cause)
        network = default.network
        missing = sorted({p.type for p in network.plugins if runner.find(p.type) is None})
        if missing:
            return CniStatus(
                ready=False,
                reason=NOT_READY,
                message=f"network {quoted(network.name)} of {default.path} needs the CNI plugin "
                f"{' and '.join(missing)}, not found in {runner.where()}: install it there, or add "
                "its directory to cni.plugin_dirs",
            )
        if self._problems:
            return CniStatus(
                ready=True, reason="NetworkConfigurationRejected", message="; ".join(self._problems)
            )
        return CniStatus(ready=True, reason="", message="")

    def load(self) -> None:
        """Read everything again. Problems are in `problems`; nothing is raised."""
        self._reload(force=True)

    def refresh(self) -> None:
        """Read what has changed since the last time."""
        self._reload(force=False)

    def watch(self) -> None:
        """Follow the directory from now on, even if it does not exist yet. Needs the running loop."""
        self._watching = True
        self.refresh()

    def close(self) -> None:
        """Stop following. Idempotent."""
        self._watching = False
        self._unwatch()

    def _reload(self, *, force: bool) -> None:
        if self._watching:
            self._follow_directory()
        stamps: dict[str, Stamp]
        try:
            stamps, dir_problem = scan(self.conf_dir)
        except FileNotFoundError:
            # Not there yet, or removed: no networks, but no faulty file either.
            stamps, dir_problem = {}, ""
        except OSError as error:
            # The directory can't be read: keep what is known, and report why.
            self._note(self._files, f"{self.conf_dir}: {error.strerror}")
            return
        files = {}
        for name, stamp in stamps.items():
            known = self._files.get(name)
            if known is not None and not force and known.is_current(stamp):
                files[name] = known
            else:
                files[name] = load_file(self.conf_dir / name, stamp, known)
        self._note(files, dir_problem)

    def _note(self, files: dict[str, LoadedFile], dir_problem: str) -> None:
        if files == self._files and dir_problem == self._dir_problem:
            return
        problems = [dir_problem] if dir_problem else []
        networks: dict[str, LoadedFile] = {}
        for file in files.values():
            if file.problem:
                problems.append(file.problem)
            if file.network is None:
                continue
            first = networks.setdefault(file.network.name, file)
            if first is not file:
                problems.append(
                    f"{file.path}: ignored, since {first.path.name} already defines network "
                    f"{quoted(file.network.name)}"
                )
        for problem in problems:
            if problem not in self._problems:
                log.warning("invalid cni configuration", problem=problem)
        if list(networks) != list(self._networks):
            log.info("cni networks loaded", directory=str(self.conf_dir), networks=list(networks))
        self._files, self._dir_problem = files, dir_problem
        self._networks, self._problems = networks, tuple(problems)
        self._changed()

    def _follow_directory(self) -> None:
        """Watch the directory that exists now. Without a watch, queries still find changes."""
        try:
            status = os.stat(self.conf_dir)
        except OSError:
            self._unwatch()
            return
        identity = (status.st_dev, status.st_ino)
        if self._watched == identity and not (self._watch is not None and self._watch.lost):
            return
        self._unwatch()
        try:
            self._watch = DirectoryWatch(self.conf_dir, FILES_CHANGED, self._on_change)
        except (OSError, ResourceExhaustedError) as error:
            log.warning(
                "can't watch the cni configuration directory; changes apply at the next query",
                directory=str(self.conf_dir),
                error=str(error),
            )
        self._watched = identity

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch, self._watched = None, None

    def _on_change(self, _name: str | None) -> None:
        self.refresh()
