from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from cri_shim import log as logs

Program = Callable[[str, str], Path]
"""Makes an executable of a name and a shell script in a directory that is on PATH, alone."""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))

    def make(name: str, script: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test takes for a terminal is not a dumb one, wherever the tests run."""
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """For commands that set up logging in this process: afterwards it is as before."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    structlog.reset_defaults()
    logs.set_level("info")
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def quiet_server() -> Iterator[None]:
    """The log of a server in this process would mix with what a command prints."""
    with capture_logs():
        yield
