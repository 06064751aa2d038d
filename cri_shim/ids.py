"""IDs of sandboxes and containers, and their prefixes.

An ID has 64 lower-case hexadecimal digits, as CRI clients expect. The names of everything that an object owns derive
from its ID (`paths`), so the ID suffices to remove the object.
"""

from __future__ import annotations

import re
import secrets

ID_LENGTH = 64
_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_ID = re.compile(r"[0-9a-f]{64}")


def new_id() -> str:
    """A new random ID of 256 bits. Collisions need no check."""
    return secrets.token_hex(ID_LENGTH // 2)


def is_id(text: str) -> bool:
    """Whether `text` is a complete ID."""
    return _ID.fullmatch(text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether `text` can be a prefix of an ID."""
    return _PREFIX.fullmatch(text) is not None
