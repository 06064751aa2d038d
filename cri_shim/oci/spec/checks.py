"""Checks that several fields share: strings, paths, numbers.

Rules of the file: each check raises InvalidArgumentError naming the field and the value, or returns the
normalised value. Nothing here knows what a field is for.
"""

from __future__ import annotations

import posixpath
import re
from typing import NoReturn

from cri_shim.errors import InvalidArgumentError
from cri_shim.quoting import quoted

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MAX_PATH_BYTES = 4096
"""PATH_MAX: the kernel takes no longer path."""
MAX_NAME_BYTES = 255
"""NAME_MAX of Linux's file systems."""
_CLEAN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[^/]{1,255})+")
"""As most are: nothing to fold, and, in ASCII, no name that is too long."""


def refuse(field: str, value: object, why: str) -> NoReturn:
    """Raise InvalidArgumentError in one form: `field: value: why`."""
    raise InvalidArgumentError(f"{field}: {quoted(value)}: {why}")


def has_control_characters(text: str) -> bool:
    """Whether a byte below space, or DEL, is in the text."""
    return _CONTROL.search(text) is not None


def no_nul(text: str, field: str) -> str:
    """The text, unless C would see it cut short."""
    if "\0" in text:
        refuse(field, text, "contains a NUL byte")
    return text


def absolute_path(path: str, field: str) -> str:
    """The path as given, if it is absolute, short enough for the kernel, and holds no NUL."""
    if not path.startswith("/"):
        refuse(field, path, "must be an absolute path")
    no_nul(path, field)
    if len(path) * 4 > MAX_PATH_BYTES and len(path.encode()) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{field}: longer than {MAX_PATH_BYTES} bytes")
    return path


def clean_container_path(path: str, field: str) -> str:
    """An absolute path inside the container in its one spelling, so that equal places compare equal.

    Names in it are no longer than file systems take.

    `..` is folded by its letters and stops at the root. That is safe here, and only here: the runtime resolves
    the result inside the root file system.
    """
    absolute_path(path, field)
    if path.isascii() and _CLEAN_PATH.fullmatch(path):
        return path
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if any(len(name.encode()) > MAX_NAME_BYTES for name in clean.split("/")):
        raise InvalidArgumentError(f"{field}: a name of more than {MAX_NAME_BYTES} bytes")
    return clean


def in_range(value: int, field: str, *, low: int, high: int) -> int:
    """The value, if low <= value <= high."""
    if not low <= value <= high:
        refuse(field, value, f"must be between {low} and {high}")
    return value
