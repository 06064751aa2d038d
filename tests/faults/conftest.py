"""The fault tests' node is the integration tests' own: same isolation, same daemons, same leak guard.

How long the long runs are, and with which seed, is said in the environment:
CRI_SHIM_FAULT_SEED, CRI_SHIM_FAULT_KILLS, CRI_SHIM_FAULT_PODS.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.looking import assert_nothing_new
from tests.harness import leaks
from tests.integration import conftest as node
from tests.integration.conftest import archives, daemons, image, leak_scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.daemon import Daemon, Daemons

__all__ = ["archives", "daemons", "image", "leak_scope"]  # fixtures, under the same names

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these need the real node; those that take minutes run only when they are asked for."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.integration)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Enter the node, unless the integration tests, collected in the same run, have done so."""
    if node._SESSION not in session.config.stash:
        node.pytest_collection_finish(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give it back; harmless when done twice."""
    node.pytest_unconfigure(config)


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """What random choices start from; printed, so that a failure's choices can be had again."""
    chosen = int(os.environ.get("CRI_SHIM_FAULT_SEED") or secrets.randbelow(1 << 31))
    with capsys.disabled():
        print(f" CRI_SHIM_FAULT_SEED={chosen} ", end="", flush=True)
    return chosen


@pytest.fixture(scope="session")
def shared_daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """The daemon that these tests crash in turn; checked for leaks when it goes, too."""
    with daemons.without_leaks(archives=archives) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def leak_guard(leak_scope: leaks.Scope) -> Iterator[None]:
    """Fail the test that leaves something behind."""
    before = leaks.Snapshot.take(leak_scope)
    yield
    assert_nothing_new(leak_scope, before, "after the test")


@pytest.fixture
def crash_daemon(shared_daemon: Daemon, leak_guard: None) -> Iterator[Daemon]:
    """A running daemon to be killed, stopped and started; what the test leaves is removed by it."""
    yield shared_daemon
    if shared_daemon.pid is None:
        shared_daemon.start()
    shared_daemon.client.remove_all_pods()
