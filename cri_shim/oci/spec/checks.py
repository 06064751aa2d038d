"""Checks that several fields share: strings, paths, numbers.

Rules: each check returns the normalised value, or raises InvalidArgumentError with the field and the value. No check
knows what a field is for.
"""

from __future__ import annotations

import posixpath
import re
from typing import NoReturn

from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_PATH_BYTES = 4096
"""PATH_MAX, the kernel's limit."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux's file systems."""
_CLEAN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[^/]{1,255})+")
"""A path that needs no normalisation and, if ASCII, has no component that is too long: the common case."""


def refuse(field: str, value: object, why: str) -> NoReturn:
    """Raise InvalidArgumentError in the common form `field: value: why`."""
    raise InvalidArgumentError(f"{field}: {quoted(value)}: {why}")


def has_control_characters(text: str) -> bool:
    """Whether the text contains a byte below 0x20, or DEL."""
    return _CONTROL.search(text) is not None


def no_nul(text: str, field: str) -> str:
    """The text, if C would not see it truncated."""
    if "\0" in text:
        refuse(field, text, "contains a NUL byte")
    return text


def absolute_path(path: str, field: str) -> str:
    """The path as given, if it is absolute, short enough for the kernel, and without NUL."""
    if not path.startswith("/"):
        refuse(field, path, "must be an absolute path")
    no_nul(path, field)
    if len(path) * 4 > MAX_PATH_BYTES and len(path.encode()) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{field}: the path exceeds {MAX_PATH_BYTES} bytes")
    return path


def clean_container_path(path: str, field: str) -> str:
    """An absolute path in the container, normalised, so that equal places compare equal. Checks the length of names.

    `..` is resolved textually and stops at the root. That is safe only here, since the runtime resolves the result
    inside the root file system.
    """
    absolute_path(path, field)
    if path.isascii() and _CLEAN_PATH.fullmatch(path):
        return path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if any(len(name.encode()) > MAX_NAME_BYTES for name in clean.split("/")):
        raise InvalidArgumentError(
            f"{field}: a component of the path exceeds {MAX_NAME_BYTES} bytes"
        )
    return clean


def in_range(value: int, field: str, *, low: int, high: int) -> int:
    """The value, if low <= value <= high."""
    if not low <= value <= high:
        refuse(field, value, f"must be between {low} and {high}")
    return value
