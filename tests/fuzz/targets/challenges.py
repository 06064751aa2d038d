"""What a registry answers to who asks: challenges, where they send our credentials, token answers, failures."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from yarl import URL

from cri_shim.image.registry.auth import Authorizer, TokenRequest, parse_challenges
from cri_shim.image.registry.credentials import Credentials
from cri_shim.image.registry.errors import Fault, ServerFailure, registry_words
from cri_shim.image.registry.hosts import Endpoint
from cri_shim.image.registry.http import redirected, retry_after_s
from cri_shim.image.registry.proxy import proxy_for
from tests.fuzz import assert_sound

SEEDS = [
    b'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull"',
    b'Basic realm="the \\"registry\\"", Bearer realm=https://auth.example/token',
    b'Negotiate abc==, Digest realm="x", nonce="y"',
    b'Bearer realm="http://127.0.0.1:80/token"\n{"token":"abc","expires_in":60}',
    b'Bearer realm="http://auth.example/"\n{"access_token":"a\\nb"}',
    b'Bearer realm="https://[",x\n{"errors":[{"code":"DENIED","message":"no\\u001b[2J"}]}',
    b'Bearer realm="http://[x",x\n{"token":null}\nFri, 31 Dec 1999 23:59:59 GMT',
    b"x\n\n120",
    b"x\n\n//storage.example:443/v2/b?sig=%2f#f",
    b"x\n\nhttp://a:b@[::1]:80/",
    b"x\n\nhttp://a:b@[::1]:8@",
    b'Bearer realm="http://127.0.0.1:80.token"',
]
WORDS = [
    *(b"Bearer ", b"Basic ", b'realm="', b"https://", b"http://", b"[::1]", b"127.0.0.1", b"\\"),
    *(b'"', b",", b"=", b"\n", b"@", b'{"token":"', b'"details":"', b"GMT", b"\xff", b"%00"),
]
MAX_BYTES = 2048
_LOOP = asyncio.new_event_loop()
_SECRET = "hunter2"
_TOKEN = "identity"


class _Server:
    """A token server that gives one answer, and sees where it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[TokenRequest] = []

    async def ask(self, endpoint: Endpoint, request: TokenRequest) -> bytes:
        self.asked.append(request)
        return self.answer


def fuzz(data: bytes) -> None:
    header, _, rest = data.partition(b"\n")
    body, _, late = rest.partition(b"\n")
    challenges = parse_challenges([header.decode("utf-8", "surrogateescape")])
    for challenge in challenges:
        assert challenge.scheme == challenge.scheme.lower()
        assert challenge.scheme.isprintable()
    for url in ("https://r.example/v2", "http://127.0.0.1:5000/v2"):
        for credentials in (None, Credentials("", "me", _SECRET), Credentials("", "", "", _TOKEN)):
            endpoint, server = Endpoint(url, is_registry=True), _Server(body)
            authorizer = Authorizer(endpoint, credentials, "repository:a:pull", server)
            try:
                better = _LOOP.run_until_complete(authorizer.answer(challenges, None))
            except ServerFailure as failure:
                assert_sound(failure, without=_SECRET)
            else:
                assert better == (authorizer.authorization is not None)
                shown = authorizer.authorization or ""
                assert shown.isprintable()
            for request in server.asked:
                _check(request, url)
    words = registry_words(body)
    assert words.isprintable()
    assert len(words) <= 300
    assert_sound(ServerFailure("r.example", Fault.PASSING, late.decode("utf-8", "replace")))
    target = redirected(URL("https://r.example/v2/a"), late.decode("utf-8", "surrogateescape"))
    if target is not None:
        assert urlsplit(str(target)).hostname == (target.raw_host or "").lower()
        assert target.user is None
        assert proxy_for(str(target), {}) is None
    assert retry_after_s(late.decode("latin-1"), 1e9) >= 0


def _check(request: TokenRequest, own: str) -> None:
    """Only to where a secret may go, and not in the URL."""
    parts = urlsplit(request.url)
    asked = URL(request.url).update_query(request.query)
    assert (asked.raw_host or "").lower() == parts.hostname
    assert (
        parts.scheme == "https"
        or (own.startswith("http:") and parts.hostname in ("127.0.0.1", "localhost", "::1"))
        or (own.startswith("http:") and (parts.hostname or "").startswith("127."))
    )
    assert parts.username is None
    assert _SECRET not in request.url
    assert _SECRET not in repr(request)
    assert _TOKEN not in " ".join(request.query.values()) or _TOKEN in request.url
