from __future__ import annotations

import asyncio
import ssl
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.registry.credentials import Credentials
from cri_shim.image.registry.errors import Fault, ServerFailure
from cri_shim.image.registry.hosts import Endpoint
from cri_shim.image.registry.http import RegistryHttp, read_bounded, retry_after_s
from tests.fakes.registry import Answer, FakeRegistry
from tests.images import file, layer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.asyncio

ME = Credentials("", "me", "hunter2")
MANIFEST = "/team/app/manifests/1"


@asynccontextmanager
async def http(
    credentials: Credentials | None = None, environment: Mapping[str, str] | None = None
) -> AsyncIterator[RegistryHttp]:
    async with RegistryHttp(
        lambda endpoint: credentials if endpoint.is_registry else None,
        "repository:team/app:pull",
        environment=environment or {},
    ) as made:
        yield made


async def get(made: RegistryHttp, endpoint: Endpoint, path: str = MANIFEST) -> bytes:
    async with made.request(endpoint, "GET", path, {}, patience_s=2) as response:
        return await read_bounded(response, 1 << 20, endpoint)


def endpoint(registry: FakeRegistry, *, is_registry: bool = True, **attributes: object) -> Endpoint:
    return Endpoint(f"{registry.url}/v2", is_registry=is_registry, **attributes)  # type: ignore[arg-type]


async def failure(made: RegistryHttp, where: Endpoint, path: str = MANIFEST) -> ServerFailure:
    with pytest.raises(ServerFailure) as caught:
        await get(made, where, path)
    return caught.value


async def test_a_registry_hears_who_asks_and_that_nothing_shall_be_packed(
    registry: FakeRegistry,
) -> None:
    pushed = registry.add("team/app", layer(file("a")), tag="1")
    async with http() as made:
        assert await get(made, endpoint(registry)) == pushed.manifest
    [seen] = registry.seen
    assert seen.headers["User-Agent"].startswith("cri-shim/")
    assert seen.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in seen.headers


async def test_basic_credentials_are_shown_when_asked_for() -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry, http(ME) as made:
        registry.add("team/app", layer(file("a")), tag="1")
        await get(made, endpoint(registry))
        await get(made, endpoint(registry))
        assert ["Authorization" in seen.headers for seen in registry.seen] == [False, True, True]


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        (None, "the request had no credentials"),
        (Credentials("", "me", "wrong7"), "the credentials were refused"),
    ],
)
async def test_a_refusal_says_what_to_do_and_no_secret(
    credentials: Credentials | None, said: str
) -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry, http(credentials) as made:
        refused = await failure(made, endpoint(registry))
    assert refused.fault is Fault.REFUSED
    assert "401" in str(refused)
    assert "authentication required" in str(refused)
    assert said in str(refused)
    assert "wrong7" not in str(refused)


@pytest.mark.parametrize("challenge", [{}, {"WWW-Authenticate": "Negotiate"}])
async def test_credentials_that_were_not_shown_were_not_refused(
    registry: FakeRegistry, challenge: dict[str, str]
) -> None:
    registry.faults.append(Answer("/manifests/", status=401, headers=challenge))
    async with http(ME) as made:
        refused = await failure(made, endpoint(registry))
    assert not any("Authorization" in seen.headers for seen in registry.seen)
    assert refused.fault is Fault.REFUSED
    assert "the server offers no supported way to authenticate" in str(refused)


async def test_a_mirror_sees_no_credentials() -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as mirror, http(ME) as made:
        refused = await failure(made, endpoint(mirror, is_registry=False))
        assert not any("Authorization" in seen.headers for seen in mirror.seen)
    assert refused.fault is Fault.REFUSED


@pytest.mark.parametrize("users", [None, {"me": "hunter2"}])
async def test_a_token_is_fetched_and_used_until_it_runs_out(
    users: Mapping[str, str] | None,
) -> None:
    async with FakeRegistry(tokens=True, users=users) as registry, http(ME) as made:
        registry.add("team/app", layer(file("a")), tag="1")
        await get(made, endpoint(registry))
        await get(made, endpoint(registry))
        assert registry.count("GET", "/token") == 1
        registry.revoke_tokens()
        await get(made, endpoint(registry))
        assert registry.count("GET", "/token") == 2
        [first, _] = registry.requests("GET", "/token")
    assert first.query == {"service": "reg", "scope": "given:by:registry"}


async def test_an_identity_token_is_exchanged_by_post() -> None:
    credentials = Credentials("", "", "", "identity")
    async with FakeRegistry(tokens=True) as registry, http(credentials) as made:
        registry.identity_token = "identity"
        registry.add("team/app", layer(file("a")), tag="1")
        await get(made, endpoint(registry))
        assert registry.count("POST", "/token") == 1


