from __future__ import annotations

import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.image.registry.auth import Authorizer, Challenge, TokenRequest, parse_challenges
from cri_shim.image.registry.credentials import Credentials
from cri_shim.image.registry.errors import Fault, ServerFailure
from cri_shim.image.registry.hosts import Endpoint

ME = Credentials("", "me", "hunter2")
BASIC = "Basic " + base64.b64encode(b"me:hunter2").decode()
HTTPS = Endpoint("https://r.example:5000/v2", is_registry=True)


@pytest.mark.parametrize(
    ("values", "challenges"),
    [
        (
            ['Bearer realm="https://a.example/token",service="r",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://a.example/token",
                        "service": "r",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (['basic Realm="a \\"b\\" c"'], [Challenge("basic", {"realm": 'a "b" c'})]),
        (
            ['Basic realm="x", Bearer realm=y , service = z'],
            [
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y", "service": "z"}),
            ],
        ),
        (["Negotiate", "Basic"], [Challenge("negotiate", {}), Challenge("basic", {})]),
        (
            ["NTLM abc/def+==, Basic realm=x"],
            [Challenge("ntlm", {}), Challenge("basic", {"realm": "x"})],
        ),
        ([""], []),
        (['"junk'], []),
        (
            ['Bearer realm="https://a", "junk", service=x'],
            [Challenge("bearer", {"realm": "https://a"})],
        ),
    ],
)
def test_challenges_are_read(values: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(values) == challenges


@given(st.lists(st.text(alphabet='Bearer ="\\,token68/+x\t', max_size=60), max_size=3))
def test_any_header_gives_challenges_and_no_error(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()


class Tokens:
    """A token server that gives what it is told to."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers) or [b'{"token": "t1"}', b'{"access_token": "t2"}']
        self.requests: list[TokenRequest] = []

    async def ask(self, endpoint: Endpoint, request: TokenRequest) -> bytes:
        await asyncio.sleep(0)
        self.requests.append(request)
        return self.answers[len(self.requests) - 1]


def authorizer(
    tokens: Tokens, credentials: Credentials | None = None, endpoint: Endpoint = HTTPS
) -> Authorizer:
    return Authorizer(endpoint, credentials, "repository:a:pull", tokens)


def bearer(realm: str = "https://auth.example/token", **parameters: str) -> list[Challenge]:
    return [Challenge("bearer", {"realm": realm, **parameters})]


@pytest.mark.asyncio
async def test_nothing_is_shown_before_it_is_asked_for() -> None:
    assert authorizer(Tokens(), ME).authorization is None


@pytest.mark.asyncio
async def test_basic_credentials_are_shown_once() -> None:
    own = authorizer(Tokens(), ME)
    assert await own.answer([Challenge("basic", {})], None)
    assert own.authorization == BASIC
    assert not await own.answer([Challenge("basic", {})], BASIC)


@pytest.mark.asyncio
async def test_an_anonymous_pull_has_no_answer_to_basic() -> None:
    own = authorizer(Tokens())
    assert not await own.answer([Challenge("basic", {})], None)
    assert not await own.answer([Challenge("negotiate", {})], None)


@pytest.mark.asyncio
async def test_an_anonymous_pull_asks_for_a_token_without_credentials() -> None:
    tokens = Tokens()
    own = authorizer(tokens)
    assert await own.answer(bearer(service="s", scope="repository:b:pull"), None)
    assert own.authorization == "Bearer t1"
    [request] = tokens.requests
    assert (request.form, request.authorization) == (None, None)
    assert request.query == {"service": "s", "scope": "repository:b:pull"}


@pytest.mark.asyncio
async def test_a_user_asks_for_a_token_with_basic_credentials() -> None:
    tokens = Tokens()
    own = authorizer(tokens, ME)
    assert await own.answer([Challenge("basic", {}), *bearer()], None)
    assert own.authorization == "Bearer t1"
    [request] = tokens.requests
    assert request.query == {"scope": "repository:a:pull"}
    assert request.authorization == BASIC
    assert "hunter2" not in repr(request)


@pytest.mark.asyncio
async def test_an_identity_token_is_exchanged_in_the_body_of_a_post() -> None:
    tokens = Tokens(b'{"access_token": "t"}')
    own = authorizer(tokens, Credentials("", "", "", "identity"))
    assert await own.answer(bearer(service="s"), None)
    [request] = tokens.requests
    assert request.query == {}
    assert request.form == {
        "grant_type": "refresh_token",
        "refresh_token": "identity",
        "client_id": "cri-shim",
        "service": "s",
        "scope": "repository:a:pull",
    }


@pytest.mark.asyncio
async def test_a_registry_token_is_shown_at_once_and_nothing_else_after_it() -> None:
    tokens = Tokens()
    own = authorizer(tokens, Credentials("", "me", "hunter2", "", "rt"))
    assert own.authorization == "Bearer rt"
    assert not await own.answer(bearer(), "Bearer rt")
    assert not tokens.requests


@pytest.mark.asyncio
async def test_a_token_that_ran_out_is_replaced_once_for_all_who_ask() -> None:
    tokens = Tokens()
    own = authorizer(tokens)
    await own.answer(bearer(), None)
    answers = await asyncio.gather(*(own.answer(bearer(), "Bearer t1") for _ in range(3)))
    assert answers == [True] * 3
    assert own.authorization == "Bearer t2"
    assert len(tokens.requests) == 2


@pytest.mark.parametrize(
    ("registry", "realm", "asked"),
    [
        ("https://r.example/v2", "https://anywhere.example/token", True),
        ("http://r.example/v2", "https://anywhere.example/token", True),
        ("http://r.example:5000/v2", "http://r.example:5001/token", True),
        ("http://127.0.0.1:5000/v2", "http://localhost:5001/token", True),
        ("https://r.example/v2", "http://r.example/token", False),
        ("http://r.example/v2", "http://evil.example/token", False),
        ("http://r.example/v2", "http://127.0.0.1/token", False),
        ("https://r.example/v2", "ftp://r.example/token", False),
        ("https://r.example/v2", "//r.example/token", False),
        ("https://r.example/v2", "https://u:p@evil.example/", False),
        ("https://r.example/v2", "https://evil.example\t/", False),
        ("https://r.example/v2", "", False),
        ("https://r.example/v2", "https://[/", False),
        ("http://127.0.0.1:80/v2", "http://127.0.0.1:80.token", False),
        ("http://127.0.0.1:80/v2", "http://127.0.0.1:80\\@evil.example/", False),
        ("https://r.example/v2", "https://a b/", False),
    ],
)
@pytest.mark.parametrize("credentials", [ME, None])
@pytest.mark.asyncio
async def test_a_token_server_is_near_or_on_https(
    registry: str, realm: str, asked: bool, credentials: Credentials | None
) -> None:
    tokens = Tokens()
    own = authorizer(tokens, credentials, Endpoint(registry, is_registry=True))
    if asked:
        assert await own.answer(bearer(realm), None)
        return
    with pytest.raises(ServerFailure, match="token server") as caught:
        await own.answer(bearer(realm), None)
    assert caught.value.fault is Fault.BROKEN
    assert not tokens.requests


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token": 5}',
        b'{"token": "\xff"}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nEvil: b"}',
        '{"token": "ü"}'.encode(),
    ],
)
@pytest.mark.asyncio
async def test_an_answer_without_a_token_is_a_complaint(answer: bytes) -> None:
    with pytest.raises(ServerFailure, match="token server"):
        await authorizer(Tokens(answer)).answer(bearer(), None)
