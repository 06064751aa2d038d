"""Exec and attach over SPDY: a client that makes its streams against the machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.streaming.wire.outcome import Exited, Failed
from cri_shim.streaming.wire.remotecommand import (
    Channel,
    Closed,
    Ready,
    RequestedStreams,
    Resized,
    StdinData,
    StdinEnd,
    Writable,
)
from cri_shim.streaming.wire.remotecommand_spdy import SpdyRemoteCommand
from cri_shim.streaming.wire.spdy import SpdyConnection
from cri_shim.streaming.wire.spdy_events import (
    DataReceived,
    GoAwayReceived,
    StreamEnded,
    StreamReplied,
    StreamReset,
)
from cri_shim.streaming.wire.spdy_frames import FrameType, Reset, control_frame
from cri_shim.streaming.wire.upgrade import V1, V2, V3, V4, V5
from tests.unit.streaming.wire import recorded
from tests.unit.streaming.wire.roleplay import byte_by_byte, deliver, in_pieces, sent

if TYPE_CHECKING:
    from cri_shim.streaming.wire.remotecommand import RemoteCommandEvent

ALL = RequestedStreams(stdin=True, stdout=True, stderr=True, tty=False)
TTY = RequestedStreams(stdin=True, stdout=True, stderr=True, tty=True)


class Client:
    """Makes streams by their type, as any client does."""

    def __init__(self, machine: SpdyRemoteCommand) -> None:
        self.machine = machine
        self.spdy = SpdyConnection(client=True)
        self.ids: dict[str, int] = {}
        assert machine.start() == []

    def make(self, *types: str, fin: bool = False) -> list[RemoteCommandEvent]:
        for each in types:
            self.ids[each] = self.spdy.open_stream({"streamtype": each}, fin=fin)
        return self.say()

    def make_unasked(self) -> int:
        [] = self.make("unasked")
        return self.ids["unasked"]

    def say(self) -> list[RemoteCommandEvent]:
        return deliver(self.spdy, self.machine)

    def hear(self) -> list[object]:
        """What the machine says, by stream types; replies left out."""
        names = {stream_id: name for name, stream_id in self.ids.items()}
        heard: list[object] = []
        for event in deliver(self.machine, self.spdy):
            if isinstance(event, DataReceived):
                heard.append((names[event.stream_id], event.data))
            elif isinstance(event, StreamEnded):
                heard.append((names[event.stream_id], None))
            elif isinstance(event, StreamReset):
                heard.append((names[event.stream_id], "reset"))
            elif isinstance(event, GoAwayReceived):
                heard.append("goaway")
            else:
                assert isinstance(event, StreamReplied)
        return heard


def ready(protocol: str, streams: RequestedStreams, *types: str) -> Client:
    client = Client(SpdyRemoteCommand(protocol, streams))
    assert client.make(*types) == [Ready()]
    client.hear()
    return client


@pytest.mark.parametrize(
    ("protocol", "streams", "types"),
    [
        (V4, ALL, ["error", "stdin", "stdout", "stderr"]),
        (V1, ALL, ["stderr", "error", "stdout", "stdin"]),
        (V5, TTY, ["error", "stdin", "stdout", "resize"]),
        (V3, TTY, ["error", "stdin", "stdout", "resize"]),
        (V2, TTY, ["error", "stdin", "stdout"]),
        (
            V4,
            RequestedStreams(stdin=False, stdout=True, stderr=False, tty=False),
            ["error", "stdout"],
        ),
    ],
)
def test_it_is_ready_when_every_stream_the_request_implies_is_there(
    protocol: str, streams: RequestedStreams, types: list[str]
) -> None:
    client = Client(SpdyRemoteCommand(protocol, streams))
    missing = set(types)
    for each in types:
        assert not client.machine.is_ready
        assert set(client.machine.missing) == missing
        missing.remove(each)
        events = client.make(each)
        assert deliver(client.machine, client.spdy) == [StreamReplied(client.ids[each], {})]
        assert events == ([] if missing else [Ready()])
    assert client.machine.is_ready
    assert client.machine.missing == []


def test_stdin_arrives_even_before_the_other_streams_and_ends() -> None:
    client = Client(SpdyRemoteCommand(V4, ALL))
    client.make("stdin")
    client.spdy.send_data(client.ids["stdin"], b"early")
    client.spdy.end(client.ids["stdin"])
    assert client.say() == [StdinData(b"early"), StdinEnd()]
    assert client.make("error", "stdout", "stderr") == [Ready()]


def test_a_client_that_gives_stdin_up_has_ended_it() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.spdy.reset(client.ids["stdin"])
    assert client.say() == [StdinEnd()]
    client.machine.consumed(5)


def test_output_and_its_end_go_to_their_streams() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    assert client.machine.send(Channel.STDOUT, b"out") == 3
    assert client.machine.send(Channel.STDERR, b"err") == 3
    client.machine.end(Channel.STDOUT)
    assert client.machine.send(Channel.STDOUT, b"late") == 4
    assert client.hear() == [("stdout", b"out"), ("stderr", b"err"), ("stdout", None)]


def test_sizes_of_the_terminal_arrive() -> None:
    client = ready(V4, TTY, "error", "stdin", "stdout", "resize")
    client.spdy.send_data(client.ids["resize"], b'{"Width":80,"Height":24}\n{"Wid')
    assert client.say() == [Resized(80, 24)]
    client.spdy.send_data(client.ids["resize"], b'th":81,"Height":25}\n')
    client.spdy.end(client.ids["resize"])
    assert client.say() == [Resized(81, 25)]


@pytest.mark.parametrize("protocol", [V4, V5])
def test_the_exit_status_is_a_document_behind_all_output(protocol: str) -> None:
    client = ready(protocol, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.send(Channel.STDOUT, b"out")
    client.machine.finish(Exited(7))
    heard = client.hear()
    assert heard[:3] == [("stdout", b"out"), ("stdout", None), ("stderr", None)]
    [document] = [what for what in heard if isinstance(what, tuple) and what[0] == "error"][:1]
    assert json.loads(document[1])["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    assert heard[-3:] == [("error", None), ("stdin", None), "goaway"]
    assert client.machine.is_finished


def test_old_versions_hear_texts_and_of_success_nothing() -> None:
    client = ready(V2, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.finish(Failed("gone"))
    assert ("error", b"Internal error occurred: gone") in client.hear()
    client = ready(V3, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.finish(Exited(0))
    assert client.hear()[2] == ("error", None)


def test_a_session_that_is_finished_says_nothing_more() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.finish(Exited(0))
    client.machine.finish(Exited(1))
    client.hear()
    client.spdy.send_data(client.ids["stdin"], b"late")
    assert client.say() == []
    assert client.machine.send(Channel.STDOUT, b"late") == 4
    client.machine.end(Channel.STDOUT)
    client.machine.ping()
    assert sent(client.machine) == b""
    assert client.machine.receive_eof() == []


def test_a_session_that_was_never_ready_can_be_finished() -> None:
    client = Client(SpdyRemoteCommand(V4, ALL))
    client.make("error", "stdin")
    client.machine.finish(Failed("streams missing"))
    heard = client.hear()
    assert isinstance(heard[0], tuple)
    assert b"streams missing" in heard[0][1]
    assert heard[-1] == "goaway"
    bare = SpdyRemoteCommand(V4, ALL)
    bare.finish(Failed("no stream at all"))
    assert bare.is_finished


def test_a_stream_of_another_kind_is_accepted_and_closed() -> None:
    client = Client(SpdyRemoteCommand(V4, TTY))
    client.make("stderr", "video", "")
    assert client.hear() == [("stderr", None), ("video", None), ("", None)]
    client.spdy.send_data(client.ids["video"], b"frames")
    assert client.say() == []


def test_a_second_stream_of_one_kind_is_reset() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    first = client.ids["stdout"]
    client.make("stdout")
    assert client.hear() == [("stdout", "reset")]
    client.ids["stdout"] = first
    client.machine.send(Channel.STDOUT, b"still")
    assert client.hear() == [("stdout", b"still")]


def test_output_to_a_stream_the_client_reset_goes_nowhere_and_the_exit_still_counts() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.spdy.reset(client.ids["stdout"])
    assert client.say() == [Writable(Channel.STDOUT)]
    assert client.machine.send(Channel.STDOUT, bytes(10**6)) == 10**6
    client.machine.finish(Exited(0))
    heard = client.hear()
    assert ("error", b'{"metadata":{},"status":"Success"}') in heard


def test_a_client_that_reset_the_error_stream_hears_no_document() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.spdy.reset(client.ids["error"])
    assert client.say() == []
    client.machine.finish(Exited(0))
    assert client.hear()[-1] == "goaway"


def windows(size: int, stream_id: int = 0) -> bytes:
    if stream_id:
        payload = stream_id.to_bytes(4, "big") + size.to_bytes(4, "big")
        return control_frame(FrameType.WINDOW_UPDATE, payload)
    return control_frame(FrameType.SETTINGS, b"\0\0\0\1" + b"\0\0\0\7" + size.to_bytes(4, "big"))


def test_a_client_with_windows_is_waited_for_even_by_the_document() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    assert client.machine.receive_data(windows(10)) == []
    assert client.machine.send(Channel.STDOUT, b"x" * 15) == 10
    assert client.machine.receive_data(windows(100, client.ids["stdout"])) == [
        Writable(Channel.STDOUT)
    ]
    client.machine.finish(Exited(0))
    finished = [client.machine.is_finished]
    assert ("error", b'{"metadata') in client.hear()
    for more in (5, 500):
        assert client.machine.receive_data(windows(more, client.ids["error"])) == []
        finished.append(client.machine.is_finished)
    assert finished == [False, False, True]
    assert client.hear() == [
        ("error", b'":{},"status":"Success"}'),
        ("error", None),
        ("stdin", None),
        "goaway",
    ]


def test_a_client_that_resets_what_the_document_waits_for_is_not_waited_for() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.receive_data(windows(0))
    client.machine.finish(Exited(0))
    client.spdy.reset(client.ids["error"])
    assert client.say() == []
    assert client.machine.is_finished


def test_streams_that_are_made_and_reset_in_one_breath_are_there_and_gone() -> None:
    client = Client(SpdyRemoteCommand(V4, ALL))
    for kind in ("error", "stdin", "stdout", "stderr", "video"):
        client.ids[kind] = client.spdy.open_stream({"streamtype": kind})
        client.spdy.reset(client.ids[kind])
    assert Ready() in client.say()
    client.machine.finish(Exited(0))
    assert client.hear() == ["goaway"]


def test_a_client_that_hangs_up_or_talks_nonsense_is_gone() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    assert client.machine.receive_eof() == [Closed(None)]
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    [closed] = client.machine.receive_data(b"\x80\x02\0\1\0\0\0\0")
    assert isinstance(closed, Closed)
    assert closed.error
    assert client.hear() == ["goaway"]


def test_a_session_whose_client_is_gone_can_still_be_finished() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.machine.receive_eof()
    assert client.machine.send(Channel.STDOUT, b"x") == 1
    client.machine.finish(Exited(0))
    assert client.machine.is_finished
    assert sent(client.machine) == b""


def test_what_means_nothing_here_is_passed_over() -> None:
    client = ready(V4, TTY, "error", "stdin", "stdout", "resize")
    client.machine.ping()
    assert client.hear() == []
    client.spdy.send_data(client.make_unasked(), b"?")
    client.spdy.send_data(client.ids["error"], b"?")
    client.spdy.go_away()
    client.spdy.send_data(client.ids["resize"], b"{}")
    client.spdy.reset(client.ids["resize"])
    client.spdy.reset(client.ids["unasked"])
    assert client.say() == []


def test_stdin_that_was_consumed_lets_a_client_with_windows_go_on() -> None:
    client = ready(V4, ALL, "error", "stdin", "stdout", "stderr")
    client.spdy.send_data(client.ids["stdin"], bytes(64 << 10))
    client.say()
    assert sent(client.machine) == b""
    client.machine.consumed(64 << 10)
    assert sent(client.machine)


@given(st.lists(st.integers(0, 200), max_size=10))
def test_an_exec_of_kubernetes_own_client_is_understood_however_it_is_cut(
    places: list[int],
) -> None:
    expected = [Ready(), StdinData(b"hi\n"), StdinEnd()]
    assert in_pieces(SpdyRemoteCommand(V5, ALL), recorded.EXEC_SPDY, places) == expected
    machine = SpdyRemoteCommand(V5, ALL)
    assert byte_by_byte(machine, recorded.EXEC_SPDY) == expected
    machine.finish(Exited(0))
    client = SpdyConnection(client=True)
    for kind in ("error", "stdin", "stdout", "stderr"):
        client.open_stream({"streamtype": kind})
    events = deliver(machine, client)
    assert not [e for e in events if isinstance(e, StreamReset) and e.status != Reset.CANCEL]
