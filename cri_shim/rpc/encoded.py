"""Responses that are encoded already, and the encoded entries that list responses are joined from.

Rules:
- The encoding of a message is the encodings of its fields one after the other (protobuf's encoding guide, "Message
  structure" and "Repeated elements"). So the encodings of messages that hold one entry each, joined, are the message
  that holds all of them.
- An object keeps its encoded entry beside the status that the entry shows. The entry is valid while the object has
  that very status object. Statuses are frozen and replaced as a whole, and the other fields of an entry never change.
  So no code has to invalidate entries.
- One entry serves clients of both API versions: on the wire a v1alpha2 entry is a subset of its v1 namesake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NewType, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from cri_shim.sandbox.store.store import Container, Sandbox

    ObjectT = TypeVar("ObjectT", Sandbox, Container)

Encoded = NewType("Encoded", bytes)
"""A whole encoded response. A method may return or send it in place of the message."""


def encoder(message_class: Any) -> Callable[[Message | Encoded], bytes]:  # noqa: ANN401 - a generated class
    """A serializer for responses of that class, which passes encoded responses on unchanged."""
    serialize: Callable[[Message | Encoded], bytes] = message_class.SerializeToString

    def encode(answer: Message | Encoded) -> bytes:
        return answer if isinstance(answer, bytes) else serialize(answer)

    return encode


def joined(items: Iterable[ObjectT], encode: Callable[[ObjectT], bytes]) -> Encoded:
    """The list response of these objects. `encode` makes an entry that is missing or outdated."""
    # `kept` is inlined here: kubelet asks for both lists every second, and a function call for each of several hundred
    # objects would be most of the cost.
    return Encoded(
        b"".join(
            [
                entry[1]
                if (entry := item.list_entry) is not None and entry[0] is item.status
                else encode(item)
                for item in items
            ]
        )
    )


def kept(item: ObjectT, encode: Callable[[ObjectT], bytes]) -> bytes:
    """The object's encoded entry. Call `encode` and keep the result if the status was replaced since."""
    entry = item.list_entry
    if entry is not None and entry[0] is item.status:
        return entry[1]
    raw = encode(item)
    item.list_entry = (item.status, raw)
    return raw
