"""A row of `cri-shim check`, and access to the node's files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MAX_FILE_BYTES = 1 << 20


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    """The daemon works, but some pods will lack a feature."""
    FAILED = "failed"
    """The daemon cannot work."""


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement: the finding, and the remedy if it is not met."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Row:
    """The requirement is met."""
    return Row(name, Level.OK, detail)


def warning(name: str, detail: str, remedy: str) -> Row:
    """The requirement is not met, but the daemon works without it."""
    return Row(name, Level.WARNING, detail, remedy)


def failed(name: str, detail: str, remedy: str) -> Row:
    """The requirement is not met, and the daemon cannot work without it."""
    return Row(name, Level.FAILED, detail, remedy)


@dataclass(frozen=True, slots=True)
class Node:
    """The node's files; `root` takes the place of `/`."""

    root: Path = Path("/")

    def read(self, path: str) -> str | None:
        """The text of a file without surrounding space, or None if it cannot be read."""
        try:
            with (self.root / path.lstrip("/")).open("rb") as stream:
                return stream.read(MAX_FILE_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def exists(self, path: str | Path) -> bool:
        """Whether the path exists."""
        return (self.root / str(path).lstrip("/")).exists()

    def names(self, path: str) -> list[str]:
        """The names in a directory; [] if it cannot be read."""
        try:
            return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())
        except OSError:
            return []

    def status_field(self, field: str) -> str:
        """A field of /proc/self/status, or "" if it is missing."""
        for line in (self.read("/proc/self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        return ""

    def install(self, deb: str, rpm: str | None = None) -> str:
        """The command that installs a package on the node's distribution (os-release(5))."""
        words = set()
        for line in (self.read("/etc/os-release") or "").splitlines():
            key, _, value = line.partition("=")
            if key in ("ID", "ID_LIKE"):
                words.update(value.strip('"').split())
        if words & {"debian", "ubuntu"}:
            return f"apt-get install {deb}"
        if words & {"fedora", "rhel", "centos", "openEuler"}:
            return f"dnf install {rpm or deb}"
        if words & {"suse", "opensuse"}:
            return f"zypper install {rpm or deb}"
        return f"install the package {deb}"


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, or else its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def version_text(version: tuple[int, ...]) -> str:
    """`(5, 12)` -> `5.12`."""
    return ".".join(map(str, version))
