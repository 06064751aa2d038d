"""Answering a registry that asks who we are: basic credentials, or a token from the server that it names.

Rules:
- What is shown to a server is decided here, per server; the caller gives credentials only for the servers that they are
  for. An anonymous pull asks for a token as well: that is how public images are served.
- A token server is reached by https; by http only where the registry itself is, on the same host or both on the
  loopback. Anything else would let a registry send our credentials, or our requests, where it likes.
- Secrets stand in headers and bodies only: not in a URL, an error, or a `repr`.

Specs: distribution, "Token Authentication" (GET) and "OAuth2 Token Authentication" (POST); RFC 9110 §11.6.
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import msgspec

from cri_shim.errors import UNREADABLE_DOCUMENT
from cri_shim.image.registry.errors import Fault, ServerFailure
from cri_shim.image.registry.hosts import is_host, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.image.registry.hosts import Endpoint

CLIENT_ID = "cri-shim"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word for a word
_PARAMETER = re.compile(rf"({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")
_SCHEME = re.compile(rf"({_TOKEN})(?:\s+|$|(?=,))")
_GAP = re.compile(r"[\s,]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/=-]+\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove who we are: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """The challenges in `WWW-Authenticate` headers; what can't be read ends the header it stands in."""
    return [challenge for value in values for challenge in _parse(value)]


def _parse(value: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(value):
        gap = _GAP.match(value, at)
        at = gap.end() if gap else at
        parameter = _PARAMETER.match(value, at)
        if parameter and found:
            name, quoted, plain = parameter.groups()
            text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(name.lower(), text)
            at = parameter.end()
            continue
        scheme = _SCHEME.match(value, at)
        if scheme is None:
            token68 = _TOKEN68.match(value, at)
            if token68 is None:
                break
            at = token68.end()
            continue
        found.append((scheme.group(1).lower(), {}))
        at = scheme.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """What to ask of a token server."""

    url: str
    query: Mapping[str, str]
    """Of a GET."""
    form: Mapping[str, str] | None
    """The body of a POST; None for a GET."""
    authorization: str | None


class TokenServer(Protocol):
    """Asks a token server."""

    async def ask(self, endpoint: Endpoint, request: TokenRequest) -> bytes:
        """The body of its answer. Raises ServerFailure."""


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


class Authorizer:
    """What one server is shown, during one pull."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None,
        scope: str,
        tokens: TokenServer,
    ) -> None:
        """`credentials`: those that are for this server, if any. `scope` is asked for if it names none."""
        self._endpoint = endpoint
        self._credentials = credentials
        self._scope = scope
        self._tokens = tokens
        self._answering = asyncio.Lock()
        self.authorization: str | None = None
        """The header to send; None while the server has not asked."""
        if credentials is not None and credentials.registry_token:
            self.authorization = f"Bearer {credentials.registry_token}"

    async def answer(self, challenges: Sequence[Challenge], shown: str | None) -> bool:
        """The server refused `shown`: find something better, or learn that there is nothing (False).

        Raises ServerFailure when the token server refuses or can't be asked.
        """
        async with self._answering:
            if self.authorization != shown:
                return True  # another request was quicker
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            credentials = self._credentials
            if credentials is not None and credentials.registry_token:
                return False
            if "bearer" in by_scheme:
                self.authorization = await self._fetch_token(by_scheme["bearer"])
            elif "basic" in by_scheme and credentials is not None and credentials.username:
                self.authorization = _basic(credentials)
            return self.authorization != shown

    async def _fetch_token(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        asked = {"scope": challenge.parameters.get("scope") or self._scope}
        if service := challenge.parameters.get("service"):
            asked["service"] = service
        data = await self._tokens.ask(self._endpoint, self._request(realm, asked))
        try:
            answer = msgspec.json.decode(data, type=_TokenAnswer)
        except UNREADABLE_DOCUMENT as error:
            # The type of what is wrong, and where; never the token.
            raise self._broken(f"the answer of its token server makes no sense: {error}") from None
        token = answer.token or answer.access_token or ""
        if not token.isascii() or not token.isprintable() or not token:
            raise self._broken("its token server gave no token")
        return f"Bearer {token}"

    def _request(self, realm: str, asked: dict[str, str]) -> TokenRequest:
        credentials = self._credentials
        if credentials is not None and credentials.identity_token:
            form = {
                **asked,
                "grant_type": "refresh_token",
                "client_id": CLIENT_ID,
                "refresh_token": credentials.identity_token,
            }
            return TokenRequest(realm, {}, form, None)
        if credentials is not None and credentials.username:
            return TokenRequest(realm, asked, None, _basic(credentials))
        return TokenRequest(realm, asked, None, None)

    def _check_realm(self, realm: str) -> None:
        own = urlsplit(self._endpoint.url)
        try:
            parts = urlsplit(realm)
            sound = parts.scheme in ("http", "https") and is_host(parts.netloc)
            sound = sound and realm.isprintable()
        except ValueError:
            sound = False
        if not sound:
            raise self._broken("it names no token server that could be asked")
        near = parts.hostname == own.hostname or (
            is_loopback(parts.netloc) and is_loopback(own.netloc)
        )
        if parts.scheme == "http" and not (own.scheme == "http" and near):
            raise self._broken(
                f"it names a token server that is not on https, http://{parts.netloc}: it is not asked"
            )

    def _broken(self, text: str) -> ServerFailure:
        return ServerFailure(self._endpoint.origin, Fault.BROKEN, text)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
