"""Answers that are bytes already, and the encoded entries that lists are joined from.

Rules:
- The encoding of a message is the encodings of its fields one after the other (protobuf's encoding guide, "Message
  structure" and "Repeated elements"). So the encodings of messages that hold one entry each, joined, are the message
  that holds all of them.
- An object's entry is kept as bytes beside the status it shows, and is good as long as the object has that very status.
  Statuses are frozen and replaced as a whole, and everything else an entry shows never changes: nobody has to remember
  to throw an entry away.
- Kept bytes are for clients of both API versions: entries of v1alpha2 are subsets of their v1 namesakes on the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NewType, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from cri_shim.sandbox.store.store import Container, Sandbox

    ObjectT = TypeVar("ObjectT", Sandbox, Container)

Encoded = NewType("Encoded", bytes)
"""A whole response as it goes over the wire; a method may return or send it in place of the message."""


def encoder(message_class: Any) -> Callable[[Message | Encoded], bytes]:  # noqa: ANN401 - a generated class
    """What encodes a response of that class and passes bytes on as they are."""
    serialize: Callable[[Message | Encoded], bytes] = message_class.SerializeToString

    def encode(answer: Message | Encoded) -> bytes:
        return answer if isinstance(answer, bytes) else serialize(answer)

    return encode


def joined(items: Iterable[ObjectT], encode: Callable[[ObjectT], bytes]) -> Encoded:
    """The list of these objects; `encode` is asked for the entries that are not kept."""
    # Without a call per entry: kubelet asks for both lists every second, of hundreds of objects.
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
    """The object's entry: the bytes of last time, or, if its status is another by now, those that `encode` makes."""
    entry = item.list_entry
    if entry is not None and entry[0] is item.status:
        return entry[1]
    raw = encode(item)
    item.list_entry = (item.status, raw)
    return raw
