"""A registry in this process on the loopback, with images in memory, and faults of servers.

async with FakeRegistry() as registry:
    image = registry.add("team/app", layer(file("motd", b"hello")), tag="1")
    registry.faults.append(Cut("/blobs/", after_bytes=1000))
    ... pull f"{registry.host}/team/app:1" ...
    assert registry.count("GET", "/blobs/") == 2
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from cri_shim.image.manifest import digest_of
from tests.images import config_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

    from tests.images import LayerBlob

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


@dataclass
class Fault:
    """Something that happens to the next requests whose path contains `where`."""

    where: str
    times: int = 1


@dataclass
class Answer(Fault):
    """An answer of another status."""

    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Cut(Fault):
    """The connection breaks after so many bytes of the body."""

    after_bytes: int = 0


@dataclass
class Stall(Fault):
    """After so many bytes nothing more comes."""

    after_bytes: int = 0


@dataclass
class Corrupt(Fault):
    """One byte of the body is another."""

    at: int = 0


@dataclass
class IgnoreRange(Fault):
    """The answer begins at the beginning, whatever was asked for."""


@dataclass
class BadRange(Fault):
    """Another answer than the range that was asked for."""

    status: int = 416
    content_range: str = ""


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str]


@dataclass(frozen=True)
class Pushed:
    """An image that is there."""

    manifest: bytes
    digest: str
    config_digest: str
    descriptor: dict[str, Any]


class FakeRegistry:
    """Serves while it is open."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        basic: tuple[str, str] | None = None,
        tokens: bool = False,
        users: Mapping[str, str] | None = None,
    ) -> None:
        """`basic`: user and password to show to it. `tokens`: it wants a token of its own token server.

        `users`: who may have one; with none given, anybody.
        """
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.identity_token = ""
        self.token_realm = ""
        self.blob_redirect = ""
        self.hide_digest = False
        self.prefix = "/v2"
        self.paused: asyncio.Event | None = None
        """Layers are not sent before it is set."""
        self.drip_s = 0.0
        """Layers come a byte at a time, with a pause of so much after each; in one piece from when it is 0 again."""
        self._tls = tls
        self._basic = basic
        self._wants_token = tokens
        self._users = users
        self._issued: set[str] = set()
        self._stalling = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/token", self._token)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stalling.set()
        await self._runner.cleanup()

    # What a test sets and asks

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def add(
        self,
        repository: str,
        *layers: LayerBlob,
        tag: str | None = None,
        media_type: str = MANIFEST_TYPE,
        **config: Any,
    ) -> Pushed:
        """Put an image there; `config` as in `tests.images.config_of`."""
        config_bytes = config_of(layers, **config)
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.put_blob("application/vnd.oci.image.config.v1+json", config_bytes),
            "layers": [self.put_blob(each.media_type, each.blob) for each in layers],
        }
        manifest = json.dumps(document).encode()
        descriptor = self.put_manifest(repository, manifest, media_type, tag)
        return Pushed(manifest, digest_of(manifest), digest_of(config_bytes), descriptor)

    def add_index(self, repository: str, *entries: Mapping[str, Any], tag: str) -> str:
        """Put an index there; its digest."""
        document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(entries)}
        data = json.dumps(document).encode()
        self.put_manifest(repository, data, INDEX_TYPE, tag)
        return digest_of(data)

    def put_blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def put_manifest(
        self, repository: str, data: bytes, media_type: str, tag: str | None = None
    ) -> dict[str, Any]:
        for name in filter(None, (digest_of(data), tag)):
            self.manifests[repository, name] = data, media_type
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    def requests(self, method: str, where: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and where in seen.path]

    def count(self, method: str, where: str) -> int:
        return len(self.requests(method, where))

    # What it does

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        await self._note(request)
        fault = self._fault(request.path)
        if isinstance(fault, Answer):
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if (refusal := self._refusal(request)) is not None:
            return refusal
        rest = request.path.removeprefix(self.prefix + "/")
        repository, _, name = rest.rpartition("/")
        repository, _, kind = repository.rpartition("/")
        if kind == "manifests":
            return self._manifest(request, repository, name, fault)
        if kind == "blobs" and name in self.blobs:
            if self.blob_redirect:
                raise web.HTTPTemporaryRedirect(f"{self.blob_redirect}{request.path}")
            return await self._blob(request, self.blobs[name], fault)
        return _missing("BLOB_UNKNOWN", "blob unknown to registry")

    def _manifest(
        self, request: web.Request, repository: str, name: str, fault: Fault | None
    ) -> web.Response:
        found = self.manifests.get((repository, name))
        if found is None:
            return _missing("MANIFEST_UNKNOWN", "manifest unknown")
        data, media_type = found
        headers = {} if self.hide_digest else {"Docker-Content-Digest": digest_of(data)}
        if isinstance(fault, Corrupt):
            data = _changed(data, fault.at)
        return web.Response(body=data, content_type=media_type, headers=headers)

    async def _blob(
        self, request: web.Request, data: bytes, fault: Fault | None
    ) -> web.StreamResponse:
        if self.paused is not None and not data.startswith(b"{"):
            await self.paused.wait()
        if isinstance(fault, BadRange):
            headers = {"Content-Range": fault.content_range} if fault.content_range else {}
            return web.Response(status=fault.status, body=data, headers=headers)
        start = 0
        wanted = request.headers.get("Range", "")
        if wanted and not isinstance(fault, IgnoreRange):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if isinstance(fault, Corrupt):
            data = _changed(data, fault.at)
        response.content_length = len(data) - start
        await response.prepare(request)
        body = data[start:]
        while self.drip_s and body and not data.startswith(b"{"):
            await response.write(body[:1])
            body = body[1:]
            await asyncio.sleep(self.drip_s)
        if isinstance(fault, Cut | Stall):
            await response.write(body[: fault.after_bytes])
            if isinstance(fault, Stall):
                await self._stalling.wait()
            if request.transport is not None:  # the client was not quicker
                request.transport.close()
            return response
        await response.write(body)
        await response.write_eof()
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        shown = request.headers.get("Authorization", "")
        if self._basic is not None:
            pair = base64.b64encode(":".join(self._basic).encode()).decode()
            if shown != f"Basic {pair}":
                return _unauthorized('Basic realm="the registry"')
        if self._wants_token and shown.removeprefix("Bearer ") not in self._issued:
            realm = self.token_realm or f"{self.url}/token"
            return _unauthorized(f'Bearer realm="{realm}",service="reg",scope="given:by:registry"')
        return None

    async def _token(self, request: web.Request) -> web.Response:
        seen = await self._note(request)
        fault = self._fault(request.path)
        if isinstance(fault, Answer):
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if request.method == "POST":
            if seen.form.get("refresh_token") != self.identity_token or not self.identity_token:
                return web.json_response({"details": "bad refresh token"}, status=401)
            return web.json_response({"access_token": self.issue()})
        if self._users is not None:
            pairs = {
                "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
                for user, password in self._users.items()
            }
            if request.headers.get("Authorization", "") not in pairs:
                return web.json_response({"details": "incorrect username or password"}, status=401)
        return web.json_response({"token": self.issue(), "expires_in": 60})

    def issue(self) -> str:
        """A token that it will accept."""
        token = secrets.token_hex(8)
        self._issued.add(token)
        return token

    def revoke_tokens(self) -> None:
        self._issued.clear()

    async def _note(self, request: web.Request) -> Seen:
        form: dict[str, str] = {}
        if request.method == "POST":
            form = {key: str(value) for key, value in (await request.post()).items()}
        seen = Seen(request.method, request.path, dict(request.headers), dict(request.query), form)
        self.seen.append(seen)
        return seen

    def _fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


def _changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _missing(code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=404)


def _unauthorized(challenge: str) -> web.Response:
    body = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
    return web.json_response(body, status=401, headers={"WWW-Authenticate": challenge})
