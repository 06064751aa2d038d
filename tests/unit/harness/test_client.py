"""Requests as the kubelet would write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from tests.harness.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(tmp_path / "none.sock", log_dir=tmp_path / "pods", cgroup_parent="/x") as client:
        yield client


def test_each_pod_and_container_gets_a_name_of_its_own(client: Client) -> None:
    assert client.pod_config().metadata.name != client.pod_config().metadata.name
    first, second = client.container_config("i"), client.container_config("i")
    assert first.metadata.name != second.metadata.name


def test_pod_carries_ports_logs_and_cgroup_parent(client: Client, tmp_path: Path) -> None:
    config = client.pod_config("web", host_ports={8080: 80})
    [port] = config.port_mappings
    assert (port.host_port, port.container_port, port.protocol) == (8080, 80, api.TCP)
    assert config.log_directory == str(tmp_path / "pods/default_web_uid-web")
    assert config.linux.cgroup_parent == "/x"


def test_pod_on_the_hosts_network_says_so_and_has_no_hostname(client: Client) -> None:
    config = client.pod_config(host_network=True)
    assert config.linux.security_context.namespace_options.network == api.NODE
    assert config.hostname == ""


def test_container_environment_is_bytes_on_the_wire(client: Client) -> None:
    config = client.container_config("image:1", ["sh"], env={"A": "é"})
    assert config.envs[0].value == "é".encode()
    assert list(config.command) == ["sh"]
    assert config.log_path == f"{config.metadata.name}/0.log"


def test_daemon_that_is_not_there_is_not_serving(client: Client) -> None:
    assert not client.is_serving(timeout_s=0.2)
