"""The head of a streaming request, and plain HTTP responses to it.

Rules:
- One request per connection, without a body. What follows the head belongs to the upgraded protocol (`leftover`).
- h11 parses the head (RFC 9112). Its size and number of lines are limited here, before h11 gets the bytes.
- A response that is not an upgrade is a short text, and closes the connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import h11

from cri_shim.streaming.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.streaming.wire.buffers import Buffer

MAX_HEAD_BYTES = 16 << 10
"""Go's clients send less than 1 KiB. Ordinary servers allow 8 to 16."""
MAX_HEAD_LINES = 128
"""A line costs some ten microseconds, however short it is."""
MAX_ERROR_BODY_BYTES = 4 << 10
MAX_QUERY_FIELDS = 256
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A request head. Header names are in lower case, values decoded as ISO 8859-1."""

    method: str
    target: str
    http_version: str
    headers: tuple[tuple[str, str], ...]
    path: str = field(default="")
    query: str = field(default="")

    def headers_named(self, name: str) -> list[str]:
        """The values of all headers with this lower-case name, in order."""
        return [value for key, value in self.headers if key == name]

    def list_named(self, name: str) -> list[str]:
        """The members of a comma-separated list, which may span several headers."""
        values = (part.strip() for value in self.headers_named(name) for part in value.split(","))
        return [value for value in values if value]

    def has_token(self, name: str, token: str) -> bool:
        """Whether such a list has this member, ignoring case."""
        return any(member.lower() == token for member in self.list_named(name))

    def parsed_query(self) -> dict[str, list[str]]:
        """The fields of the query, each with all its values.

        Raises: ProtocolError for more than `MAX_QUERY_FIELDS` fields.
        """
        try:
            return parse_qs(self.query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError as e:
            raise ProtocolError(f"query string: {e}") from e


class RequestReader:
    """Collects a connection's bytes until the head is complete."""

    def __init__(self, *, max_bytes: int = MAX_HEAD_BYTES) -> None:
        """A head may have `max_bytes`."""
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max_bytes)
        self._max_bytes = self._room = max_bytes
        self._lines = MAX_HEAD_LINES
        self._end_of_last = b""
        self.leftover: Buffer = b""
        """The bytes after the head, once it is complete."""

    def receive_data(self, data: Buffer) -> Request | None:
        """The request once its head is complete; None while bytes are missing.

        Raises: ProtocolError with the HTTP status to send. The connection can't be used after it.
        """
        if not data:
            return None
        head, behind = bytes(data[: self._room]), data[self._room :]
        self._room -= len(head)
        self._count_lines(head)
        if head:
            self._connection.receive_data(head)
        event = self._next_event()
        if not isinstance(event, h11.Request):
            if behind:
                raise ProtocolError(
                    f"request head of more than {self._max_bytes} bytes", http_status=431
                )
            return None
        if _has_body(event) or not isinstance(self._next_event(), h11.EndOfMessage):
            raise ProtocolError("a request for an upgrade must not have a body")
        self.leftover = self._connection.trailing_data[0] + bytes(behind)
        return _request(event)

    def _count_lines(self, piece: bytes) -> None:
        """Count the lines of the head, up to the empty line that ends it."""
        before, text = len(self._end_of_last), self._end_of_last + piece
        self._end_of_last = text[-2:]
        ends = [end for end in (text.find(b"\n\r\n"), text.find(b"\n\n")) if end >= 0]
        self._lines -= text.count(b"\n", before, min(ends, default=len(text)))
        if self._lines < 0:
            raise ProtocolError(
                f"request head of more than {MAX_HEAD_LINES} lines", http_status=431
            )

    def receive_eof(self) -> None:
        """The connection has ended before the head was complete.

        Raises: ProtocolError if part of a head was received. A connection that never sent a byte is no error.
        """
        if self._room < self._max_bytes:
            raise ProtocolError("the connection ended within the request head")

    def _next_event(self) -> object:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as e:
            raise ProtocolError(f"bad request: {e}", http_status=e.error_status_hint or 400) from e


def _has_body(event: h11.Request) -> bool:
    """Whether the headers announce a body: independent of how much of it has arrived."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in event.headers
    )


def _request(event: h11.Request) -> Request:
    http_version = event.http_version.decode("latin-1")
    if http_version not in ("1.0", "1.1"):
        raise ProtocolError(f"HTTP/{http_version} is not supported", http_status=505)
    target = event.target.decode("latin-1")
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        # The absolute form, which servers must accept (RFC 9112 §3.2.2).
        scheme, separator, rest = path.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise ProtocolError("the request target must be a path")
        path = "/" + rest.partition("/")[2]
    return Request(
        method=event.method.decode("latin-1"),
        target=target,
        http_version=http_version,
        headers=tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers),
        path=path,
        query=query,
    )


def response_head(
    http_status: int, content_type: str, body: bytes, headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """The head of a response with this body that closes the connection."""
    return _head(
        http_status,
        [
            ("Content-Type", content_type),
            ("X-Content-Type-Options", "nosniff"),  # a text may quote the client
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *headers,
        ],
    )


def error_response(
    http_status: int, message: str, headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """A complete response that closes the connection: the message as text, and additional `headers`."""
    body = message.encode("utf-8", "replace")[:MAX_ERROR_BODY_BYTES] + b"\n"
    return response_head(http_status, TEXT, body, headers) + body


def error_answer(error: ProtocolError) -> bytes:
    """The response to a refused request."""
    return error_response(error.http_status, str(error), error.headers)


def switching_protocols(protocol: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """The 101 response, after which the connection speaks `protocol`."""
    return _head(101, [("Connection", "Upgrade"), ("Upgrade", protocol), *headers])


def _head(http_status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {http_status} {HTTPStatus(http_status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