async def test_a_token_server_that_refuses_is_named() -> None:
    async with FakeRegistry(tokens=True, users={"me": "x"}) as registry, http(ME) as made:
        refused = await failure(made, endpoint(registry))
    assert refused.fault is Fault.REFUSED
    assert f"its token server {registry.host}: 401" in str(refused)
    assert "incorrect username or password (the credentials were refused)" in str(refused)


async def test_a_token_server_that_fails_may_be_asked_again() -> None:
    async with FakeRegistry(tokens=True) as registry, http() as made:
        registry.faults.append(Answer("/token", status=503, headers={"Retry-After": "7"}))
        registry.add("team/app", layer(file("a")), tag="1")
        failed = await failure(made, endpoint(registry))
        assert (failed.fault, failed.retry_after_s) == (Fault.PASSING, 7)
        await get(made, endpoint(registry))


async def test_a_huge_token_answer_is_not_read() -> None:
    async with FakeRegistry(tokens=True) as registry, http() as made:
        registry.faults.append(Answer("/token", status=200, body=b" " * (1 << 20)))
        failed = await failure(made, endpoint(registry))
    assert "its answer exceeds" in str(failed)


async def test_a_redirect_to_another_host_takes_nothing_secret_along() -> None:
    pushed = layer(file("a"))
    async with (
        FakeRegistry(basic=("me", "hunter2")) as registry,
        FakeRegistry() as store,
        http(ME) as made,
    ):
        registry.add("team/app", pushed, tag="1")
        store.blobs.update(registry.blobs)
        registry.blob_redirect = store.url
        where = endpoint(registry, headers=(("X-Secret", "s3cret"),))
        blob = await get(made, where, f"/team/app/blobs/{pushed.digest}")
        assert blob == pushed.blob
        [asked] = store.seen
        assert registry.seen[-1].headers["X-Secret"] == "s3cret"
    assert "Authorization" not in asked.headers
    assert "X-Secret" not in asked.headers


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_storage_host_that_refuses_may_be_asked_again(
    registry: FakeRegistry, status: int
) -> None:
    digest = registry.put_blob("x", b"x")["digest"]
    async with FakeRegistry() as storage, http() as made:
        storage.faults.append(Answer("/blobs/", status=status))
        registry.blob_redirect = storage.url
        failed = await failure(made, endpoint(registry), f"/team/app/blobs/{digest}?sig=s3cret")
    assert failed.fault is Fault.PASSING
    assert f"127.0.0.1, its storage: {status}" in str(failed)
    assert "s3cret" not in str(failed)


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_who_is_redirected_to_may_not_ask_who_we_are(scheme: str) -> None:
    async with (
        FakeRegistry(basic=("me", "hunter2")) as registry,
        FakeRegistry() as thief,
        http(ME) as made,
    ):
        [digest] = [registry.put_blob("x", b"x")["digest"]]
        challenge = f'{scheme} realm="{thief.url}/token",service="x"'
        thief.faults.append(Answer("/blobs/", 9, 401, headers={"WWW-Authenticate": challenge}))
        registry.blob_redirect = thief.url
        failed = await failure(made, endpoint(registry), f"/team/app/blobs/{digest}")
        assert "its storage: 401" in str(failed)
        assert thief.count("GET", "/token") == 0
        assert not any("Authorization" in seen.headers for seen in thief.seen)


async def test_a_redirect_on_the_same_host_keeps_the_authorization() -> None:
    async with FakeRegistry(basic=("me", "hunter2")) as registry, http(ME) as made:
        registry.add("team/app", layer(file("a")), tag="1")
        registry.faults.append(
            Answer("/old", times=2, status=302, headers={"Location": f"/v2{MANIFEST}"})
        )
        await get(made, endpoint(registry), "/old")


@pytest.mark.parametrize(
    "location",
    ["", "ftp://x/", "http://[/", "http://a:b@[::1]:8@", "http://x:99999/", "//a,b/"],
)
async def test_a_redirect_to_nowhere_is_a_complaint(registry: FakeRegistry, location: str) -> None:
    registry.faults.append(Answer("/1", status=307, headers={"Location": location}))
    async with http() as made:
        assert "it redirects to an invalid URL" in str(await failure(made, endpoint(registry)))


