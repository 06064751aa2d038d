"""Packets between the two processes, there and back."""

from __future__ import annotations

import msgspec
import pytest

from cri_shim.host.packets import MAX_DESCRIPTORS, MAX_PACKET_BYTES
from cri_shim.sandbox.stream_requests import MAX_PORTS
from cri_shim.streaming import ipc
from cri_shim.streaming.backend import Grant

GRANT = Grant(7, "exec", "c1", stdin=True, stdout=True, stderr=False, tty=True)


@pytest.mark.parametrize(
    "asked",
    [
        ipc.Ready(),
        ipc.Redeem(call=1, token="t", kind="exec"),
        ipc.Begin(call=2, session=7, attached=True),
        ipc.MakeSockets(call=3, session=7, family=2, count=32),
        ipc.Counted(sessions=[("exec", "spdy/v4", 1)], carried=[("exec", "in", 9)]),
        ipc.Stalled(wall_s=0.2, cpu_s=0.1),
    ],
)
def test_what_is_asked_is_what_was_meant(asked: ipc.ToDaemon) -> None:
    assert ipc.decode_to_daemon(ipc.encode(asked)) == asked


@pytest.mark.parametrize(
    "told",
    [
        ipc.Granted(call=1, grant=GRANT),
        ipc.Granted(call=1, grant=None),
        ipc.Started(call=2, stdin=True, stdout=True, stderr=False),
        ipc.Failed(call=3, reason="no", errno=24),
        ipc.Ended(session=7, exit_code=137),
        ipc.Stop(grace_s=3.0),
    ],
)
def test_what_is_told_is_what_was_meant(told: ipc.ToStreamer) -> None:
    assert ipc.decode_to_streamer(ipc.encode(told)) == told


def test_neither_side_takes_the_others_words_or_nonsense() -> None:
    for data in (ipc.encode(ipc.Stop(grace_s=1)), b"", b"\xff", b"\x90", bytes(100)):
        with pytest.raises(msgspec.MsgspecError):
            ipc.decode_to_daemon(data)
    with pytest.raises(msgspec.MsgspecError):
        ipc.decode_to_streamer(ipc.encode(ipc.Ready()))


@pytest.mark.parametrize(
    "asked",
    [
        ipc.MakeSockets(call=1, session=1, family=2, count=ipc.SOCKETS_AT_ONCE + 1),
        ipc.MakeSockets(call=1, session=1, family=2, count=0),
        ipc.MakeSockets(call=1, session=1, family=-1, count=1),
        ipc.Resize(session=1, width=-1, height=1),
        ipc.Resize(session=1, width=1, height=65536),
        ipc.ReadSoFar(container_id="c", packets=-1),
        ipc.Counted(sessions=[], carried=[("exec", "in", -1)]),
        ipc.Stalled(wall_s=-1.0, cpu_s=0.0),
    ],
)
def test_numbers_that_nobody_means_are_no_packet(asked: ipc.ToDaemon) -> None:
    with pytest.raises(msgspec.ValidationError):
        ipc.decode_to_daemon(ipc.encode(asked))


def test_the_longest_packets_fit() -> None:
    reason = ipc.bounded("\N{GRINNING FACE}" * 1_000_000)
    assert len(ipc.encode(ipc.Failed(call=2**40, reason=reason))) < MAX_PACKET_BYTES
    ports = tuple(range(65535 - MAX_PORTS, 65535))
    grant = Grant(2**40, "portforward", "s" * 64, ports=ports)
    assert len(ipc.encode(ipc.Granted(call=2**40, grant=grant))) < MAX_PACKET_BYTES
    assert ipc.SOCKETS_AT_ONCE <= MAX_DESCRIPTORS


def test_of_long_words_both_ends_are_kept() -> None:
    assert ipc.bounded("short") == "short"
    text = ipc.bounded("begin " + "x" * 100_000 + " end")
    assert text.startswith("begin ")
    assert text.endswith(" end")
