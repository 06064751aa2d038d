"""Exec and attach: whatever a client sends while a command is run, fed, followed and finished."""

from __future__ import annotations

from cri_shim.streaming.wire.outcome import Exited, Failed
from cri_shim.streaming.wire.remotecommand import (
    Channel,
    Closed,
    Ready,
    RemoteCommand,
    RemoteCommandEvent,
    RequestedStreams,
    Resized,
    StdinData,
)
from cri_shim.streaming.wire.remotecommand_channels import ChannelRemoteCommand
from cri_shim.streaming.wire.remotecommand_spdy import SpdyRemoteCommand
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import SessionEnded
from cri_shim.streaming.wire.upgrade import V1_BASE64, V4, V5
from tests.fuzz import assert_sound
from tests.fuzz.targets.stream_spdy import WORDS as SPDY_WORDS
from tests.fuzz.targets.stream_spdy import Peer
from tests.fuzz.targets.stream_websocket import SEEDS as WEBSOCKET_SEEDS
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import heard as all_heard
from tests.unit.streaming.wire.roleplay import sent

_ALL = RequestedStreams(stdin=True, stdout=True, stderr=True, tty=False)
_TTY = RequestedStreams(stdin=True, stdout=True, stderr=False, tty=True)


def _streams(*types: str) -> Peer:
    peer = Peer()
    for n, each in enumerate(types):
        peer.syn(2 * n + 1, streamtype=each)
    return peer


SEEDS = [
    *(b"\x10" + seed for seed in WEBSOCKET_SEEDS),
    b"\x40" + recorded.EXEC_SPDY,
    b"\x21"
    + _streams("error", "stdin", "stdout", "resize")
    .data(7, b'{"Width":80,"Height":24}{"Wid')
    .data(3, b"in", fin=True)
    .wire,
    b"\x32" + _streams("error", "stdout", "stdin", "stderr", "stdout", "x").reset(3).reset(5).wire,
    b"\x08"
    + _streams("error", "stdin", "stdout", "stderr")
    .control(4, b"\0\0\0\1\0\0\0\7\0\0\0\2")
    .window(5, 3)
    .reset(1)
    .wire,
]
"""The first byte says how big the pieces are, and when the command ends."""
WORDS = [*SPDY_WORDS, b"stdin", b"resize", b'{"Width":1,"Height":2}', b"\x82\x82\0\0\0\0\xff\0"]


def fuzz(data: bytes) -> None:
    for machine in (
        *(SpdyRemoteCommand(V4, _ALL), SpdyRemoteCommand(V5, _TTY)),
        *(ChannelRemoteCommand(V5, _ALL), ChannelRemoteCommand(V1_BASE64, _TTY)),
    ):
        heard = _run(machine, data[1:], (data or b"\1")[0])
        if isinstance(machine, SpdyRemoteCommand):
            answered = all_heard(SpdyConnection(client=True), heard)
            assert not any(isinstance(event, SessionEnded) for event in answered)


def _run(machine: RemoteCommand, data: bytes, choice: int) -> bytes:
    size = 1 + choice % 64
    heard = b""
    is_over = False
    turns = [machine.start()]
    for n, start in enumerate(range(0, len(data), size)):
        turns.append(all_heard(machine, data[start : start + size]))
        assert not (is_over and turns[-1]), "something behind the end"
        is_over = _serve(machine, turns[-1])
        if n == choice // 16:
            machine.finish(Exited(choice) if choice % 2 else Failed("no"))
        heard += sent(machine)
    turns.append(machine.receive_eof())
    machine.finish(Exited(0))
    events = [event for turn in turns for event in turn]
    assert sum(isinstance(event, Ready) for event in events) <= 1
    assert sum(isinstance(event, Closed) for event in events) <= 1
    return heard + sent(machine)


def _serve(machine: RemoteCommand, events: list[RemoteCommandEvent]) -> bool:
    for event in events:
        match event:
            case StdinData(data):
                assert len(data)
                machine.consumed(len(data))
                assert machine.send(Channel.STDOUT, b"echo") <= 4
            case Resized(width, height):
                assert 0 <= min(width, height) <= max(width, height) <= 65535
                machine.send(Channel.STDERR, b"size")
            case Closed(error):
                assert event is events[-1]
                if error is not None:
                    assert_sound(Exception(error))
                return True
            case _:
                pass
    return False
