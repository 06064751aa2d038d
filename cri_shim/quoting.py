"""What an error's text repeats of others: bounded, on one line, without secrets.

Rules:
- Whoever makes an error passes each value that a request, an image, a plugin or a runtime chose through `quoted`,
  unless an earlier check bounds it. So a text costs what it is long, however long the value is.
- Cut first, then look for secrets: work on text of strangers is bounded before it begins. A cut can hide the end by
  which a secret is known, so at a cut whatever may be the beginning of one is hidden as well.
- Every pattern runs in linear time: no two attempts, from different starts, read the same text twice.
"""

from __future__ import annotations

import re
from typing import Final

MAX_QUOTED_CHARS: Final = 200
"""Of one value: enough to recognise it by."""
MAX_TEXT_CHARS: Final = 16384
"""Of a whole text of an error, should someone have forgotten `quoted`."""

# Authorization: Basic dXNlcjpwYXNz
_AUTHORIZATION: Final = re.compile(r"\b(Bearer|Basic)\s+[^\s\"',;]+", re.IGNORECASE)
# https://user:password@host
_USER_OF_URL: Final = re.compile(r"(://)[^\s/@\"']+@")
_CUT_USER_OF_URL: Final = re.compile(r"(://)[^\s/@\"']+\Z")
# https://host/path?sig=… : signed URLs of blob stores. It matches URLs without a query, too: each is read once.
_QUERY_OF_URL: Final = re.compile(r"(://[^\s?\"']+)(\?[^\s\"']+)?")
# "auth": "…", password=…, identity_token: …; not the file in "/etc/passwd: not a directory"
_NAMED_SECRET: Final = re.compile(
    r"((?<![\w/.-])(?:auth|authorization|password|passwd|secret|client_secret|"
    r"(?:access_|refresh_|identity_?|registry_?|id_)?token)\b[\"']?\s*[:=]\s*)"
    r"(?:\"[^\"]*(?:\"|\Z)|'[^']*(?:'|\Z)|[^\s,;}\"'&]+)",
    re.IGNORECASE,
)


def quoted(value: object, limit: int = MAX_QUOTED_CHARS) -> str:
    """`value` as a text may repeat it: in quotes, escaped, cut after `limit` characters; how many more there are.

    Numbers and other values stand as `repr` has them.
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
    """`text` without credentials: authorization headers, URL user parts and queries, token and password fields.

    Linear in the text; callers bound what they pass (`bounded_text`).
    """
    text = _AUTHORIZATION.sub(r"\1 ***", text)
    text = _USER_OF_URL.sub(r"\1***@", text)
    text = _QUERY_OF_URL.sub(_without_query, text)
    return _NAMED_SECRET.sub(r"\1***", text)


def bounded_text(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """`text` itself, or its beginning and how much was left out.

    What may be a secret in what is left of a text that was cut is hidden: `redacted_text` would not know it any more.
    """
    if len(text) <= limit:
        return text
    return f"{_without_secrets_at_cut(text[:limit])}{_more(text, limit)}"


def _more(value: str | bytes, limit: int) -> str:
    return f" (+{len(value) - limit} {'characters' if isinstance(value, str) else 'bytes'})"


def _without_secrets_at_cut(head: str) -> str:
    """The beginning of a longer text, redacted; a user part of a URL that the cut fell into goes too."""
    return redacted_text(_CUT_USER_OF_URL.sub(r"\1***", head))


def _without_query(match: re.Match[str]) -> str:
    return f"{match[1]}?***" if match[2] else match[1]
