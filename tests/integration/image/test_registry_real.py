"""Debian's docker-registry with everything that a site may ask for: passwords, tokens, TLS, mirrors, proxies."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.errors import RegistryAuthError, RegistryUnavailableError
from cri_shim.image.pull import Puller
from cri_shim.image.registry import client as registry_module
from cri_shim.image.registry.credentials import Credentials
from tests.fakes.registry import Answer, Corrupt, FakeRegistry
from tests.harness.fault_proxy import FaultProxy, Pause
from tests.harness.registry import docker_registry
from tests.harness.token_server import LEEWAY_S, TokenServer
from tests.images import directory, file, layer
from tests.integration.image.scene import files_of, hosts, settings, trees

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri_shim.image.store import ImageStore
    from tests.harness.registry import DockerRegistry

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

NOISE = layer(file("noise", random.Random(4).randbytes(900_000)), compression="gzip")
TOP = layer(directory("etc"), file("etc/motd", b"hello\n"), compression="zstd")
ME = Credentials("", "me", "hunter2")
HTPASSWD = "me:$2b$04$Z9YdPf4VJ77FbnQt9pyZZeCOxqN4pX9LqXbyHWSAWbUQlXKhUzMuq\n"
"""hunter2, at bcrypt's least cost."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="module")
def open_registry(place: Path) -> Iterator[DockerRegistry]:
    """Asks for nothing; has `team/app:1`, which all the others serve as well."""
    with docker_registry(place) as registry:
        registry.push("team/app", "1", NOISE, TOP, user="7")
        registry.push("team/secret", "1", TOP)
        yield registry


