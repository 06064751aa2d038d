"""A small file system under a daemon's directory, which a test can fill to the last byte or the last inode."""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.daemon import Daemon, Daemons

SIZE = "48m"
INODES = 4000
_CHUNK = bytes(1 << 20)


class SmallDisk:
    """A tmpfs of its own, mounted at `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"
        self._objects = [directory / "sandboxes", directory / "containers"]
        self._frozen = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = f"size={SIZE},nr_inodes={INODES},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(directory)], check=True)

    def freeze(self) -> None:
        """Let nothing be written to what objects have there, as after an error of a disk."""
        for directory in map(str, self._objects):
            # A mount of its own: the kernel refuses to freeze one through which files are open for writing.
            for options in (
                ("--rbind", directory),
                ("--make-rprivate",),
                ("-o", "remount,bind,ro"),
            ):
                subprocess.run(["mount", *options, directory], check=True)
        self._frozen = True

    def thaw(self) -> None:
        """Let it be written again."""
        if self._frozen:
            subprocess.run(["umount", "--lazy", *map(str, self._objects)], check=True)
        self._frozen = False

    def fill(self) -> None:
        """Take every free byte."""
        self._ballast.mkdir(exist_ok=True)
        fd = os.open(self._ballast / "bytes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            size = len(_CHUNK)
            while size:
                try:
                    os.write(fd, _CHUNK[:size])
                except OSError:
                    size //= 2
        finally:
            os.close(fd)

    def take_inodes(self) -> None:
        """Take every free inode."""
        self._ballast.mkdir(exist_ok=True)
        for number in itertools.count():
            try:
                (self._ballast / str(number)).touch()
            except OSError:
                return

    def free(self) -> None:
        """Give back what was taken."""
        subprocess.run(["rm", "-rf", str(self._ballast)], check=True)

    def leave(self, free_bytes: int) -> None:
        """Take every free byte but so many."""
        self.fill()
        file = self._ballast / "bytes"
        os.truncate(file, max(file.stat().st_size - free_bytes, 0))


@contextmanager
def on_small_disk(
    daemons: Daemons, archives: list[Path], which: str
) -> Iterator[tuple[Daemon, SmallDisk]]:
    """A warm daemon whose `root` or `state` directory is a small disk; checked for leaks at the end."""
    scope = daemons.scope()
    daemon = daemons.create()
    try:
        disk = SmallDisk(daemon.root if which == "root" else daemon.state)
        daemon.start()
        daemon.warm_up(archives)
        daemon.stop()
        before = leaks.Snapshot.take(scope)
        daemon.start()
        yield daemon, disk
        disk.free()
        if daemon.pid is None:
            daemon.start()
        daemon.client.remove_all_pods()
        assert daemon.stop() == 0
        found = leaks.leaks_since(before, scope)
    finally:
        daemons.destroy(daemon)
    if found:
        raise leaks.LeakError(found)
