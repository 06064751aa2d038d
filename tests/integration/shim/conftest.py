"""Daemons with a handler of kind shim: the real containerd-shim-runc-v2, without containerd."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.harness import node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

SHIM = "shim"


PROGRAM = "containerd-shim-runc-v2"


def shim_settings(**runtime: object) -> dict[str, object]:
    """The handler beside the others."""
    return {"runtime": {"handlers": shim_handlers(), **runtime}}


def shim_handlers() -> dict[str, object]:
    """The handler. Fails the test on a machine without the shim."""
    if shutil.which(PROGRAM, path=node.search_path()) is None:
        pytest.fail(f"{PROGRAM} is not on PATH: apt-get install containerd", pytrace=False)
    return {SHIM: {"path": PROGRAM, "kind": "shim"}}


@pytest.fixture(scope="session")
def shim_daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """The session's daemon with shims, warm."""
    daemon = daemons.create(settings={"stats": {"cache": "1s"}})
    try:
        daemon.write_settings(shim_settings())
        daemon.start()
        daemon.warm_up(archives)
        yield daemon
    finally:
        daemons.destroy(daemon)


@pytest.fixture
def shim_client(shim_daemon: Daemon) -> Iterator[Client]:
    """That daemon, called; pods that the test leaves are removed the ordinary way."""
    yield shim_daemon.client
    shim_daemon.client.remove_all_pods()
