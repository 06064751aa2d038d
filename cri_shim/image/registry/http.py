"""HTTP to one registry's servers: TLS, proxies, redirects, authorization; every error becomes a `ServerFailure`.

Rules:
- Authorization, headers from `hosts.toml` and client certificates go only to the server they are meant for. A redirect
  to another host, port or scheme does not get them, and can't ask for them: its challenge is ignored.
- A response is passed on with its body unread. A document's body is read up to a limit.
- The text of a `ServerFailure` is for operators. It never contains a URL, since URLs after a redirect are signed.
- This module imports aiohttp, so it is imported with the first pull.

Specs: distribution 1.1; RFC 9110 (redirects, Retry-After).
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import ssl
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from cri_shim import __version__
from cri_shim.image.registry.auth import Authorizer, TokenRequest, parse_challenges
from cri_shim.image.registry.errors import Fault, ServerFailure, registry_words
from cri_shim.image.registry.hosts import is_host
from cri_shim.image.registry.proxy import proxy_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
    from types import TracebackType

    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.image.registry.hosts import Endpoint

CONNECT_TIMEOUT_S = 30.0
_TOKEN_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5
_MAX_TOKEN_ANSWER_BYTES = 256 << 10
_MAX_ERROR_BYTES = 16 << 10
_READ_BUFFER_BYTES = 64 << 10
"""Per connection. aiohttp stops reading above twice that, until the blob's file has taken it. With more, turns of the
loop in which several connections are read get longer, and each call waits for some ten turns."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class RegistryHttp:
    """Connections to one registry's servers, for one pull. Use it with `async with`."""

    def __init__(
        self,
        credentials_for: Callable[[Endpoint], Credentials | None],
        scope: str,
        *,
        environment: Mapping[str, str],
    ) -> None:
        """`credentials_for` returns what an endpoint may be shown. `environment` names the proxies."""
        self._credentials_for = credentials_for
        self._scope = scope
        self._environment = environment
        self._authorizers: dict[str, Authorizer] = {}
        self._tls: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._session = aiohttp.ClientSession(
            # No limit of connections here, since downloads have slots. The threaded resolver uses the system's:
            # /etc/hosts, nsswitch.
            connector=aiohttp.TCPConnector(limit=0, resolver=aiohttp.ThreadedResolver()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            # Digests are of the stored bytes, so a Content-Encoding must not be decoded.
            auto_decompress=False,
            headers={"User-Agent": f"cri-shim/{__version__}", "Accept-Encoding": "identity"},
            # A cookie from one host of a redirect must not reach another.
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    @contextlib.asynccontextmanager
    async def request(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        patience_s: float | None,
        accepted: Collection[int] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to `method` on `path` below the endpoint's URL, after redirects, with a status in `accepted`.

        `patience_s` limits the time until the response begins.
        Raises ServerFailure, also for errors while the caller reads the body.
        """
        with _failures_of(endpoint):
            async with asyncio.timeout(patience_s):
                response = await self._authorized(endpoint, method, path, headers)
            try:
                if response.status not in accepted:
                    raise await self._failure_of(endpoint, response)
                yield response
            finally:
                # Also in the middle of a body: to read the rest of a layer costs more than a new connection.
                response.close()

    async def ask(self, endpoint: Endpoint, request: TokenRequest) -> bytes:
        """Send a request to a token server (`auth.TokenServer`)."""
        host = urlsplit(request.url).netloc
        headers = {"Authorization": request.authorization} if request.authorization else {}
        own = urlsplit(request.url).hostname == urlsplit(endpoint.url).hostname
        with _failures_of(endpoint, f"its token server {host}: "):
            async with (
                asyncio.timeout(_TOKEN_TIMEOUT_S),
                self._session.request(
                    "GET" if request.form is None else "POST",
                    URL(request.url).update_query(request.query),
                    data=request.form,
                    headers=headers,
                    allow_redirects=False,
                    ssl=await self._tls_for(endpoint, URL(request.url), own=own),
                    proxy=proxy_for(request.url, self._environment),
                ) as response,
            ):
                if response.status != 200:
                    raise await self._failure_of(endpoint, response, f"its token server {host}: ")
                return await read_bounded(response, _MAX_TOKEN_ANSWER_BYTES, endpoint)

    def _authorizer(self, endpoint: Endpoint) -> Authorizer:
        known = self._authorizers.get(endpoint.url)
        if known is None:
            known = Authorizer(endpoint, self._credentials_for(endpoint), self._scope, self)
            self._authorizers[endpoint.url] = known
        return known

    async def _authorized(
        self, endpoint: Endpoint, method: str, path: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The response, after answering a challenge if we can. The caller closes it."""
        authorizer = self._authorizer(endpoint)
        shown = authorizer.authorization
        response = await self._follow(endpoint, method, path, headers, shown)
        # Only the server itself may ask. After a redirect, the challenge is another host's.
        if response.status == 401 and response.url.origin() == URL(endpoint.url).origin():
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            try:
                better = await authorizer.answer(challenges, shown)
            except BaseException:
                response.close()
                raise
            if better:
                await _drain(response, endpoint)
                shown = authorizer.authorization
                response = await self._follow(endpoint, method, path, headers, shown)
        return response

    async def _follow(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> aiohttp.ClientResponse:
        """The first response that is no redirect. The caller closes it."""
        url = URL(endpoint.url + path, encoded=True)
        home = url.origin()
        for _ in range(_MAX_REDIRECTS + 1):
            own = url.origin() == home
            sent = [*headers.items()]
            if own:
                sent += endpoint.headers
                if authorization is not None:
                    sent.append(("Authorization", authorization))
            response = await self._session.request(
                method,
                url,
                # Redirects are followed in this loop: aiohttp would pass our headers on to the next host.
                headers=sent,
                allow_redirects=False,
                ssl=await self._tls_for(endpoint, url, own=own),
                proxy=proxy_for(str(url), self._environment),
            )
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            await _drain(response, endpoint)
            target = redirected(url, location)
            if target is None:
                raise ServerFailure(endpoint.origin, Fault.BROKEN, "it redirects to an invalid URL")
            url = target
        raise ServerFailure(
            endpoint.origin, Fault.BROKEN, f"it redirects more than {_MAX_REDIRECTS} times"
        )

    async def _tls_for(self, endpoint: Endpoint, url: URL, *, own: bool) -> ssl.SSLContext | bool:
        """aiohttp's `ssl` argument for `url`; True, its cheap default, if no TLS is involved.

        `own`: `url` is the endpoint itself. Other hosts get no client certificate and are always verified.
        """
        if url.scheme != "https" and proxy_for(str(url), self._environment) is None:
            return True
        key = (endpoint.url, own)
        context = self._tls.get(key)
        if context is None:
            # In a thread: loading the system's certificate authorities takes some 20 ms.
            try:
                context = await asyncio.to_thread(_tls_context, endpoint, own=own)
            except (OSError, ValueError) as error:
                raise ServerFailure(
                    endpoint.origin,
                    Fault.BROKEN,
                    f"a certificate or key that hosts.toml names for it can't be loaded: {error}",
                ) from error
            self._tls[key] = context
        return context

    def _what_was_shown(self, endpoint: Endpoint, *, token_server: bool) -> str:
        if self._credentials_for(endpoint) is None:
            return "the request had no credentials"
        if token_server or self._authorizer(endpoint).authorization is not None:
            return "the credentials were refused"
        return "the server offers no supported way to authenticate, so it was sent no credentials"

    async def _failure_of(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse, where: str = ""
    ) -> ServerFailure:
        status = response.status
        text = f"{where}{status} {response.reason or ''}".rstrip()
        body = b""
        if response.method != "HEAD":
            with contextlib.suppress(ServerFailure, aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(_TOKEN_TIMEOUT_S):
                    body = await read_bounded(response, _MAX_ERROR_BYTES, endpoint)
        if words := registry_words(body):
            text += f": {words}"
        elsewhere = response.url.origin() != URL(endpoint.url).origin()
        if elsewhere and not where and status in (401, 403, 404):
            # A storage host judges the redirect's signature, which may have expired; another attempt gets a new one.
            text = f"{response.url.host}, its storage: {text}"
            return ServerFailure(endpoint.origin, Fault.PASSING, text)
        if status == 404 and not where:
            return ServerFailure(endpoint.origin, Fault.MISSING, text)
        if status in (401, 403) or (where and status == 400):
            text += f" ({self._what_was_shown(endpoint, token_server=bool(where))})"
            return ServerFailure(endpoint.origin, Fault.REFUSED, text)
        if status in _PASSING:
            after_s = retry_after_s(response.headers.get("Retry-After", ""), time.time())
            return ServerFailure(endpoint.origin, Fault.PASSING, text, retry_after_s=after_s)
        return ServerFailure(endpoint.origin, Fault.BROKEN, text)


async def read_bounded(
    response: aiohttp.ClientResponse,
    max_bytes: int,
    endpoint: Endpoint,
    *,
    silence_s: float | None = None,
) -> bytes:
    """Read the whole body. Raises ServerFailure past `max_bytes`, TimeoutError after `silence_s` without a byte."""
    body = bytearray()
    while True:
        async with asyncio.timeout(silence_s):
            chunk = await response.content.readany()
        if not chunk:
            break
        body += chunk
        if len(body) > max_bytes:
            raise ServerFailure(
                endpoint.origin, Fault.DAMAGED, f"its answer exceeds {max_bytes} bytes"
            )
    return bytes(body)


def redirected(url: URL, location: str) -> URL | None:
    """The target of a redirect from `url`; None if it is invalid. Credentials in it are dropped."""
    try:
        target = url.join(URL(location, encoded=True)).with_user(None).with_fragment(None)
        sound = target.scheme in ("http", "https") and is_host(target.authority)
    except (ValueError, IndexError):  # yarl raises IndexError for "[::1]:8@"
        return None
    return target if sound and location else None


def retry_after_s(value: str, now_s: float) -> float:
    """The seconds that a `Retry-After` header asks for, given as a number or a date; 0 for anything else."""
    value = value.strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return 0.0


def _tls_context(endpoint: Endpoint, *, own: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for authority in endpoint.ca:
        context.load_verify_locations(authority)
    for certificate, key in endpoint.client if own else ():
        # An explicit password, since OpenSSL would otherwise prompt on the terminal for an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    if own and endpoint.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _drain(response: aiohttp.ClientResponse, endpoint: Endpoint) -> None:
    """Read a short body to its end, so that the connection can be reused; a long one costs the connection."""
    try:
        await read_bounded(response, _MAX_ERROR_BYTES, endpoint)
    except (ServerFailure, aiohttp.ClientError):
        pass  # the next request opens a new connection
    finally:
        response.close()


@contextlib.contextmanager
def _failures_of(endpoint: Endpoint, where: str = "") -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:
        fault, text = _describe(error)
        raise ServerFailure(endpoint.origin, fault, where + text, answered=False) from error


def _describe(error: Exception) -> tuple[Fault, str]:
    """Describe a connection's error without the URL, which is signed after a redirect."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", "") or "it can't be verified"
            return Fault.BROKEN, (
                f"its TLS certificate was rejected: {why}; if the certificate is right, set `ca` in hosts.toml"
            )
        case aiohttp.ClientConnectorSSLError():
            why = getattr(error.os_error, "reason", None) or str(error.os_error)
            return Fault.BROKEN, (
                f"the TLS handshake failed ({why}); a registry without TLS needs an http:// URL in hosts.toml"
            )
        case aiohttp.ClientConnectorDNSError():
            return Fault.PASSING, "its name has no address (DNS)"
        case aiohttp.ClientHttpProxyError():
            return Fault.BROKEN, f"the proxy answered {error.status} {error.message}"
        case aiohttp.ClientProxyConnectionError():
            return Fault.PASSING, "no connection to the proxy"
        case aiohttp.ClientConnectorError():
            return Fault.PASSING, f"no connection: {_plain(error.os_error)}"
        case aiohttp.ServerDisconnectedError():
            return Fault.PASSING, "it closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return Fault.PASSING, "the connection broke before the end"
        case TimeoutError():
            return Fault.PASSING, "no answer in time"
        case aiohttp.ClientResponseError():
            return Fault.BROKEN, "its answer is not HTTP"
        case OSError():
            return Fault.PASSING, _plain(error)
        case ValueError():
            return Fault.BROKEN, "its answer can't be parsed"
        case _:
            return Fault.BROKEN, type(error).__name__


def _plain(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
