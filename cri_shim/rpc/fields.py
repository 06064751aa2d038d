"""Checks that a request sets the fields CRI requires; an error names the field by its path in the message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def require(message: Message, *paths: str) -> None:
    """Check that each of `paths` (`config.metadata.name`) is set.

    Raises: InvalidArgumentError naming the first that is absent or empty.
    """
    for path in paths:
        value: object = message
        for name in path.split("."):
            value = getattr(value, name)
        if not _is_given(value):
            raise InvalidArgumentError(f"{message.DESCRIPTOR.name}: {path} is required")


def _is_given(value: object) -> bool:
    # protobuf reads an absent message as an empty one. Both are refused: an empty `config` or `image` is of no use.
    return value.ByteSize() > 0 if hasattr(value, "ByteSize") else bool(value)
