"""The integration tests' node: checked and isolated before the first test, watched for leaks around each.

- `daemon`: one real daemon for the whole session, and `client`, which takes its pods away after each test.
- `crash_daemon`: a daemon for one test, which may kill, stop, reconfigure and start it; `daemons` makes more of them.
- `leak_guard` is around every test here: a test that leaves something behind fails, under its own name.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.builtin import busybox_archive
from tests import images
from tests.harness import leaks, node
from tests.harness.daemon import Daemons
from tests.harness.isolation import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.client import Client
    from tests.harness.daemon import Daemon

HERE = Path(__file__).parent
IMAGE = "test.example/busybox:1"
UNPACKER_IS_WARM_S = 20.0
_SESSION = pytest.StashKey[Session]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands here is an integration test, marked or not: none slips into a run without root.

    Tests of the session's daemon come last: the ones before have a process without children to themselves.
    """
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)
    items.sort(key=lambda item: "daemon" in getattr(item, "fixturenames", ()))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test: is this machine fit, and then onto a node of our own."""
    if session.config.option.collectonly:
        return
    if not any("leak_guard" in getattr(item, "fixturenames", ()) for item in session.items):
        return
    lacking = node.missing()
    if lacking:
        pytest.exit(node.sentence(lacking), returncode=pytest.ExitCode.USAGE_ERROR)
    isolated = Session()
    isolated.claim()
    session.config.stash[_SESSION] = isolated
    isolated.enter()


def pytest_unconfigure(config: pytest.Config) -> None:
    """After everything: take away what is left, and the token."""
    isolated = config.stash.get(_SESSION, None)
    if isolated is not None:
        isolated.release()


@pytest.fixture(scope="session")
def daemons(pytestconfig: pytest.Config) -> Daemons:
    """Makes daemons that carry this session's token."""
    session = pytestconfig.stash[_SESSION]
    return Daemons(session.token, session.namespaces)


@pytest.fixture(scope="session")
def leak_scope(daemons: Daemons) -> leaks.Scope:
    """What belongs to this session."""
    return daemons.scope()


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest, leak_scope: leaks.Scope) -> Iterator[None]:
    """Fail the test that leaves something behind."""
    if "daemon" in request.fixturenames:
        request.getfixturevalue("keep_unpacking")()
    before = leaks.Snapshot.take(leak_scope)
    yield
    found = leaks.leaks_since(before, leak_scope)
    if found:
        pytest.fail(str(leaks.LeakError(found)), pytrace=False)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The image archives that every daemon of these tests starts with."""
    archive = tmp_path_factory.mktemp("archives") / "busybox.tar"
    archive.write_bytes(busybox_archive(IMAGE))
    return [archive]


@pytest.fixture(scope="session")
def image() -> str:
    """The image that most containers of these tests are made from: a static busybox."""
    return IMAGE


@pytest.fixture(scope="session")
def daemon(daemons: Daemons, archives: list[Path]) -> Iterator[Daemon]:
    """The session's daemon, warm: the first pod of a node brings things that stay, which are no leak."""
    daemon = daemons.create()
    try:
        daemon.start()
        daemon.warm_up(archives)
        yield daemon
    finally:
        daemons.destroy(daemon)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """The session's daemon, called; pods that the test leaves, also by failing, are removed the ordinary way."""
    yield daemon.client
    daemon.client.remove_all_pods()


@pytest.fixture
def crash_daemon(daemons: Daemons, archives: list[Path], image: str) -> Iterator[Daemon]:
    """A daemon of the test's own, checked for leaks after its pods are removed and it is stopped."""
    found = ""
    try:
        with daemons.without_leaks(archives=archives) as daemon:
            yield daemon
    except leaks.LeakError as error:
        found = str(error)
    if found:
        pytest.fail(found, pytrace=False)


@pytest.fixture(scope="module")
def keep_unpacking(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], None]:
    """Use the daemon's unpacker, unless that was done just now.

    It goes on for a minute after each use. So it runs before a test and after it, and is no test's leak.
    """
    name, archive = "test.example/warm:1", tmp_path_factory.mktemp("warm") / "warm.tar"
    used_s = -math.inf

    def keep() -> None:
        nonlocal used_s
        if time.monotonic() - used_s > UNPACKER_IS_WARM_S:
            layer = images.layer(images.file("warm", os.urandom(8)))
            archive.write_bytes(images.docker_archive(layer, tags=[name]))
            daemon.client.import_image(archive)
            daemon.client.remove_image(name)
            used_s = time.monotonic()

    return keep
