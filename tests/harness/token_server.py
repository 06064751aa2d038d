"""A token server for Debian's docker-registry: it signs tokens that the registry accepts, and records the requests.

Specs: distribution, "Token Authentication" and "OAuth2 Token Authentication". openssl(1) makes key and signatures.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

from aiohttp import BasicAuth, web

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

ISSUER = "the token server"
SERVICE = "the registry"
LEEWAY_S = 60
"""How long after its end docker-registry takes a token still."""


class TokenServer:
    """Serves on the loopback while it is open, by plain HTTP."""

    def __init__(self, directory: Path) -> None:
        self._key = directory / "token-key.pem"
        self.certificate = directory / "token-cert.pem"
        _make_certificate(self._key, self.certificate)
        self.users = {"me": "hunter2"}
        self.identity_token = "an identity"
        self.grants: set[str] = set()
        """Repositories that may be pulled by who has shown the right things."""
        self.public: set[str] = set()
        self.lifetime_s = 300.0
        self.asked: list[dict[str, str]] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/token", self._get)
        app.router.add_post("/token", self._post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.realm = f"http://127.0.0.1:{self._runner.addresses[0][1]}/token"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    @property
    def auth(self) -> str:
        """What a docker-registry has below `auth:` that shall believe this server."""
        return (
            f'{{token: {{realm: "{self.realm}", service: "{SERVICE}", issuer: "{ISSUER}", '
            f'rootcertbundle: "{self.certificate}"}}}}'
        )

    def sign(self, scope: str, *, known: bool = True) -> str:
        """A token for as much of `scope` as may be had."""
        kind, name, actions = scope.split(":")
        allowed = name in self.public or (known and name in self.grants)
        now = time.time()
        certificate = "".join(self.certificate.read_text().splitlines()[1:-1])
        header = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        access = [{"type": kind, "name": name, "actions": actions.split(",") if allowed else []}]
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "",
            "jti": "1",
            "access": access,
            "iat": int(now),
            "nbf": int(now) - 600,
            "exp": int(now + self.lifetime_s),
        }
        signed = f"{_packed(json.dumps(header).encode())}.{_packed(json.dumps(claims).encode())}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{signed}.{_packed(signature)}"

    async def _get(self, request: web.Request) -> web.Response:
        shown = request.headers.get("Authorization")
        asked = {"method": "GET", **request.query}
        known = False
        if shown is not None:
            pair = BasicAuth.decode(shown)
            asked["user"] = pair.login
            known = self.users.get(pair.login) == pair.password
            if not known:
                self.asked.append(asked)
                return web.json_response({"details": "incorrect username or password"}, status=401)
        return await self._give(asked, "token", known=known)

    async def _post(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        asked = {"method": "POST", **form}
        if form.get("refresh_token") != self.identity_token:
            self.asked.append(asked)
            return web.json_response({"error": "invalid_grant"}, status=400)
        return await self._give(asked, "access_token", known=True)

    async def _give(self, asked: dict[str, Any], field: str, *, known: bool) -> web.Response:
        self.asked.append(asked)
        token = await asyncio.to_thread(self.sign, asked["scope"], known=known)
        return web.json_response({field: token, "expires_in": int(self.lifetime_s)})


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _make_certificate(key: Path, certificate: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=tokens", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
