"""Takes snapshots of everything that a pod could leave on a node, and compares them.

Rules:
- A snapshot is a count of names per kind. Whatever is in the later one and not in the earlier one is a leak; what
  went away is not looked at.
- Tests run in mount and network namespaces of their own (see `isolation`), so namespaces, mounts, links and packet
  rules are compared whole. Processes, cgroups and files live in trees that the machine shares: there, what is ours is
  told by the session's token, which is part of every name that the harness gives. The directory for temporary files
  that it gives to runtimes is one of the daemon's own.
- What a CNI plugin makes once per node and keeps by design is furniture, and no leak: see `furniture`.
- Endings are asynchronous: `leaks_since` looks again for a bounded while before it believes in a leak.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.image.model import EMPTY_DIR
from tests.harness import packet_rules, procs
from tests.harness.isolation import RUNTIME_DIRS
from tests.harness.slowness import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

SETTLE_S = 2.0 * SLOWNESS
NETNS_DIR = Path("/run/netns")
CNI_DIR = Path("/var/lib/cni")
SHARED_DIRS = (Path("/run"), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
FILE_KINDS = ("file", "lease", "CNI result")
"""Kinds found by walking the daemons' trees."""
OWN_DESCRIPTORS = "descriptor of the test process"
_HOST_LOCAL_FURNITURE = ("last_reserved_ip.", "lock")
_CRUN_FURNITURE = ".cache"
"""Below its root crun keeps the seccomp filters that it has compiled."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The resources that belong to this test session."""

    token: str
    """Part of every name that the harness gives: directories, cgroups, networks, bridges."""
    namespaces: frozenset[str] = frozenset()
    """The session's mount and network namespaces. All processes in them are ours."""
    trees: Callable[[], Collection[Path]] = tuple
    """The directories of existing daemons."""
    daemons: Callable[[], Mapping[str, int]] = dict
    """Names and pids of running daemons, whose descriptors are counted."""


