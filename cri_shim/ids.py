"""Identifiers: how they are made, and what an ID prefix may look like.

An ID is 64 lower-case hexadecimal digits, as every CRI client expects. Names of everything an object owns
derive from it (see `paths`), so the ID alone is enough to take the object away.
"""

from __future__ import annotations

import re
import secrets

ID_LENGTH = 64
_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_ID = re.compile(r"[0-9a-f]{64}")


def new_id() -> str:
    """A fresh random ID: 256 bits, so that collisions need no thought."""
    return secrets.token_hex(ID_LENGTH // 2)


def is_id(text: str) -> bool:
    """Whether `text` is a whole ID."""
    return _ID.fullmatch(text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether `text` could abbreviate an ID."""
    return _PREFIX.fullmatch(text) is not None
