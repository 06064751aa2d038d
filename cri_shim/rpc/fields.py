"""Refusing requests that lack what CRI requires, with the field's path as the client knows it."""

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
    # An absent message reads as an empty one, which is what its absence means for a required one.
    return value.ByteSize() > 0 if hasattr(value, "ByteSize") else bool(value)
