"""What the verbose forms of the status calls tell an operator."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from cri_shim.cni.result import Result, parse_result
from cri_shim.host.files import read_bounded
from cri_shim.sandbox.details import MAX_SHOWN_BYTES
from cri_shim.sandbox.network.details import network_details
from cri_shim.sandbox.store.model import NetworkAttachment
from tests.unit.sandbox.looking import exited, process_of

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.sandbox.store.store import Container, Sandbox
    from tests.fakes.node_harness import NodeHarness


@pytest.mark.asyncio
async def test_verbose_information_names_what_an_operator_looks_for(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    info = await harness.pods.verbose_info(sandbox)
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
    await harness.pods.stop_pod_sandbox(sandbox.id)
    info = await harness.pods.verbose_info(sandbox)
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
async def test_verbose_information_shows_the_spec_while_there_is_one(harness: NodeHarness) -> None:
    container = await harness.start(await harness.run_pod())
    info = await harness.containers.verbose_info(container)
    assert info["pid"] == process_of(harness, container).pid
    shown = json.loads(msgspec.json.encode(info))
    assert shown["mounts"] == shown["runtimeSpec"]["mounts"] != []
    assert shown["config"]["metadata"]["name"] == "main"
    harness.paths.container(container.id).spec_file.unlink()
    harness.kernel.end(process_of(harness, container).pid, 0)
    await exited(container)
    info = await harness.containers.verbose_info(container)
    assert (info["pid"], info["runtimeSpec"]) == (0, None)


async def container_shown(harness: NodeHarness, container: Container) -> dict[str, Any]:
    info = await harness.containers.verbose_info(container)
    return cast("dict[str, Any]", json.loads(msgspec.json.encode(info)))


async def pod_shown(harness: NodeHarness, sandbox: Sandbox) -> dict[str, Any]:
    info = await harness.pods.verbose_info(sandbox)
    return cast("dict[str, Any]", json.loads(msgspec.json.encode(info)))


@pytest.mark.asyncio
async def test_documents_are_read_off_the_loop(
    harness: NodeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    readers = []

    def read(path: Path, max_bytes: int) -> bytes:
        readers.append((path.name, threading.current_thread() is threading.main_thread()))
        return read_bounded(path, max_bytes)

    monkeypatch.setattr("cri_shim.sandbox.details.read_bounded", read)
    await harness.pods.verbose_info(sandbox)
    await harness.containers.verbose_info(container)
    assert readers == 2 * [("record.json", False), ("config.json", False)]


@pytest.mark.asyncio
async def test_in_place_of_a_large_document_a_text_says_where_it_is(harness: NodeHarness) -> None:
    sandbox = await harness.run_pod()
    container = await harness.create(sandbox)
    for paths in (harness.paths.sandbox(sandbox.id), harness.paths.container(container.id)):
        for file in (paths.record_file, paths.spec_file):
            text = file.read_bytes()
            file.write_bytes(text + b" " * (MAX_SHOWN_BYTES - len(text)))
    most = await container_shown(harness, container)
    assert most["config"]["metadata"]["name"] == "main"
    assert most["runtimeSpec"]["mounts"] == most["mounts"] != []
    assert (await pod_shown(harness, sandbox))["runtimeSpec"]["process"]["args"] == ["/pause"]
    for paths in (harness.paths.sandbox(sandbox.id), harness.paths.container(container.id)):
        for file in (paths.record_file, paths.spec_file):
            with file.open("ab") as end:
                end.write(b" ")
    of = harness.paths.container(container.id)
    shown = await container_shown(harness, container)
    assert shown["config"] == f"not shown: more than 4194304 bytes; see {of.record_file}"
    assert shown["runtimeSpec"] == f"not shown: more than 4194304 bytes; see {of.spec_file}"
    assert shown["mounts"] == shown["runtimeSpec"]
    assert shown["sandboxID"] == sandbox.id
    pod = await pod_shown(harness, sandbox)
    assert "record.json" in pod["config"]
    assert "config.json" in pod["runtimeSpec"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "damage", [b"", b"null", b"[", b'{"config": {"a": ', b'{"config": "\xff", "mounts": []}']
)
async def test_a_damaged_document_is_left_out(harness: NodeHarness, damage: bytes) -> None:
    container = await harness.create(await harness.run_pod())
    of = harness.paths.container(container.id)
    of.record_file.write_bytes(damage)
    whole_spec = await container_shown(harness, container)
    assert (whole_spec["config"], whole_spec["pid"]) == (None, process_of(harness, container).pid)
    assert whole_spec["runtimeSpec"]["process"]["args"] == ["sleep", "9"]
    of.spec_file.write_bytes(damage)
    neither = await container_shown(harness, container)
    assert (neither["config"], neither["runtimeSpec"], neither["mounts"]) == (None, None, [])


@pytest.mark.asyncio
async def test_what_is_removed_meanwhile_is_told_of_without_its_documents(
    harness: NodeHarness,
) -> None:
    sandbox = await harness.run_pod()
    container = await harness.start(sandbox)
    await harness.pods.remove_pod_sandbox(sandbox.id)
    shown = await container_shown(harness, container)
    assert (shown["config"], shown["runtimeSpec"], shown["mounts"]) == (None, None, [])
    pod = await pod_shown(harness, sandbox)
    assert (pod["config"], pod["runtimeSpec"], pod["reason"]) == (None, None, "stopped")
