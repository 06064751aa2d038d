"""The one connection to a container's monitor, which all attach sessions of the container share.

Rules:
- A client of conmon that doesn't read blocks the container's output, its log and the record of its exit. So this client
  always reads. If a member's pipe has no room, that member's session ends with the reason. Nobody is waited for.
- Input is passed on as conmon takes it. Meanwhile the members' pipes fill up, and their clients wait.
- With `stdin_once`, the end of the first member's input ends the container's stdin. conmon takes any end of the
  connection for that, so the connection stays open until then.
- The daemon made the connection and pipes, and may have kept a descriptor to break the connection off. Our close alone
  would then not end it, so we shut it down explicitly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.errors import ResourceExhaustedError
from cri_shim.oci.attach_pipes import MEMBER_BYTES, Pipes
from cri_shim.oci.attach_wire import (
    MAX_INPUT_PACKET_BYTES,
    MAX_OUTPUT_PACKET_BYTES,
    Source,
    split_packets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PACKETS_AT_ONCE = 32


@dataclass(eq=False, slots=True)
class Member:
    """One attach session: its ends of the pipes, which it closes, and the future it waits for."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    ended: asyncio.Future[int] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """0 when the container's streams have ended. A CriShimError when this member was dropped. The member cancels it to
    leave."""


@dataclass(eq=False, slots=True)
class _Place:
    """Our ends of a member's pipes."""

    member: Member
    outputs: dict[Source, int] = field(default_factory=dict)
    stdin: int | None = None


class AttachClient:
    """The connection, while anybody is attached: call `join`."""

    def __init__(
        self,
        container_id: str,
        connection: socket.socket,
        *,
        stdin: bool,
        stdin_once: bool,
        on_end: Callable[[], None],
    ) -> None:
        """`stdin`: whether the container has one. `on_end` is called when the connection or the last member is gone."""
        connection.setblocking(False)
        self._container_id = container_id
        self._has_stdin = stdin
        self._stdin_once = stdin_once
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._places: set[_Place] = set()
        self._packet = b""
        """Input for which conmon has no room yet."""
        self._closing_stdin = False
        self._ended = False
        self.packets_read = 0
        self._loop.add_reader(self._socket, self._read)

    def join(self, pipes: Pipes) -> Member:
        """Add a member. It gets its ends of the pipes."""
        place = _Place(Member())
        if pipes.stdout is not None:
            place.member.stdout, place.outputs[Source.STDOUT] = pipes.stdout
        if pipes.stderr is not None:
            place.member.stderr, place.outputs[Source.STDERR] = pipes.stderr
        if pipes.stdin is not None:
            if self._has_stdin and not self._closing_stdin:
                place.stdin, place.member.stdin = pipes.stdin
            else:
                for fd in pipes.stdin:
                    os.close(fd)
        self._places.add(place)
        if place.stdin is not None and not self._packet:
            self._loop.add_reader(place.stdin, self._pass_input, place)
        place.member.ended.add_done_callback(lambda _: self._leave(place))
        return place.member

    # --- output

    def _read(self) -> None:
        packets: list[bytes] = []
        over = False
        try:
            while len(packets) < PACKETS_AT_ONCE:
                packet = self._socket.recv(MAX_OUTPUT_PACKET_BYTES)
                if not packet:
                    over = True
                    break
                packets.append(packet)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # conmon died
            over = True
        self.packets_read += len(packets)
        for source, pieces in split_packets(packets).items():
            size = sum(map(len, pieces))
            for place in list(self._places):
                fd = place.outputs.get(source)
                if fd is not None:
                    self._deliver(place, fd, pieces, size)
        if over:
            self._end()

    def _deliver(self, place: _Place, fd: int, pieces: list[memoryview], size: int) -> None:
        try:
            written = os.writev(fd, pieces)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:  # EPIPE: the member closed its end
            self._leave(place)
            return
        if written < size and not place.member.ended.done():
            place.member.ended.set_exception(
                ResourceExhaustedError(
                    f"container {self._container_id}: this client fell more than {MEMBER_BYTES >> 20} MiB behind the "
                    "container's output and was detached; the log has all of it"
                )
            )
            self._leave(place)

    # --- input

    def _pass_input(self, place: _Place) -> None:
        assert place.stdin is not None  # noqa: S101 - without it nothing calls this
        try:
            data = os.read(place.stdin, MAX_INPUT_PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            self._input_ended(place)
            return
        self._packet = data
        if not self._send():
            self._loop.add_writer(self._socket, self._on_writable)
            self._pause_inputs()

    def _send(self) -> bool:
        """Send the held packet; True if it was sent, or conmon is gone."""
        try:
            self._socket.send(self._packet)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # conmon is gone; `_read` notices
            pass
        self._packet = b""
        return True

    def _on_writable(self) -> None:
        if not self._send():
            return
        self._loop.remove_writer(self._socket)
        if self._closing_stdin:
            self._close_stdin()
        for place in self._places:
            if place.stdin is not None:
                self._loop.add_reader(place.stdin, self._pass_input, place)
        self._end_if_deserted()

    def _pause_inputs(self) -> None:
        for place in list(self._places):
            if place.member.ended.done():
                self._input_ended(place)  # this member has left already: don't wait for its pipe
            elif place.stdin is not None:
                self._loop.remove_reader(place.stdin)

    def _input_ended(self, place: _Place) -> None:
        if place.stdin is not None:
            self._loop.remove_reader(place.stdin)
            os.close(place.stdin)
            place.stdin = None
        if place.member.ended.done():
            self._places.discard(place)
        if self._stdin_once and not self._closing_stdin:
            self._closing_stdin = True
            for other in list(self._places):
                self._input_ended(other)
            if not self._packet:
                self._close_stdin()
        self._end_if_deserted()

    def _close_stdin(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._end_if_deserted()

    # --- ends

    def _leave(self, place: _Place) -> None:
        if place not in self._places:
            return
        for fd in place.outputs.values():
            os.close(fd)
        place.outputs.clear()
        if place.stdin is None:
            self._places.discard(place)
            self._end_if_deserted()
        elif self._packet:
            self._input_ended(place)
        # Otherwise pass its input on up to the end, which comes soon, since the member closes its pipe.

    def _end_if_deserted(self) -> None:
        keeps_stdin = self._has_stdin and self._stdin_once and not self._closing_stdin
        if not self._places and not self._packet and not keeps_stdin:
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        with contextlib.suppress(OSError):  # conmon may be gone
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        places, self._places = self._places, set()
        for place in places:
            self._close_place(place)
            if not place.member.ended.done():
                place.member.ended.set_result(0)
        self._on_end()

    def _close_place(self, place: _Place) -> None:
        if place.stdin is not None:
            self._loop.remove_reader(place.stdin)
            os.close(place.stdin)
            place.stdin = None
        for fd in place.outputs.values():
            os.close(fd)
        place.outputs.clear()
