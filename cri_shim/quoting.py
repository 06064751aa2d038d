"""Quotes, bounds and redacts untrusted text for error messages.

Rules:
- An error message includes a value of a request, an image, a plugin or a runtime only through `quoted`, unless an
  earlier check bounds it. So a message is short, however long the value is.
- Text is cut before it is redacted, so that the work is bounded. A cut may remove the end that identifies a secret, so
  text at a cut that may begin a secret is hidden as well.
- Every pattern runs in linear time: attempts from different starts do not read the same text twice.
"""

from __future__ import annotations

import re
from typing import Final

MAX_QUOTED_CHARS: Final = 200
"""The longest value in a message: enough to recognise it."""
MAX_TEXT_CHARS: Final = 16384
"""The longest message, in case a value was not `quoted`."""

# Authorization: Basic dXNlcjpwYXNz
_AUTHORIZATION: Final = re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;]+", re.IGNORECASE)
# https://user:password@host
_USER_OF_URL: Final = re.compile(r"(://)[^\s/@\"']+@")
_CUT_USER_OF_URL: Final = re.compile(r"(://)[^\s/@\"']+\Z")
# https://host/path?sig=… : signed URLs of blob stores. URLs without a query match as well, so that each is read once.
_QUERY_OF_URL: Final = re.compile(r"(://[^\s?\"']+)(\?[^\s\"']+)?")
# "auth": "…", password=…, identity_token: …; not the file in "/etc/passwd: not a directory"
_NAMED_SECRET: Final = re.compile(
    r"((?<![\w/.-])(?:auth|authorization|password|passwd|secret|client_secret|"
    r"(?:access_|refresh_|identity_?|registry_?|id_)?token)\b[\"']?\s*[:=]\s*)"
    r"(?:\"[^\"]*(?:\"|\Z)|'[^']*(?:'|\Z)|[^\s,;}\"'&]+)",
    re.IGNORECASE,
)


def quoted(value: object, limit: int = MAX_QUOTED_CHARS) -> str:
    """`value` for a message: quoted, escaped, cut after `limit` characters, with the number of further ones.

    Values other than text and bytes are shown as `repr` gives them.
    """
    if not isinstance(value, (str, bytes)):
        value = repr(value)
        return (
            value
            if len(value) <= limit
            else f"{_without_secrets_at_cut(value[:limit])}{_more(value, limit)}"
        )
    if len(value) <= limit:
        return repr(value)
    head = value[:limit]
    if isinstance(head, bytes):
        return f"{head!r}{_more(value, limit)}"
    return f"{_without_secrets_at_cut(head)!r}{_more(value, limit)}"


def redacted_text(text: str) -> str:
    """`text` without credentials: authorization headers, userinfo and queries of URLs, token and password fields.

    It runs in linear time. Callers bound the text first (`bounded_text`).
    """
    text = _AUTHORIZATION.sub(r"\1 ***", text)
    text = _USER_OF_URL.sub(r"\1***@", text)
    text = _QUERY_OF_URL.sub(_without_query, text)
    return _NAMED_SECRET.sub(r"\1***", text)


def bounded_text(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """`text`, or its beginning with the number of further characters.

    A text that is cut is redacted here: `redacted_text` might not recognise a secret that the cut shortened.
    """
    if len(text) <= limit:
        return text
    return f"{_without_secrets_at_cut(text[:limit])}{_more(text, limit)}"


def _more(value: str | bytes, limit: int) -> str:
    return f" (+{len(value) - limit} {'characters' if isinstance(value, str) else 'bytes'})"


def _without_secrets_at_cut(head: str) -> str:
    """The beginning of a longer text, redacted, also a URL's userinfo that the cut may have shortened."""
    return redacted_text(_CUT_USER_OF_URL.sub(r"\1***", head))


def _without_query(match: re.Match[str]) -> str:
    return f"{match[1]}?***" if match[2] else match[1]
