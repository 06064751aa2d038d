"""A daemon on a node of its own, for the fault tests that are run as commands."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.image.builtin import busybox_archive
from tests.harness import isolation
from tests.harness.daemon import Daemons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.daemon import Daemon


@contextmanager
def daemon_of_its_own(image: str) -> Iterator[tuple[Daemon, Path]]:
    """It has `image`; the directory is for notes. Raises LeakError at the end, when something was left behind."""
    session = isolation.Session()
    session.claim()
    try:
        session.enter()
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory, "busybox.tar")
            archive.write_bytes(busybox_archive(image))
            daemons = Daemons(session.token, session.namespaces)
            with daemons.without_leaks(archives=[archive]) as daemon:
                notes = Path(directory, "notes")
                notes.mkdir()
                yield daemon, notes
    finally:
        session.release()
