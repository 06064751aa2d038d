"""One container's held streams: its log, who is attached to it, its input, and its end."""

from __future__ import annotations

import os
import queue
import re
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.oci.attach_wire import REOPEN_LINE, resize_line
from cri_shim.oci.shim.held_streams import HeldStreams, Log, records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW_NS = 1_764_547_200_000_000_123
HEAD = b"2025-12-01T00:00:00.000000123+00:00 stdout "
PATIENCE_S = 20


def test_whole_lines_are_full_records_and_the_rest_is_a_part() -> None:
    assert records(b"stdout", b"a\n\nb", NOW_NS) == (
        HEAD + b"F a\n" + HEAD + b"F \n" + HEAD + b"P b\n"
    )
    assert records(b"stdout", b"a\n", NOW_NS) == HEAD + b"F a\n"
    assert records(b"stdout", b"", NOW_NS) == b""


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=10))
def test_records_say_what_was_written(pieces: list[bytes]) -> None:
    found = b""
    for line in b"".join(records(b"stdout", each, NOW_NS) for each in pieces).split(b"\n")[:-1]:
        tag, text = line[len(HEAD) : len(HEAD) + 1], line[len(HEAD) + 2 :]
        found += text + (b"\n" if tag == b"F" else b"")
    assert found == b"".join(pieces)


def test_a_full_disk_cuts_the_log_and_no_more() -> None:
    log = Log("/dev/full")
    log.write(2, b"lost\n")
    log.close()


class Held:
    """Held streams in a bundle, and a shim's ends of the FIFOs."""

    def __init__(self, directory: Path, **request: Any) -> None:
        self.dir = directory
        self.log = directory / "c.log"
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self.forgotten = 0
        wanted = {
            "id": "c",
            "dir": str(directory),
            "log": str(self.log),
            "terminal": False,
            "stdin": True,
            "stdin_once": False,
        }
        self.streams = HeldStreams({**wanted, **request}, self.told.put, self._forget)
        self.streams.start()
        self.fds = [os.open(directory / "stdout", os.O_WRONLY)]
        if not request.get("terminal"):
            self.fds.append(os.open(directory / "stderr", os.O_WRONLY))

    def _forget(self) -> None:
        self.forgotten += 1

    def attach(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(PATIENCE_S)
        client.connect(str(self.dir / "attach"))
        return client

    def control(self, line: bytes) -> None:
        fd = os.open(self.dir / "ctl", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, line)
        os.close(fd)

    def end(self) -> None:
        while self.fds:
            os.close(self.fds.pop())
        self.streams.finish(9, at_once=False)
        assert self.told.get(timeout=PATIENCE_S) == {"call": 9}
        assert self.forgotten == 1
        assert {each.name for each in self.dir.iterdir()} <= {"c.log", "rotated"}

    def logged(self, file: Path | None = None) -> list[bytes]:
        text = (file or self.log).read_bytes()
        return [re.sub(rb"^\S+ ", b"", line) for line in text.splitlines()]


@pytest.fixture
def held(short_path: Path) -> Iterator[Held]:
    streams = Held(short_path)
    yield streams
    while streams.fds:
        os.close(streams.fds.pop())
    streams.streams.finish(1, at_once=True)


def test_output_is_in_the_log_when_the_streams_are_finished(held: Held) -> None:
    os.write(held.fds[0], b"out\npart")
    os.write(held.fds[1], b"err\n")
    held.end()
    assert sorted(held.logged()) == [b"stderr F err", b"stdout F out", b"stdout P part"]


def test_who_is_attached_gets_output_and_gives_input(held: Held) -> None:
    reader = os.open(held.dir / "stdin", os.O_RDONLY)
    client = held.attach()
    client.send(b"question")
    assert os.read(reader, 100) == b"question"
    os.write(held.fds[0], b"answer\n")
    assert client.recv(100) == b"\x02answer\n"
    os.write(held.fds[1], b"complaint\n")
    assert client.recv(100) == b"\x03complaint\n"
    held.end()
    assert client.recv(100) == b""
    client.close()
    os.close(reader)


def test_a_client_that_does_not_read_holds_the_container_up_until_it_goes(held: Held) -> None:
    client = held.attach()
    client.send(b"x")  # it is known now
    written = 0
    block = b"y" * 4095 + b"\n"
    while True:
        if select.select((), (held.fds[0],), (), 0.2)[1]:
            written += os.write(held.fds[0], block)
        elif written > 200_000:
            break
    assert held.log.stat().st_size
    client.close()
    os.write(held.fds[0], b"end\n")
    held.end()
    assert held.logged()[-1] == b"stdout F end"


def test_a_log_is_reopened_under_its_name(held: Held) -> None:
    client = held.attach()
    os.write(held.fds[0], b"one\n")
    assert client.recv(100) == b"\x02one\n"
    held.log.rename(held.dir / "rotated")
    held.control(b"nonsense\n" + REOPEN_LINE)
    held.control(resize_line(80, 24))  # in order: the new log is there once this is told
    assert held.told.get(timeout=PATIENCE_S) == {
        "event": "size",
        "id": "c",
        "width": 80,
        "height": 24,
    }
    os.write(held.fds[0], b"two\n")
    held.end()
    assert held.logged(held.dir / "rotated") == [b"stdout F one"]
    assert held.logged() == [b"stdout F two"]
    client.close()


def test_the_first_client_to_leave_ends_an_input_that_is_for_once(short_path: Path) -> None:
    held = Held(short_path, stdin_once=True, terminal=True, log=None)
    client = held.attach()
    client.send(b"all of it")
    client.shutdown(socket.SHUT_WR)
    assert held.told.get(timeout=PATIENCE_S) == {"event": "input ended", "id": "c"}
    assert held.streams.stdin_closed
    os.write(held.fds[0], b"tty\n")
    assert client.recv(100) == b"\x02tty\n"
    held.end()
    client.close()


def test_streams_that_somebody_holds_open_are_waited_for_no_longer_than_bounded(
    held: Held,
) -> None:
    os.write(held.fds[0], b"out\n")
    held.streams.finish(3, at_once=False)
    assert held.told.get(timeout=PATIENCE_S) == {"call": 3}
    assert held.logged() == [b"stdout F out"]


def test_a_bundle_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Held(tmp_path / "gone")


def test_a_thread_that_fails_leaves_the_fifos_and_says_so(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HeldStreams) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(HeldStreams, "_turn", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    request = {"id": "c", "dir": str(short_path), "log": None, "terminal": True}
    HeldStreams({**request, "stdin": False, "stdin_once": False}, told.put, lambda: None).start()
    assert told.get(timeout=PATIENCE_S) == {"event": "lost", "id": "c"}
    assert (short_path / "stdout").is_fifo()


def test_a_log_that_can_not_be_opened_holds_nothing_up(short_path: Path) -> None:
    held = Held(short_path, log="/nowhere/c.log")
    os.write(held.fds[0], b"lost\n")
    held.end()
