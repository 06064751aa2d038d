from __future__ import annotations

import pytest

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.errors import CriShimError
from cri_shim.rpc.admin_wipe import answer_wipe
from cri_shim.sandbox.recovery.wipe import Left, Wiped
from tests.unit.rpc.fakes import FakeWipe

pytestmark = pytest.mark.asyncio


class Sent(list[admin.WipeResponse]):
    async def take(self, answer: admin.WipeResponse) -> None:
        self.append(answer)


async def test_what_is_left_comes_one_by_one_and_the_sums_last() -> None:
    wipe, sent = FakeWipe(), Sent()
    wipe.wiped = Wiped(1, 2, 3, 4, 5, [Left("a", "x"), Left("b", "y")])
    await answer_wipe(wipe, admin.WipeRequest(), sent.take)
    assert wipe.asked == [False]
    assert [each.left.what for each in sent[-3:-1]] == ["a", "b"]
    assert sent[-1].sums == admin.WipeSums(
        sandboxes=1, containers=2, leftovers=3, attachments=4, images=5
    )


async def test_a_wipe_that_fails_as_a_whole_sends_no_sums() -> None:
    class Fails(FakeWipe):
        async def run(self, **_: object) -> Wiped:
            raise CriShimError("the disk is gone")

    sent = Sent()
    with pytest.raises(CriShimError, match="the disk is gone"):
        await answer_wipe(Fails(), admin.WipeRequest(), sent.take)
    assert not [each for each in sent if each.HasField("sums")]
