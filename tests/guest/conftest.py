"""The guest's node: that of the integration tests, on a machine that systemd runs, with cgroup v2 and AppArmor.

`daemon` is one with each cgroup driver in turn, and `handler` each runtime: what is tested here is tested with all four
pairs. `unit_guard` does for systemd's units what `leak_guard` does for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest import systemd
from tests.harness import leaks
from tests.integration import conftest as node
from tests.integration.conftest import (
    archives,
    daemons,
    image,
    keep_unpacking,
    leak_guard,
    leak_scope,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon, Daemons

__all__ = [
    "archives",
    "daemons",
    "image",
    "keep_unpacking",
    "leak_guard",
    "leak_scope",
]  # fixtures, under the same names

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands here needs the guest, marked or not: none slips into another run."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.guest)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test: is this the guest, and then onto a node of our own."""
    if session.config.option.collectonly:
        return
    if not any(item.path.is_relative_to(HERE) for item in session.items):
        return
    if not Path("/run/systemd/system").exists() or not systemd.CGROUP_CONTROLLERS.exists():
        pytest.exit(
            "these tests need systemd and cgroup v2: sudo tests/guest/run.sh",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    if node._SESSION not in session.config.stash:
        node.pytest_collection_finish(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the node back; harmless when done twice."""
    node.pytest_unconfigure(config)


@pytest.fixture(scope="module", params=["systemd", "cgroupfs"])
def driver(request: pytest.FixtureRequest) -> str:
    """Who makes the cgroups."""
    return str(request.param)


@pytest.fixture(params=["runc", "crun"])
def handler(request: pytest.FixtureRequest) -> str:
    """Which runtime makes the containers."""
    return str(request.param)


@pytest.fixture(scope="module")
def daemon(driver: str, daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """A daemon with that driver; nothing of it may be left at its end, neither cgroup nor unit."""
    name = ""
    try:
        with daemons.without_leaks(settings={"cgroup_driver": driver}, archives=archives) as daemon:
            name = daemon.name
            yield daemon
    except leaks.LeakError as error:
        pytest.fail(str(error), pytrace=False)
    finally:
        # The slices that pods are put under are their owner's to remove, as the kubelet's are the kubelet's.
        systemd.stop(f"{name}.slice")
        systemd.stop(f"{name.rpartition('-')[0]}.slice")


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """The daemon, called; what a test leaves of its pods is removed."""
    yield daemon.client
    if daemon.pid is None:
        daemon.start()
    daemon.client.remove_all_pods()


@pytest.fixture(autouse=True)
def unit_guard() -> Iterator[None]:
    """Fail the test that leaves units of systemd behind."""
    before = set(systemd.units("cri-shim-*.scope", "cri-*.slice"))
    yield
    left = systemd.new_units(before, "cri-shim-*.scope", "cri-*.slice", settle_s=leaks.SETTLE_S)
    if left:
        pytest.fail(f"units left behind: {left}", pytrace=False)
