"""Authorize at a registry: basic credentials, or a token from the token server that the registry names.

Rules:
- This module decides per server what the server is shown. The caller passes only credentials that are meant for the
  server. An anonymous pull asks for a token too: registries serve public images that way.
- A token server must use https. http is allowed only if the registry itself uses http, on the same host or both on the
  loopback. Otherwise a registry could send our credentials, or our requests, anywhere.
- Secrets appear in headers and bodies only: not in a URL, an error, or a `repr`.

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
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's `token`, a syntax element
_PARAMETER = re.compile(rf"({_TOKEN})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")
_SCHEME = re.compile(rf"({_TOKEN})(?:\s+|$|(?=,))")
_GAP = re.compile(r"[\s,]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/=-]+\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: a scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """The challenges in `WWW-Authenticate` headers. The rest of a header after a syntax error is ignored."""
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
    """A request to a token server."""

    url: str
    query: Mapping[str, str]
    """The query of a GET."""
    form: Mapping[str, str] | None
    """The body of a POST; None for a GET."""
    authorization: str | None


class TokenServer(Protocol):
    """Sends requests to token servers."""

    async def ask(self, endpoint: Endpoint, request: TokenRequest) -> bytes:
        """The body of the response. Raises ServerFailure."""


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None


class Authorizer:
    """The authorization that one server is shown, during one pull."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None,
        scope: str,
        tokens: TokenServer,
    ) -> None:
        """`credentials` are those meant for this server, if any. `scope` is used if the challenge names none."""
        self._endpoint = endpoint
        self._credentials = credentials
        self._scope = scope
        self._tokens = tokens
        self._answering = asyncio.Lock()
        self.authorization: str | None = None
        """The Authorization header to send; None until the server asks."""
        if credentials is not None and credentials.registry_token:
            self.authorization = f"Bearer {credentials.registry_token}"

    async def answer(self, challenges: Sequence[Challenge], shown: str | None) -> bool:
        """The server refused `shown`: obtain a better authorization. Returns False if there is none.

        Raises ServerFailure when the token server refuses or can't be reached.
        """
        async with self._answering:
            if self.authorization != shown:
                return True  # another request has obtained one meanwhile
            # Reversed: of two challenges with one scheme, the first counts.
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
            # msgspec's text has the type and the position of the error, never a value.
            raise self._broken(f"the answer of its token server can't be parsed: {error}") from None
        token = answer.token or answer.access_token or ""
        if not token.isascii() or not token.isprintable() or not token:
            raise self._broken("its token server returned no token")
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
            raise self._broken("it names no valid token server (realm)")
        near = parts.hostname == own.hostname or (
            is_loopback(parts.netloc) and is_loopback(own.netloc)
        )
        if parts.scheme == "http" and not (own.scheme == "http" and near):
            raise self._broken(
                f"its token server http://{parts.netloc} does not use https, so it gets no credentials"
            )

    def _broken(self, text: str) -> ServerFailure:
        return ServerFailure(self._endpoint.origin, Fault.BROKEN, text)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