@pytest.fixture(scope="module")
def keys(place: Path) -> Path:
    """An authority of our own, a server's certificate, and a client's."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    made = [
        ("ca", "/CN=our own authority", ["-addext", "keyUsage=critical,keyCertSign"]),
        ("server", "/CN=r", ["-addext", "subjectAltName=IP:127.0.0.1,DNS:r.example"]),
        ("client", "/CN=node", []),
    ]
    for name, subject, more in made:
        signed = (
            [] if name == "ca" else ["-CA", str(place / "ca.pem"), "-CAkey", str(place / "ca.key")]
        )
        files = ["-keyout", str(place / f"{name}.key"), "-out", str(place / f"{name}.pem")]
        subprocess.run(
            ["openssl", "req", "-x509", *curve, "-subj", subject, *more, *signed, *files],
            check=True,
            capture_output=True,
        )
    return place


@pytest.fixture(scope="module")
def locked(place: Path, open_registry: DockerRegistry) -> Iterator[DockerRegistry]:
    """Wants a password."""
    (place / "htpasswd").write_text(HTPASSWD)
    auth = f'{{htpasswd: {{realm: "ours", path: "{place / "htpasswd"}"}}}}'
    with docker_registry(place, data=open_registry.data, auth=auth) as registry:
        yield registry


@pytest_asyncio.fixture
async def tokens(place: Path) -> AsyncIterator[TokenServer]:
    async with TokenServer(place) as server:
        server.grants.add("team/app")
        yield server


@pytest_asyncio.fixture
async def guarded(
    place: Path, open_registry: DockerRegistry, tokens: TokenServer
) -> AsyncIterator[DockerRegistry]:
    """Believes the token server."""
    with ExitStack() as stack:
        yield await asyncio.to_thread(
            stack.enter_context,
            docker_registry(place, data=open_registry.data, auth=tokens.auth),
        )


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_FIRST_PAUSE_S", 0.01)


@pytest_asyncio.fixture
async def puller(store: ImageStore, tmp_path: Path) -> AsyncIterator[Puller]:
    puller = Puller(store, settings(tmp_path))
    yield puller
    await puller.close(0)


async def test_a_password_opens_a_registry_and_nobody_else_s_does(
    puller: Puller, store: ImageStore, locked: DockerRegistry, tmp_path: Path
) -> None:
    name = f"{locked.host}/team/app:1"
    for credentials, words in (
        (None, "the request had no credentials"),
        (Credentials("", "me", "wrong7"), "the credentials were refused"),
        (Credentials("other.example", "me", "hunter2"), "the request had no credentials"),
    ):
        with pytest.raises(RegistryAuthError, match=words) as refused:
            await puller.pull(name, credentials)
        assert "authentication required" in str(refused.value)
        assert "wrong7" not in str(refused.value)
    assert files_of(tmp_path) == []
    image = await puller.pull(name, ME)
    assert trees(store, image)[0]["etc/motd"][-1] == b"hello\n"
    await store.remove(name)
    auths = {locked.host: {"auth": "bWU6aHVudGVyMg=="}, "other.example": {"auth": "eDp5"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    from_file = settings(tmp_path)
    from_file = type(from_file)(
        registry_config=from_file.registry_config, auth_file=tmp_path / "config.json"
    )
    puller.reconfigure(from_file)
    assert (await puller.pull(name)).id == image.id


async def test_a_token_server_decides_by_user_identity_and_repository(
    puller: Puller, store: ImageStore, guarded: DockerRegistry, tokens: TokenServer, tmp_path: Path
) -> None:
    name = f"{guarded.host}/team/app:1"
    scope = "repository:team/app:pull"
    for refused, words in (
        (None, "the request had no credentials"),
        (Credentials("", "me", "wrong7"), "incorrect username or password"),
        (Credentials("", identity_token="stolen"), "400"),
        (Credentials("", registry_token=tokens.sign("repository:team/other:pull")), "refused"),
    ):
        with pytest.raises(RegistryAuthError, match=words):
            await puller.pull(name, refused)
    assert files_of(tmp_path) == []
    tokens.asked.clear()
    for allowed in (
        ME,
        Credentials("", identity_token=tokens.identity_token),
        Credentials("", registry_token=tokens.sign(scope)),
    ):
        image = await puller.pull(name, allowed)
        await store.remove(image.id)
    by_user, by_identity = tokens.asked
    assert (by_user["method"], by_user["user"], by_user["scope"]) == ("GET", "me", scope)
    assert (by_identity["method"], by_identity["grant_type"]) == ("POST", "refresh_token")
    assert by_identity["client_id"] == "cri-shim"
    tokens.public.add("team/app")
    await puller.pull(name)
    with pytest.raises(RegistryAuthError):
        await puller.pull(f"{guarded.host}/team/secret:1", ME)


async def test_a_token_that_ends_while_a_layer_comes_is_replaced(
    puller: Puller, guarded: DockerRegistry, tokens: TokenServer, tmp_path: Path
) -> None:
    tokens.lifetime_s = 2.0 - LEEWAY_S
    async with FaultProxy(guarded.host) as proxy:
        hosts(tmp_path, "r.example", f'server = "http://{proxy.host}"')
        proxy.faults.append(Pause(NOISE.digest, after_bytes=200_000, seconds=2.2, then_cut=True))
        await puller.pull("r.example/team/app:1", ME)
        # Refused with the old token, then sent with the new one.
        assert proxy.ranges(NOISE.digest) == ["", "bytes=200000-", "bytes=200000-"]
    assert len(tokens.asked) == 2


async def test_our_own_authority_and_certificates_are_named_in_hosts_toml(
    puller: Puller, store: ImageStore, open_registry: DockerRegistry, keys: Path, tmp_path: Path
) -> None:
    tls = f'{{certificate: "{keys}/server.pem", key: "{keys}/server.key", clientcas: ["{keys}/ca.pem"]}}'
    with docker_registry(keys, data=open_registry.data, tls=tls) as registry:
        server = f'server = "https://{registry.host}"\n'
        client = f'client = [["{keys}/client.pem", "{keys}/client.key"]]\n'
        for text, words in (
            (server + client, "its TLS certificate was rejected"),
            (server + f'ca = "{keys}/ca.pem"\n', "."),
            (f'server = "http://{registry.host}"', "400 Bad Request"),
        ):
            hosts(tmp_path, "r.example", text)
            with pytest.raises(RegistryUnavailableError, match=words):
                await puller.pull("r.example/team/app:1")
            assert files_of(tmp_path) == []
        for trust in (f'ca = ["{keys}/ca.pem"]\n', "skip_verify = true\n"):
            hosts(tmp_path, "r.example", server + client + trust)
            image = await puller.pull("r.example/team/app:1")
            await store.remove(image.id)


async def test_mirrors_fail_over_one_after_the_other(
    puller: Puller, store: ImageStore, open_registry: DockerRegistry, tmp_path: Path
) -> None:
    async with (
        FakeRegistry() as empty,
        FaultProxy(open_registry.host) as bad,
        FaultProxy(open_registry.host) as good,
    ):
        bad.faults += [Corrupt(NOISE.digest, 9, at=1000), Answer(TOP.digest, 9, status=500)]
        lines = [f'[host."http://{host}"]' for host in ("127.0.0.1:1", empty.host, bad.host)]
        hosts(tmp_path, "r.example", f'server = "http://{good.host}"\n' + "\n".join(lines))
        image = await puller.pull("r.example/team/app:1")
        assert image.repo_tags == ("r.example/team/app:1",)
        assert trees(store, image)[0]["etc/motd"][-1] == b"hello\n"
        assert all(seen.query == {"ns": "r.example"} for seen in empty.seen)
        assert empty.count("GET", "/manifests/1") == 1
        assert good.ranges(NOISE.digest) == [""]
        assert not any("ns=" in seen.path for seen in good.seen)


async def test_a_redirect_and_a_realm_steal_nothing(
    puller: Puller, locked: DockerRegistry, guarded: DockerRegistry, tmp_path: Path
) -> None:
    async with FakeRegistry() as thief, FaultProxy(locked.host) as proxy:
        # It is sent there, and there asked to prove who it is, at the thief's own token server.
        challenge = f'Bearer realm="{thief.url}/token",service="x"'
        thief.faults.append(
            Answer("/steal", 99, status=401, headers={"WWW-Authenticate": challenge})
        )
        thief.faults.append(Answer("/basic", 99, status=401, headers={"WWW-Authenticate": "Basic"}))
        for where in ("steal", "basic"):
            proxy.faults[:] = [
                Answer(TOP.digest, 99, status=307, headers={"Location": f"{thief.url}/{where}"})
            ]
            with pytest.raises(RegistryUnavailableError, match="its storage: 401"):
                await puller.pull(f"{proxy.host}/team/app:1", ME)
            assert files_of(tmp_path) == []
        assert thief.count("GET", "/steal") > 0
        assert thief.count("GET", "/token") == 0
        assert not any("Authorization" in seen.headers for seen in thief.seen)
    async with FaultProxy(guarded.host) as proxy:
        realm = 'Bearer realm="http://thief.example/token",service="x"'
        proxy.faults.append(Answer("/v2/", 99, status=401, headers={"WWW-Authenticate": realm}))
        with pytest.raises(
            RegistryUnavailableError, match=r"token server http://thief\.example does not use https"
        ):
            await puller.pull(f"{proxy.host}/team/app:1", ME)


async def test_a_proxy_of_the_environment_tunnels_tls_and_passes_the_rest(
    puller: Puller,
    store: ImageStore,
    open_registry: DockerRegistry,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tls = f'{{certificate: "{keys}/server.pem", key: "{keys}/server.key"}}'
    with docker_registry(keys, data=open_registry.data, tls=tls) as registry:
        async with FaultProxy(registry.host) as secure, FaultProxy(open_registry.host) as plain:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{secure.host}")
            monkeypatch.setenv("http_proxy", plain.host)
            monkeypatch.setenv("NO_PROXY", "direct.example,.local")
            hosts(tmp_path, "r.example", f'server = "https://r.example"\nca = "{keys}/ca.pem"')
            image = await puller.pull("r.example/team/app:1")
            assert {seen.method for seen in secure.seen} == {"CONNECT"}
            await store.remove(image.id)
            hosts(tmp_path, "r.example", 'server = "http://r.example"')
            await puller.pull("r.example/team/app:1")
            assert plain.seen
            hosts(tmp_path, "direct.example", 'server = "http://direct.example"')
            plain.seen.clear()
            with pytest.raises(RegistryUnavailableError, match="its name has no address"):
                await puller.pull("direct.example/team/app:1")
            assert plain.seen == []
