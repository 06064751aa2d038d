"""What all tests share: hypothesis without a clock, so that a busy machine fails no test; and signals that work."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from cri_shim.host.signals import reset_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("here", deadline=None)
settings.load_profile("here")

# Started by nohup, or in the background by a shell, the tests and all they start would ignore some.
reset_signals()
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for unix sockets, whose paths are bounded, however long TMPDIR's is."""
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as directory:
        yield Path(directory)
