"""What all tests share: hypothesis without a clock, so that a busy machine fails no test; and signals that work.

Tests of gVisor, marked `runsc`, are skipped on a machine without it, as the only ones that are ever skipped for a tool.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from cri_shim.host.signals import reset_signals
from tests.harness import node

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("here", deadline=None)
settings.load_profile("here")

# Started by nohup, or in the background by a shell, the tests and all they start would ignore some.
reset_signals()
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Not every distribution has a package of runsc."""
    if shutil.which("runsc", path=node.search_path()) is None:
        absent = pytest.mark.skip(
            reason="runsc, gVisor's runtime, is not on PATH; Debian has it as the package runsc"
        )
        for item in items:
            if item.get_closest_marker("runsc") is not None:
                item.add_marker(absent)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for unix sockets, whose paths are bounded, however long TMPDIR's is."""
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as directory:
        yield Path(directory)
