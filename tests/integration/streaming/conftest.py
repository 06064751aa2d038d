"""A pod that stands for all tests of a module: what these tests look at is what comes and goes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.scene import Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.daemon import Daemon


@pytest.fixture(scope="module")
def pod(daemon: Daemon, image: str) -> Iterator[Pod]:
    """Don't ask for `client` beside it: that one takes all pods away after each test."""
    yield Pod.run(daemon.client, image)
    daemon.client.remove_all_pods()


@pytest.fixture(scope="module")
def container(pod: Pod) -> str:
    """A running container of it that does nothing."""
    container = pod.sleeper()
    pod.asks(container, "true")  # by now it is what it will be, also for the leak guard
    return container
