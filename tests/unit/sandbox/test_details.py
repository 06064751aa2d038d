"""What the verbose forms of the status calls tell an operator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from cri_shim.cni.result import Result, parse_result
from cri_shim.sandbox.details import network_details
from cri_shim.sandbox.model import NetworkAttachment
from tests.unit.sandbox.looking import exited, process_of

if TYPE_CHECKING:
    from tests.fakes.house import House


@pytest.mark.asyncio
async def test_verbose_information_names_what_an_operator_looks_for(house: House) -> None:
    sandbox = await house.run_pod()
    info = house.pods.verbose_info(sandbox)
    assert sandbox.status.process
    assert info["pid"] == sandbox.status.process.pid
    assert info["netns"] == sandbox.record.netns
    assert info["ips"] == ["10.0.0.2"]
    assert info["attachments"] == [{"network": "pods", "ifname": "eth0"}]
    assert [n["network"] for n in info["cniResult"]] == ["pods"]  # type: ignore[attr-defined]
    assert info["cgroup"] == f"cri-shim/{sandbox.id}"
    assert info["hostname"] == "web"
    assert info["readyAt"] == sandbox.status.ready_at_ns
    shown = json.loads(msgspec.json.encode(info))
    assert shown["resourcesUpdate"] == {}
    assert shown["runtimeSpec"]["process"]["args"] == ["/pause"]
    assert shown["config"]["metadata"]["name"] == "web"
    await house.pods.stop_pod_sandbox(sandbox.id)
    info = house.pods.verbose_info(sandbox)
    assert info["runtimeSpec"] is None
    assert (info["reason"], info["notReadySince"]) == ("stopped", sandbox.status.stopped_at_ns)


def test_every_interface_of_a_network_is_shown_with_its_addresses() -> None:
    answer = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
            {"name": "eth0-b", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
            {"address": "fd00::2/64", "interface": 1},
            {"address": "10.9.0.2/24", "interface": 2},
            {"address": "10.0.0.1/24", "interface": 0},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.96.0.10"], "search": []},
    }
    assert network_details(NetworkAttachment("pods", "eth0"), result_of(answer)) == {
        "network": "pods",
        "interface": "eth0",
        "attached": True,
        "interfaces": [
            {
                "name": "eth0",
                "mac": "02:00:00:00:00:02",
                "ips": [
                    {"address": "10.0.0.2/24", "gateway": "10.0.0.1"},
                    {"address": "fd00::2/64", "gateway": ""},
                ],
            },
            {"name": "eth0-b", "mac": "", "ips": [{"address": "10.9.0.2/24", "gateway": ""}]},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "::/0", "gw": ""}],
        "dns": {"nameservers": ["10.96.0.10"]},
    }


@pytest.mark.parametrize("version", ["0.2.0", "1.0.0"])
def test_an_address_without_an_interface_is_that_of_the_one_asked_for(version: str) -> None:
    interface = {"name": "net1", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"}
    answer = {
        "0.2.0": {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1"}},
        "1.0.0": {
            "cniVersion": "1.0.0",
            "interfaces": [interface],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}],
        },
    }[version]
    (shown,) = cast(
        "list[dict[str, object]]",
        network_details(NetworkAttachment("pods", "net1"), result_of(answer))["interfaces"],
    )
    assert shown["name"] == "net1"
    assert shown["ips"] == [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}]


def test_a_network_without_a_result_is_not_attached() -> None:
    assert network_details(NetworkAttachment("pods", "net1"), None) == {
        "network": "pods",
        "interface": "net1",
        "attached": False,
    }


def result_of(answer: object) -> Result:
    return parse_result(json.dumps(answer).encode(), cni_version="1.0.0")


@pytest.mark.asyncio
async def test_verbose_information_shows_the_spec_while_there_is_one(house: House) -> None:
    container = await house.start(await house.run_pod())
    info = house.containers.verbose_info(container)
    assert info["pid"] == process_of(house, container).pid
    shown = json.loads(msgspec.json.encode(info))
    assert shown["mounts"] == shown["runtimeSpec"]["mounts"] != []
    assert shown["config"]["metadata"]["name"] == "main"
    house.paths.container(container.id).spec_file.unlink()
    house.kernel.end(process_of(house, container).pid, 0)
    await exited(container)
    info = house.containers.verbose_info(container)
    assert (info["pid"], info["runtimeSpec"]) == (0, None)
