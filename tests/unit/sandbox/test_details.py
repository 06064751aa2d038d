"""What the verbose forms of the status calls tell an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.sandbox.looking import exited, process_of

if TYPE_CHECKING:
    from tests.fakes.house import House

pytestmark = pytest.mark.asyncio


async def test_verbose_information_names_what_an_operator_looks_for(house: House) -> None:
    sandbox = await house.run_pod()
    info = house.pods.verbose_info(sandbox)
    assert sandbox.status.process
    assert info["pid"] == sandbox.status.process.pid
    assert info["netns"] == sandbox.record.netns
    assert info["ips"] == ["10.0.0.2"]
    assert info["attachments"] == [{"network": "pods", "ifname": "eth0"}]
    assert isinstance(info["config"], dict)


async def test_verbose_information_shows_the_spec_while_there_is_one(house: House) -> None:
    container = await house.start(await house.run_pod())
    info = house.containers.verbose_info(container)
    assert info["pid"] == process_of(house, container).pid
    assert isinstance(info["runtimeSpec"], dict)
    house.paths.container(container.id).spec_file.unlink()
    house.kernel.end(process_of(house, container).pid, 0)
    await exited(container)
    info = house.containers.verbose_info(container)
    assert (info["pid"], info["runtimeSpec"]) == (0, None)
