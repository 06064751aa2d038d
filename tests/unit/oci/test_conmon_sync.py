from __future__ import annotations

import asyncio
import contextlib
import os

from hypothesis import given
from hypothesis import strategies as st

from cri_shim.oci.conmon_sync import Pipe, Report, own_words, parse_report, read_line


def test_report_is_a_pid_or_a_failure_with_its_words() -> None:
    assert parse_report(b'{"pid": 12}\n') == Report(12)
    assert parse_report(b'{"pid": -1, "message": "a\\nb"}\n') == Report(-1, "a\nb")


def test_bytes_that_the_runtime_let_slip_are_replaced() -> None:
    report = parse_report(b'{"pid": -1, "message": "x\x1f\xff\x01y"}\n')

    assert report == Report(-1, "x \ufffd y")


@given(st.binary())
def test_any_bytes_are_a_report_or_none(line: bytes) -> None:
    assert parse_report(line) is None or isinstance(parse_report(line), Report)


def test_line_ends_at_its_newline_its_bound_or_the_end() -> None:
    async def read(*writes: bytes, close: bool = False) -> bytes:
        with contextlib.ExitStack() as owner:
            pipe = Pipe(owner)
            reading = asyncio.create_task(read_line(pipe.read_fd, 8))
            for data in writes:
                os.write(pipe.write_fd, data)
                await asyncio.sleep(0)
            if close:
                pipe.close_write()
            return await reading

    async def main() -> list[bytes]:
        return [
            await read(b"ab", b"c\n"),
            await read(b"0123456789"),
            await read(b"ab", close=True),
            await read(close=True),
        ]

    assert asyncio.run(main()) == [b"abc\n", b"01234567", b"ab", b""]


def test_own_words_lose_their_marks_and_silence_is_said() -> None:
    with contextlib.ExitStack() as owner:
        pipe = Pipe(owner)
        silence = own_words(pipe.read_fd)
        os.write(pipe.write_fd, b"[conmon:e]: Failed to open log file\n[conmon:w] odd\n")
        words = own_words(pipe.read_fd)

    assert silence == "neither conmon nor the OCI runtime gave a reason"
    assert words == "Failed to open log file\nodd"


def test_ends_of_a_pipe_close_once() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as owner:
        pipe = Pipe(owner)
        pipe.close_read()
        pipe.close_read()

    assert len(os.listdir("/proc/self/fd")) == before
