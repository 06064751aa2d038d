"""TLS for the streaming server: the context of new connections, loaded again when a file has changed.

Rules: if the new files can't be loaded, the old certificate stays in use, with one log line. Renegotiation is off.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import structlog

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger()


class ServerTls:
    """The server's certificate and key, and the CA whose clients are accepted."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Raises ConfigError for files that can't be used."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except ConfigError as error:
                log.error(
                    "streaming TLS files can't be loaded; keeping the old ones", error=str(error)
                )
            else:
                log.info("loaded new streaming TLS files", cert=str(self._cert))
        return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        """The identity of each file, which changes when the file is replaced or rewritten."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self._cert, self._key, self._client_ca):
            try:
                entry = path.stat() if path is not None else None
            except OSError:
                entry = None
            found.append(entry and (entry.st_ino, entry.st_size, entry.st_mtime_ns))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"streaming.tls: {self._cert} and {self._key} can't be loaded: {error}"
            ) from error
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"streaming.tls.client_ca: {self._client_ca} can't be loaded: {error}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _no_password() -> str:
    """Refuse an encrypted key: without this, OpenSSL would prompt on the terminal."""
    raise ValueError("the key is encrypted")
