"""The crictl scripts' node: that of the integration tests, a registry, and a daemon that mirrors all others to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance import packages
from tests.conformance.crictl import Crictl, missing
from tests.conformance.images import BUSYBOX
from tests.conformance.mirror import Mirror
from tests.harness import node as machine
from tests.integration import conftest as node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.harness.daemon import Daemon, Daemons

HERE = Path(__file__).parent
_PACKAGES: pytest.StashKey[Mapping[str, Path]] = pytest.StashKey()

daemons = node.daemons
leak_scope = node.leak_scope
keep_unpacking = node.keep_unpacking
leak_guard = node.leak_guard


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands here needs crictl, marked or not: none slips into a run without."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.conformance)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test: what these tests need besides the node, of which packages need the machine's network."""
    if session.config.option.collectonly:
        return
    if not any(item.path.is_relative_to(HERE) for item in session.items):
        return
    if node._SESSION in session.config.stash:
        pytest.exit("conformance tests need a run of their own: pytest -m conformance")
    if lacking := missing("crictl"):
        pytest.exit(machine.sentence(lacking), returncode=pytest.ExitCode.USAGE_ERROR)
    try:
        session.config.stash[_PACKAGES] = packages.fetch()
    except packages.PackageError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    node.pytest_collection_finish(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the node back; harmless when done twice."""
    node.pytest_unconfigure(config)


@pytest.fixture(scope="session")
def mirror(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mirror]:
    """The registry that stands in for all others."""
    config_dir = tmp_path_factory.mktemp("registries")
    with Mirror(config_dir, pytestconfig.stash[_PACKAGES]) as mirror:
        yield mirror


@pytest.fixture(scope="session")
def daemon(daemons: Daemons, mirror: Mirror) -> Iterator[Daemon]:
    """The session's daemon, warm, with one image."""
    daemon = daemons.create(settings=mirror.settings())
    try:
        daemon.start()
        daemon.warm_up([])
        yield daemon
    finally:
        daemons.destroy(daemon)


@pytest.fixture(scope="session")
def image(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that is there all the time."""
    Crictl(daemon.socket, tmp_path_factory.mktemp("pull"))("pull", BUSYBOX)
    return BUSYBOX


@pytest.fixture
def crictl(image: str, daemon: Daemon, tmp_path: Path, leak_guard: None) -> Iterator[Crictl]:
    """crictl for one test; its pods and images are gone after it."""
    yield Crictl(daemon.socket, tmp_path)
    daemon.client.remove_all_pods()