async def test_redirects_come_to_an_end(registry: FakeRegistry) -> None:
    registry.faults.append(
        Answer("/1", times=99, status=301, headers={"Location": f"/v2{MANIFEST}"})
    )
    async with http() as made:
        assert "redirects more than 5 times" in str(await failure(made, endpoint(registry)))
    assert len(registry.seen) == 6


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (404, Fault.MISSING),
        (401, Fault.REFUSED),
        (403, Fault.REFUSED),
        (429, Fault.PASSING),
        (500, Fault.PASSING),
        (503, Fault.PASSING),
        (400, Fault.BROKEN),
        (204, Fault.BROKEN),
        (418, Fault.BROKEN),
    ],
)
async def test_a_status_says_whether_another_try_helps(
    registry: FakeRegistry, status: int, fault: Fault
) -> None:
    registry.faults.append(Answer("/1", status=status))
    async with http() as made:
        failed = await failure(made, endpoint(registry))
    assert failed.fault is fault
    assert str(failed).startswith(f"{registry.url}: {status}")


async def test_an_answer_that_does_not_begin_is_given_up(registry: FakeRegistry) -> None:
    registry.put_blob("x", b"x")
    registry.paused = asyncio.Event()
    [digest] = registry.blobs
    async with http() as made:
        with pytest.raises(ServerFailure, match="no answer in time"):
            async with made.request(
                endpoint(registry), "GET", f"/a/blobs/{digest}", {}, patience_s=0.05
            ):
                pass
    registry.paused.set()


async def test_nobody_listening_is_told_in_words() -> None:
    async with http() as made:
        failed = await failure(made, Endpoint("http://127.0.0.1:1/v2"))
    assert str(failed) == "http://127.0.0.1:1: no connection: connection refused"
    assert failed.fault is Fault.PASSING


async def test_a_proxy_is_used_and_its_credentials_are_not_shown() -> None:
    environment = {"http_proxy": "http://me:hunter2@127.0.0.1:1"}
    async with http(environment=environment) as made:
        failed = await failure(made, Endpoint("http://r.example/v2"))
    assert str(failed) == "http://r.example: no connection to the proxy"


async def test_a_proxy_answers_for_the_registry(registry: FakeRegistry) -> None:
    pushed = registry.add("team/app", layer(file("a")), tag="1")
    async with http(environment={"HTTP_PROXY": registry.url}) as made:
        assert await get(made, Endpoint("http://r.example/v2")) == pushed.manifest
    assert registry.seen[0].headers["Host"] == "r.example"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:01:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:50 GMT", 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("9" * 400, 999999999.0),
    ],
)
async def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert retry_after_s(value, 100.0) == seconds


# TLS


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    directory = tmp_path_factory.mktemp("keys")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ),
            *("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return directory


@asynccontextmanager
async def tls_registry(keys: Path, *, client: bool = False) -> AsyncIterator[FakeRegistry]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    if client:
        context.load_verify_locations(keys / "cert.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    async with FakeRegistry(tls=context) as registry:
        registry.add("team/app", layer(file("a")), tag="1")
        yield registry


async def test_an_unknown_authority_is_refused_with_the_remedy(keys: Path) -> None:
    async with tls_registry(keys) as registry, http() as made:
        failed = await failure(made, endpoint(registry))
    assert failed.fault is Fault.BROKEN
    assert "its TLS certificate was rejected: self-signed certificate" in str(failed)
    assert "set `ca` in hosts.toml" in str(failed)


async def test_an_authority_of_the_file_is_accepted(keys: Path) -> None:
    async with tls_registry(keys) as registry, http() as made:
        await get(made, endpoint(registry, ca=(keys / "cert.pem",)))
        await get(made, endpoint(registry, skip_verify=True))


async def test_a_client_certificate_goes_to_its_own_host_only(keys: Path) -> None:
    async with (
        tls_registry(keys, client=True) as registry,
        tls_registry(keys, client=True) as other,
        http() as made,
    ):
        ca = (keys / "cert.pem",)
        known = endpoint(registry, ca=ca, client=((keys / "cert.pem", keys / "key.pem"),))
        await get(made, known)
        assert (await failure(made, endpoint(other, ca=ca))).fault in (
            Fault.BROKEN,
            Fault.PASSING,
        )
        registry.faults.append(
            Answer("/1", status=307, headers={"Location": f"{other.url}/v2{MANIFEST}"})
        )
        await failure(made, known)
        assert not other.seen


async def test_plain_http_behind_https_is_told_with_the_remedy(registry: FakeRegistry) -> None:
    async with http() as made:
        failed = await failure(made, Endpoint(f"https://{registry.host}/v2"))
    assert failed.fault is Fault.BROKEN
    assert "http:// URL in hosts.toml" in str(failed)


async def test_a_certificate_that_is_not_there_is_a_complaint(keys: Path) -> None:
    async with http() as made:
        failed = await failure(made, Endpoint("https://127.0.0.1:1/v2", ca=(keys / "none",)))
    assert "that hosts.toml names for it can't be loaded" in str(failed)
