"""With the pipe alone; a real conmon is in tests/integration/oci."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import DeadlineError, WrongStateError
from cri_shim.oci.conmon_control import reopen_log, resize_terminal

if TYPE_CHECKING:
    from pathlib import Path


def _reopen(bundle_dir: Path, log_file: Path, timeout_s: float = 5.0) -> None:
    asyncio.run(reopen_log(bundle_dir, log_file, timeout_s=timeout_s))


def test_reopening_asks_the_monitor_and_waits_for_the_new_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ctl")
    log_file = tmp_path / "0.log"
    log_file.write_text("old", encoding="ascii")
    asked: list[bytes] = []

    def monitor() -> None:
        with open(tmp_path / "ctl", "rb", buffering=0) as control:
            asked.append(control.read(100))
            (tmp_path / "0.log.tmp").write_text("", encoding="ascii")
            (tmp_path / "0.log.tmp").rename(log_file)

    thread = threading.Thread(target=monitor)
    keep_open = os.open(tmp_path / "ctl", os.O_RDWR)
    thread.start()
    try:
        _reopen(tmp_path, log_file)
    finally:
        thread.join()
        os.close(keep_open)

    assert asked == [b"2 0 0\n"]
    assert log_file.read_text(encoding="ascii") == ""


def test_reopening_for_a_dead_monitor_is_the_wrong_state(tmp_path: Path) -> None:
    with pytest.raises(WrongStateError, match="monitor has exited"):
        _reopen(tmp_path, tmp_path / "0.log")  # there never was a control pipe
    os.mkfifo(tmp_path / "ctl")
    with pytest.raises(WrongStateError, match="monitor has exited"):
        _reopen(tmp_path, tmp_path / "0.log")  # nobody reads it


def test_control_pipe_that_is_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "ctl").write_text("file", encoding="ascii")

    with pytest.raises(WrongStateError, match="is not the monitor's FIFO"):
        _reopen(tmp_path, tmp_path / "0.log")

    assert (tmp_path / "ctl").read_text(encoding="ascii") == "file"


def test_second_request_is_not_sent_while_the_first_is_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ctl")
    reader = os.open(tmp_path / "ctl", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(DeadlineError, match="has not opened a new file"):
            _reopen(tmp_path, tmp_path / "0.log", timeout_s=0.02)
        with pytest.raises(DeadlineError, match="does not read its control pipe"):
            _reopen(tmp_path, tmp_path / "0.log", timeout_s=0.02)
        assert os.read(reader, 100) == b"2 0 0\n"
    finally:
        os.close(reader)


def test_monitor_that_dies_while_it_is_asked_is_noticed_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ctl")
    reader = os.open(tmp_path / "ctl", os.O_RDONLY | os.O_NONBLOCK)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.01, os.close, reader)
        await reopen_log(tmp_path, tmp_path / "0.log", timeout_s=30)

    with pytest.raises(WrongStateError, match="monitor has exited"):
        asyncio.run(main())


def test_sizes_are_told_one_line_at_a_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ctl")
    control = os.open(tmp_path / "ctl", os.O_RDWR | os.O_NONBLOCK)
    try:
        asyncio.run(resize_terminal(tmp_path, 80, 25, timeout_s=1))
        with pytest.raises(DeadlineError, match="does not read its control pipe"):
            asyncio.run(resize_terminal(tmp_path, 1, 2, timeout_s=0.05))
        assert os.read(control, 100) == b"1 25 80\n"
        asyncio.run(resize_terminal(tmp_path, 1, 2, timeout_s=1))
        assert os.read(control, 100) == b"1 2 1\n"
    finally:
        os.close(control)
    with pytest.raises(WrongStateError, match="monitor has exited"):
        asyncio.run(resize_terminal(tmp_path, 80, 25, timeout_s=1))
