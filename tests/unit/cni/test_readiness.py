"""The default network's readiness as its plugins tell it: asked in the background, remembered in between."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni import readiness
from tests.fakes.clock import turn_over, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.clock import MovableClock
    from tests.unit.cni.conftest import Node

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def followed(node: Node) -> AsyncIterator[None]:
    task = asyncio.ensure_future(node.cni.follow_status())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_networks_before_version_1_1_are_not_asked(node: Node, clock: MovableClock) -> None:
    async with followed(node):
        assert node.cni.status.ready
        await clock.sleep(3 * readiness.READY_INTERVAL_S)
    assert node.calls() == []


async def test_a_network_is_not_ready_until_its_plugins_have_answered(node: Node) -> None:
    node.configure(version="1.1.0")
    before = node.cni.status
    assert (before.ready, before.reason) == (False, "NetworkPluginNotReady")
    assert "have not answered STATUS yet" in before.message
    async with followed(node):
        await until(lambda: node.cni.status.ready)
        asked = len(node.calls())
        for _ in range(50):
            assert node.cni.status.ready
        await turn_over()
    assert len(node.calls()) == asked


@pytest.mark.parametrize(("code", "more"), [(50, ""), (51, "may have limited connectivity")])
async def test_the_plugins_own_words_are_the_message_and_its_recovery_is_noticed(
    node: Node, code: int, more: str, clock: MovableClock
) -> None:
    node.configure(version="1.1.0")
    node.script("second", STATUS={"do": "fail", "code": code, "msg": "agent not running"})
    async with followed(node):
        await until(lambda: "agent not running" in node.cni.status.message)
        status = node.cni.status
        assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
        assert f"(code {code})" in status.message
        assert more in status.message
        # A pod may be tried all the same: ADD tells the truth.
        assert node.cni.default_network().name == "pods"
        node.script("second")
        clock.move(readiness.FIRST_RETRY_S)
        await until(lambda: node.cni.status.ready)


async def test_ready_plugins_are_asked_again_now_and_then(node: Node, clock: MovableClock) -> None:
    node.configure(version="1.1.0")
    async with followed(node):
        await until(lambda: node.cni.status.ready)
        node.script("first", STATUS={"do": "crash"})
        clock.move(readiness.READY_INTERVAL_S)
        await until(lambda: "SIGSEGV" in node.cni.status.message)


async def test_a_changed_network_is_asked_at_once(node: Node) -> None:
    node.configure(version="1.1.0")
    async with followed(node):
        await until(lambda: node.cni.status.ready)
        node.script("first", STATUS={"do": "fail", "code": 50, "msg": "not for this one"})
        node.configure(version="1.1.0", disableCheck=True)
        await until(lambda: "not for this one" in node.cni.status.message)
        node.configure(version="1.0.0")
        assert node.cni.status.ready
