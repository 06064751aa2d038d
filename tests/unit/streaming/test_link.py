"""Packets of the link, there and back."""

from __future__ import annotations

import msgspec
import pytest

from cri_shim.host.packets import MAX_DESCRIPTORS, MAX_PACKET_BYTES
from cri_shim.sandbox.streams import MAX_PORTS
from cri_shim.streaming import link
from cri_shim.streaming.backend import Grant

GRANT = Grant(7, "exec", "c1", stdin=True, stdout=True, stderr=False, tty=True)


@pytest.mark.parametrize(
    "asked",
    [
        link.Ready(),
        link.Redeem(call=1, token="t", kind="exec"),
        link.Begin(call=2, session=7, attached=True),
        link.MakeSockets(call=3, session=7, family=2, count=32),
        link.Counted(sessions=[("exec", "spdy/v4", 1)], carried=[("exec", "in", 9)]),
        link.Stalled(wall_s=0.2, cpu_s=0.1),
    ],
)
def test_what_is_asked_is_what_was_meant(asked: link.Asked) -> None:
    assert link.decode_asked(link.encode(asked)) == asked


@pytest.mark.parametrize(
    "told",
    [
        link.Granted(call=1, grant=GRANT),
        link.Granted(call=1, grant=None),
        link.Started(call=2, stdin=True, stdout=True, stderr=False),
        link.Failed(call=3, reason="no", errno=24),
        link.Ended(session=7, exit_code=137),
        link.Stop(grace_s=3.0),
    ],
)
def test_what_is_told_is_what_was_meant(told: link.Told) -> None:
    assert link.decode_told(link.encode(told)) == told


def test_neither_side_takes_the_others_words_or_nonsense() -> None:
    for data in (link.encode(link.Stop(grace_s=1)), b"", b"\xff", b"\x90", bytes(100)):
        with pytest.raises(msgspec.MsgspecError):
            link.decode_asked(data)
    with pytest.raises(msgspec.MsgspecError):
        link.decode_told(link.encode(link.Ready()))


@pytest.mark.parametrize(
    "asked",
    [
        link.MakeSockets(call=1, session=1, family=2, count=link.SOCKETS_AT_ONCE + 1),
        link.MakeSockets(call=1, session=1, family=2, count=0),
        link.MakeSockets(call=1, session=1, family=-1, count=1),
        link.Resize(session=1, width=-1, height=1),
        link.Resize(session=1, width=1, height=65536),
        link.ReadSoFar(container_id="c", packets=-1),
        link.Counted(sessions=[], carried=[("exec", "in", -1)]),
        link.Stalled(wall_s=-1.0, cpu_s=0.0),
    ],
)
def test_numbers_that_nobody_means_are_no_packet(asked: link.Asked) -> None:
    with pytest.raises(msgspec.ValidationError):
        link.decode_asked(link.encode(asked))


def test_the_longest_packets_fit() -> None:
    reason = link.bounded("\N{GRINNING FACE}" * 1_000_000)
    assert len(link.encode(link.Failed(call=2**40, reason=reason))) < MAX_PACKET_BYTES
    ports = tuple(range(65535 - MAX_PORTS, 65535))
    grant = Grant(2**40, "portforward", "s" * 64, ports=ports)
    assert len(link.encode(link.Granted(call=2**40, grant=grant))) < MAX_PACKET_BYTES
    assert link.SOCKETS_AT_ONCE <= MAX_DESCRIPTORS


def test_of_long_words_both_ends_are_kept() -> None:
    assert link.bounded("short") == "short"
    text = link.bounded("begin " + "x" * 100_000 + " end")
    assert text.startswith("begin ")
    assert text.endswith(" end")