@dataclass(frozen=True, slots=True, order=True)
class Leak:
    """A leftover: something that was not there before."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


class LeakError(AssertionError):
    """Something was left behind."""

    def __init__(self, leaks: Collection[Leak]) -> None:
        super().__init__("\n".join(["left behind:", *(f"  {leak}" for leak in leaks)]))
        self.leaks = tuple(leaks)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot: the number of occurrences of each name, by kind."""

    counts: Mapping[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def take(cls, scope: Scope) -> Snapshot:
        """Take a snapshot. It takes some 20 ms."""
        mounts = _mounts()
        everyone, daemons = procs.all_processes(), set(scope.daemons().values())
        processes = procs.processes_of(scope.token, daemons, scope.namespaces, everyone)
        trees = scope.trees()
        counts = {
            "network namespace": Counter(_names(NETNS_DIR)),
            "mount": Counter(f"{point} ({kind})" for point, kind in mounts),
            "link": Counter(procs.link_names()),
            "packet rule": Counter(packet_rules.current()),
            "cgroup": Counter(_cgroups(mounts, scope.token)),
            "process": Counter(str(process) for process in processes if not process.zombie),
            "zombie": Counter(str(process) for process in processes if process.zombie),
            OWN_DESCRIPTORS: Counter(procs.descriptors("self")),
            "temporary file": Counter(_temporary_files(scope.token, trees)),
        }
        for name, pid in scope.daemons().items():
            both = (pid, *procs.streamers_of([pid], everyone))
            found = (each for one in both for each in procs.descriptors(str(one)))
            counts[f"descriptor of daemon {name}"] = Counter(found)
        points = {point for point, _ in mounts}
        for kind, path in _files([*trees, CNI_DIR], points):
            counts.setdefault(kind, Counter())[path] += 1
        return cls(counts)

    def with_kinds_of(self, other: Snapshot, *kinds: str) -> Snapshot:
        """This snapshot, with `kinds` as `other` saw them."""
        return Snapshot(
            {**self.counts, **{kind: other.counts.get(kind, Counter()) for kind in kinds}}
        )

    def leaks_in(self, after: Snapshot) -> list[Leak]:
        """The entries of `after` that this snapshot lacks."""
        return sorted(
            Leak(kind, name if extra == 1 else f"{name} ({extra} more than before)")
            for kind, names in after.counts.items()
            # A daemon that was started in between has no earlier count of its descriptors.
            if kind in self.counts or not kind.startswith("descriptor of daemon")
            for name, extra in (names - self.counts.get(kind, Counter())).items()
        )


def leaks_since(
    before: Snapshot,
    scope: Scope,
    *,
    settle_s: float = SETTLE_S,
    allowed: Callable[[Leak], bool] = lambda leak: False,
) -> list[Leak]:
    """The entries that are new since `before`, and remain after at most `settle_s` seconds."""
    deadline = time.monotonic() + settle_s
    while True:
        leaks = [leak for leak in before.leaks_in(Snapshot.take(scope)) if not allowed(leak)]
        if not leaks or time.monotonic() >= deadline:
            return leaks
        time.sleep(0.05)


@contextmanager
def no_leaks(scope: Scope, *, settle_s: float = SETTLE_S) -> Iterator[None]:
    """Fail with the names of everything that the block leaves behind. Raises: LeakError."""
    before = Snapshot.take(scope)
    yield
    leaks = leaks_since(before, scope, settle_s=settle_s)
    if leaks:
        raise LeakError(leaks)


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []


def _mounts() -> list[tuple[str, str]]:
    """Mount point and file system type of every mount of this thread's namespace."""
    found = []
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        found.append((before.split()[4], after.split()[0]))
    return found


def _cgroups(mounts: list[tuple[str, str]], token: str) -> Iterator[str]:
    for point, kind in mounts:
        if kind in ("cgroup", "cgroup2"):
            for path, is_dir in _walk(point, ()):
                if is_dir and token in path:
                    yield path


def _temporary_files(token: str, trees: Collection[Path]) -> Iterator[str]:
    """Our entries in shared directories, and all entries in the session's own. `_files` lists the daemons' trees."""
    known = {path for tree in trees for path in (tree, *tree.parents)}
    for directory in SHARED_DIRS:
        for name in _names(directory):
            if token in name and directory / name not in known:
                yield f"{directory}/{name}"
    for directory in RUNTIME_DIRS:
        yield from (f"{directory}/{name}" for name in _names(directory))


def _files(trees: Collection[Path], mount_points: Collection[str]) -> Iterator[tuple[str, str]]:
    """Kind and path of every file below `trees`, and of the directories that belong to one object."""
    for tree in trees:
        for path, is_dir in _walk(str(tree), mount_points):
            parts = path.split("/")
            name = parts[-1]
            if _CRUN_FURNITURE in parts:
                continue
            if "results" in parts or "cache" in parts:
                kind = "CNI result"
            elif "networks" in parts or "leases" in parts:
                kind = "lease"
                if name.startswith(_HOST_LOCAL_FURNITURE):
                    continue
            else:
                kind = "file"
            # The daemon's own directories may be made on demand; a directory of an object must go with it.
            if not is_dir or _is_objects_own(parts):
                yield kind, path


def _is_objects_own(parts: list[str]) -> bool:
    if parts[-1] == EMPTY_DIR:  # made for the first image that has too few layers, for all of them
        return False
    return parts[-2] in ("layers", ".ingest") or any(len(part) >= 32 for part in parts)


def _walk(top: str, mount_points: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Paths below `top` and whether each is a directory; not into mounts or unpacked layers."""
    pending = [top]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            is_dir = entry.is_dir(follow_symlinks=False)
            yield entry.path, is_dir
            if (
                is_dir
                and entry.path not in mount_points
                and os.path.basename(os.path.dirname(entry.path)) != "layers"
            ):
                pending.append(entry.path)
