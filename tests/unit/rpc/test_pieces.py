from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.rpc.pieces import PIECE_BYTES, send_in_pieces

if TYPE_CHECKING:
    from cri_shim.rpc.encoded import Encoded

pytestmark = pytest.mark.asyncio


async def pieces_of(*sizes: int) -> list[list[int]]:
    """The sizes of the tags in each message."""
    sent: list[api.StreamImagesResponse] = []

    async def send(message: Encoded) -> None:
        sent.append(api.StreamImagesResponse.FromString(message))

    alone = (api.StreamImagesResponse(images=[api.Image(repo_tags=["x" * size])]) for size in sizes)
    await send_in_pieces((each.SerializeToString() for each in alone), send)
    assert all(message.images for message in sent)
    return [[len(image.repo_tags[0]) for image in message.images] for message in sent]


async def test_an_empty_list_is_no_message() -> None:
    assert await pieces_of() == []


async def test_a_short_list_is_one_message() -> None:
    assert await pieces_of(1, 2, 3) == [[1, 2, 3]]


async def test_a_long_list_is_cut_where_a_message_is_full_and_stays_in_order() -> None:
    third = PIECE_BYTES // 3 - 100
    assert await pieces_of(third, third, third, 1, third * 2) == [
        [third, third, third, 1],
        [third * 2],
    ]


async def test_an_entry_longer_than_a_piece_goes_alone() -> None:
    assert await pieces_of(1, 2 * PIECE_BYTES, 2) == [[1], [2 * PIECE_BYTES], [2]]
