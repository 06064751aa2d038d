from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import (
    reflection_pb2,
    reflection_pb2_grpc,
)

from cri_shim._pb.admin.v1 import admin_pb2
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.config.model import TlsSettings
from cri_shim.errors import AlreadyExistsError, ConfigError
from tests.fakes.clock import turn_over
from tests.unit.rpc.fakes import Clients, Daemon, failure_of, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio

RUN = api.RunPodSandboxRequest(
    config=api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1")
    )
)


async def test_the_socket_is_there_with_its_mode_while_the_server_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, _):
        assert stat.S_IMODE(daemon.socket_path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["cri.sock"]
    assert not os.listdir(tmp_path)


async def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        second = Daemon(tmp_path)
        with pytest.raises(AlreadyExistsError):
            await second.listeners.start()
        await second.listeners.stop(0)
        await clients.runtime.Version(api.VersionRequest())


async def test_the_first_servers_stop_leaves_a_second_ones_socket(tmp_path: Path) -> None:
    async with serving(tmp_path) as (first, _):
        # As if an operator had moved the socket away and started another daemon.
        first.socket_path.rename(tmp_path / "old")
        async with serving(tmp_path) as (_, clients):
            await first.listeners.stop(0)
            await clients.runtime.Version(api.VersionRequest())


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "cri.sock"))
    async with serving(tmp_path) as (_, clients):
        await clients.runtime.Version(api.VersionRequest())


async def test_a_start_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "second").write_text("in the way")
    daemon = Daemon(tmp_path, urls=[f"unix://{tmp_path}/first", f"unix://{tmp_path}/second"])
    with pytest.raises(ConfigError, match="second exists and is not a socket"):
        await daemon.listeners.start()
    assert os.listdir(tmp_path) == ["second"]


async def test_every_listener_answers(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(10)]
    async with serving(tmp_path, urls=[f"unix://{path}" for path in paths]):
        for path in paths:
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await Clients(channel).runtime.Version(api.VersionRequest())


@pytest.mark.parametrize("count", [0, 11])
async def test_the_number_of_listeners_is_bounded(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigError, match="1 to 10"):
        Daemon(tmp_path, urls=tuple(f"unix://{tmp_path}/{n}" for n in range(count)))


async def test_the_same_listener_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        Daemon(tmp_path, urls=[f"unix://{tmp_path}/s"] * 2)


async def test_a_stop_lets_the_calls_inside_end_and_turns_others_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.hold = asyncio.Event()
        running = clients.runtime.RunPodSandbox(RUN)
        await daemon.pods.entered.wait()
        stopping = asyncio.ensure_future(daemon.listeners.stop(30))
        await turn_over()
        failure = await failure_of(clients.runtime.ListPodSandbox(api.ListPodSandboxRequest()))
        assert failure.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in (failure.details() or "")
        daemon.pods.hold.set()
        assert (await running).pod_sandbox_id
        assert await stopping == 0
        assert not daemon.socket_path.exists()


async def test_a_stop_cuts_off_what_takes_longer_than_its_grace_period(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, clients):
        daemon.pods.hold = asyncio.Event()
        running = asyncio.ensure_future(failure_of(clients.runtime.RunPodSandbox(RUN)))
        await daemon.pods.entered.wait()
        async with asyncio.timeout(10):
            assert await daemon.listeners.stop(0.05) == 1
        await running
        assert not daemon.socket_path.exists()


async def test_reflection_shows_every_service_of_both_versions(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, clients):
        names = await _services(clients.channel)
    assert {
        "runtime.v1.RuntimeService",
        "runtime.v1.ImageService",
        "runtime.v1alpha2.RuntimeService",
        "runtime.v1alpha2.ImageService",
        "cri_shim.admin.v1.Admin",
        "grpc.health.v1.Health",
    } <= names


async def test_a_network_listener_needs_all_of_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.cert is not set"):
        Daemon(tmp_path, urls=["tcp://127.0.0.1:0"])
    made = _certificates(tmp_path)
    half = TlsSettings(cert=made / "server.pem", key=made / "server.key")
    with pytest.raises(ConfigError, match=r"tls\.client_ca is not set"):
        Daemon(tmp_path, urls=["tcp://127.0.0.1:0"], tls=half)
    with pytest.raises(ConfigError, match=r"tls\.cert: .*No such file"):
        Daemon(
            tmp_path,
            urls=["tcp://127.0.0.1:0"],
            tls=TlsSettings(cert=tmp_path / "x", key=tmp_path / "x", client_ca=tmp_path / "x"),
        )


async def test_a_network_listener_serves_cri_to_clients_with_a_certificate_and_no_admin(
    tmp_path: Path,
) -> None:
    certificates = _certificates(tmp_path)
    tls = TlsSettings(
        cert=certificates / "server.pem",
        key=certificates / "server.key",
        client_ca=certificates / "ca.pem",
    )
    urls = [f"unix://{tmp_path}/cri.sock", "tcp://127.0.0.1:0"]
    async with serving(tmp_path, urls=urls, tls=tls) as (daemon, local):
        (port,) = daemon.listeners.tcp_ports
        # What one server knows of a method must not make another serve it.
        await local.admin.Info(admin_pb2.InfoRequest())
        async with _secure_channel(certificates, port, with_certificate=True) as channel:
            remote = Clients(channel)
            await remote.runtime.Version(api.VersionRequest())
            failure = await failure_of(remote.admin.Info(admin_pb2.InfoRequest()))
            assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "cri_shim.admin.v1.Admin" not in await _services(channel)
        async with _secure_channel(certificates, port, with_certificate=False) as channel:
            failure = await failure_of(
                Clients(channel).runtime.Version(api.VersionRequest(), timeout=5)
            )
            assert failure.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    certificates = _certificates(tmp_path)
    tls = TlsSettings(
        cert=certificates / "server.pem",
        key=certificates / "server.key",
        client_ca=certificates / "ca.pem",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = Daemon(tmp_path, urls=[f"tcp://{address}"], tls=tls)
        with pytest.raises(ConfigError, match=f"cannot bind {address}"):
            await daemon.listeners.start()


async def _services(channel: grpc.aio.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    answer = await call.read()
    call.cancel()
    return {service.name for service in answer.list_services_response.service}


def _secure_channel(certificates: Path, port: int, *, with_certificate: bool) -> grpc.aio.Channel:
    client: dict[str, Any] = {}
    if with_certificate:
        client = {
            "private_key": (certificates / "client.key").read_bytes(),
            "certificate_chain": (certificates / "client.pem").read_bytes(),
        }
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes(), **client)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials)


def _certificates(directory: Path) -> Path:
    """An authority, a server and a client, made by openssl(1)."""
    target = directory / "certificates"
    if target.exists():
        return target
    target.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=target, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=test authority"),
    )
    for name in ("server", "client"):
        openssl(
            *("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-copy_extensions", "copy", "-days", "2", "-out", f"{name}.pem"),
        )
    return target
