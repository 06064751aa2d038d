"""Who gets in, with which words others are sent away, and what they can't do to the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ConfigError
from cri_shim.streaming import newcomers, server
from cri_shim.streaming.tls import ServerTls
from tests.fakes.clock import block_until
from tests.harness.streaming_client import (
    V4,
    PortForwardClient,
    RefusedError,
    RemoteCommandClient,
    dial,
    spdy_headers,
    websocket_headers,
)
from tests.unit.streaming.site import Site, site

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.clock import MovableClock


def refusal(url: str, headers: dict[str, str], method: str = "POST") -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        dial(url, headers, method=method)
    return refused.value


def test_a_ticket_is_for_one_use() -> None:
    with site() as node:
        url = node.exec_url("true")
        with RemoteCommandClient(url) as client:
            assert client.until_closed().exit_code == 0
        assert refusal(url, spdy_headers(V4)).status == 404


def test_a_ticket_is_for_one_kind_and_keeps_after_the_wrong_one() -> None:
    with site() as node:
        url = node.exec_url("true")
        assert refusal(url.replace("/exec/", "/attach/"), spdy_headers(V4)).status == 404
        with RemoteCommandClient(url) as client:
            assert client.until_closed().exit_code == 0


def test_a_client_may_try_another_protocol_with_the_same_ticket() -> None:
    with site() as node:
        url = node.exec_url("true")
        refused = refusal(url, websocket_headers("v9.channel.k8s.io"), "GET")
        assert refused.status == 403
        assert "v4.channel.k8s.io" in refused.text
        with RemoteCommandClient(url) as client:
            assert client.until_closed().exit_code == 0


@pytest.mark.parametrize("path", ["/", "/exec", "/exec/", "/exec/none", "/healthz", "/x/exec/a"])
def test_what_is_not_there_is_not_found(path: str) -> None:
    with site() as node:
        assert refusal(node.base + path, spdy_headers(V4)).status == 404


def test_a_request_that_wants_no_upgrade_is_told_what_is_missing() -> None:
    with site() as node:
        assert "Upgrade" in refusal(node.exec_url("true"), {}).text


def test_a_head_that_is_too_long_is_refused() -> None:
    with site() as node:
        assert refusal(node.base + "/exec/" + "x" * 70_000, {}).status in (414, 431)


def test_a_client_that_says_nothing_is_told_that_its_time_is_over(clock: MovableClock) -> None:
    with site() as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
            sock.sendall(b"GET / HT")
            wait_for_heads(node, 1)
            node.let_pass(clock, server.HEAD_TIMEOUT_S)
            assert b"408" in sock.recv(1000)
        block_until(lambda: not node.server.usage.newcomers)


def wait_for_heads(node: Site, count: int) -> None:
    block_until(lambda: node.server.usage.newcomers == count)


def test_the_oldest_silent_client_makes_room_once_it_had_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 3)
    monkeypatch.setattr(newcomers, "MIN_TIME_S", 1000.0)
    with site() as node:
        silent = [socket.create_connection(("127.0.0.1", node.port), timeout=5) for _ in range(3)]
        wait_for_heads(node, 3)
        silent.append(socket.create_connection(("127.0.0.1", node.port), timeout=5))
        for sock in silent:  # nobody has to go yet, and nobody more comes
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(10)
            sock.settimeout(5)
        monkeypatch.setattr(newcomers, "MIN_TIME_S", 0.0)
        assert silent[0].recv(10) == b""
        silent.append(socket.create_connection(("127.0.0.1", node.port), timeout=5))
        assert silent[1].recv(10) == b""
        with RemoteCommandClient(node.exec_url("true")) as client:
            assert client.until_closed().exit_code == 0
        for sock in silent:
            sock.close()
        block_until(lambda: not node.server.usage.newcomers)


def test_who_was_refused_is_counted_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "MAX_NEWCOMERS", 3)
    monkeypatch.setattr(newcomers, "MIN_TIME_S", 0.0)
    with site() as node:
        refused = []
        for _ in range(10):
            refused.append(socket.create_connection(("127.0.0.1", node.port), timeout=5))
            refused[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert refused[-1].recv(1000).startswith(b"HTTP/1.1 404 ")
            assert node.server.usage.newcomers <= 3
        for sock in refused:
            sock.close()
        block_until(lambda: not node.server.usage.newcomers)


def test_a_pod_has_its_share_of_sessions_and_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_SESSIONS", 3)
    monkeypatch.setattr(server, "MAX_SESSIONS_OF_A_POD", 2)
    with site() as node, contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        stack.enter_context(PortForwardClient(node.forward_url(sandbox="greedy")))
        first.enter_context(PortForwardClient(node.forward_url(sandbox="greedy")))
        with pytest.raises(RefusedError, match=r"429.*sandbox greedy has 2 streaming sessions"):
            PortForwardClient(node.forward_url(sandbox="greedy"))
        first.enter_context(PortForwardClient(node.forward_url(sandbox="modest")))
        with pytest.raises(RefusedError, match=r"503.*the node has 3 streaming sessions"):
            PortForwardClient(node.forward_url(sandbox="third"))
        assert len(node.backend.left) == 2, "what was refused is over"
        first.close()
        block_until(lambda: node.server.usage.requests == 1)
        stack.enter_context(PortForwardClient(node.forward_url(sandbox="greedy")))
        stack.enter_context(PortForwardClient(node.forward_url(sandbox="third")))


def test_streams_of_port_forwards_are_counted_for_all_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_STREAMS", 6)
    monkeypatch.setattr(server, "MAX_STREAMS_OF_A_POD", 4)
    headers = {"streamtype": "error", "port": "80"}

    def taken(client: PortForwardClient) -> None:
        for number in range(10):
            client.machine.open_stream({**headers, "requestid": str(number)})
        client.flush()

    with site() as node:
        with (
            PortForwardClient(node.forward_url(sandbox="greedy")) as first,
            PortForwardClient(node.forward_url(sandbox="greedy")) as second,
        ):
            taken(first)
            block_until(lambda: node.server.usage.streams == 4)
            taken(second)
            with PortForwardClient(node.forward_url(sandbox="modest")) as modest:
                taken(modest)
                block_until(lambda: node.server.usage.streams == 6)
        block_until(lambda: node.server.usage.streams == 0)


def test_a_proxys_part_of_the_path_may_stay() -> None:
    with site(prefix="/node-1/stream/") as node:
        url = node.exec_url("true").replace("stream//", "stream/")
        assert "/node-1/stream/exec/" in url
        with RemoteCommandClient(url) as client:
            assert client.until_closed().exit_code == 0
        with RemoteCommandClient(node.exec_url("true").replace("/node-1/stream//", "/")) as client:
            assert client.until_closed().exit_code == 0


def test_it_listens_on_ipv6_as_well() -> None:
    with site(address="::1") as node, RemoteCommandClient(node.exec_url("true")) as client:
        assert client.until_closed().exit_code == 0


def test_the_wildcard_of_ipv6_takes_ipv4_too() -> None:
    with site(address="::") as node:
        for host in ("127.0.0.1", "[::1]"):
            url = node.exec_url("true").replace("[::]", host)
            with RemoteCommandClient(url) as client:
                assert client.until_closed().exit_code == 0


def test_many_clients_at_once_are_all_served() -> None:
    with site() as node:
        clients = [node.exec("echo", str(number)) for number in range(40)]
        for number, client in enumerate(clients):
            with client:
                assert client.until_closed().stdout == b"%d\n" % number


# --- TLS -----------------------------------------------------------------------------------------------------------


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is not on PATH")
    directory = tmp_path_factory.mktemp("certificates")
    san = "subjectAltName=IP:127.0.0.1"
    for name in ("server", "renewed", "client"):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(
            directory,
            *("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", san),
        )
    return directory


def trusting(certificates: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / f"{name}.crt"))


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_sessions_over_tls_carry_many_megabytes_both_ways(
    certificates: Path, transport: str
) -> None:
    tls = ServerTls(certificates / "server.crt", certificates / "server.key", None)
    trust = trusting(certificates, "server")
    sent = os.urandom(1_000_000)
    with site(tls=tls) as node:
        url = node.exec_url("cat", stdin=True)
        with RemoteCommandClient(
            url, transport, protocol="v5.channel.k8s.io", stdin=True, tls=trust
        ) as client:
            for start in range(0, len(sent), 50_000):
                client.write(sent[start : start + 50_000])
                while len(client.stdout) + 200_000 < start:
                    client.receive()
            client.end_stdin()
            assert client.until_closed().exit_code == 0
            assert client.stdout == sent
        with PortForwardClient(node.forward_url(), transport, tls=trust) as forward:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                connection = forward.connect(listening.getsockname()[1])
                accepted, _ = listening.accept()
                with accepted:
                    accepted.sendall(b"hello")
                    forward.until(lambda: forward.received[connection] == b"hello")


def test_with_a_client_ca_only_its_clients_get_in(certificates: Path) -> None:
    tls = ServerTls(
        certificates / "server.crt", certificates / "server.key", certificates / "client.crt"
    )
    with site(tls=tls) as node:
        known = trusting(certificates, "server")
        known.load_cert_chain(certificates / "client.crt", certificates / "client.key")
        with RemoteCommandClient(node.exec_url("true"), tls=known) as client:
            assert client.until_closed().exit_code == 0
        url = node.exec_url("true")
        with pytest.raises((ssl.SSLError, ConnectionError, RefusedError)):
            RemoteCommandClient(url, tls=trusting(certificates, "server"))
        assert len(node.tickets) == 1


def test_a_client_without_tls_costs_nothing_but_its_connection(certificates: Path) -> None:
    tls = ServerTls(certificates / "server.crt", certificates / "server.key", None)
    with site(tls=tls) as node:
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(100):
                    pass
        block_until(lambda: not node.server.usage.newcomers)


def test_a_renewed_certificate_is_used_from_the_next_connection_on(
    certificates: Path, tmp_path: Path
) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def install(name: str) -> None:
        for suffix, file in (("crt", cert), ("key", key)):
            fresh = file.with_suffix(".new")
            shutil.copy(certificates / f"{name}.{suffix}", fresh)
            fresh.rename(file)

    install("server")
    with site(tls=ServerTls(cert, key, None)) as node:
        install("renewed")
        with RemoteCommandClient(
            node.exec_url("true"), tls=trusting(certificates, "renewed")
        ) as client:
            assert client.until_closed().exit_code == 0
        cert.write_text("nonsense")
        with RemoteCommandClient(
            node.exec_url("true"), tls=trusting(certificates, "renewed")
        ) as client:
            assert client.until_closed().exit_code == 0


@pytest.mark.parametrize("broken", ["cert", "client_ca"])
def test_certificates_that_cannot_be_used_are_named(
    certificates: Path, tmp_path: Path, broken: str
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    cert = bad if broken == "cert" else certificates / "server.crt"
    client_ca = bad if broken == "client_ca" else None
    with pytest.raises(ConfigError, match=r"streaming\.tls.*bad\.pem"):
        ServerTls(cert, certificates / "server.key", client_ca)


def test_stopping_ends_also_those_that_have_said_nothing() -> None:
    with site() as node:
        port = node.port
        sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        block_until(lambda: node.server.usage.newcomers)
        patience_s = 600  # longer than `await_` has
        node.await_(node.server.stop(patience_s))
        with sock:
            assert sock.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
