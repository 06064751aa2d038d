"""What is written behind a log's last line, and what never is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cri_shim.sandbox.log_end import TAIL_BYTES, close_log, closing_records

if TYPE_CHECKING:
    from pathlib import Path

EARLY, LATE = b"2026-11-30T10:00:00.000000001+00:00", b"2026-11-30T10:00:00.000000002Z"


def record(stream: bytes, tag: bytes, text: bytes = b"x", at: bytes = EARLY) -> bytes:
    return b"%s %s %s %s\n" % (at, stream, tag, text)


OUT_OPEN, OUT_CLOSED = record(b"stdout", b"P"), record(b"stdout", b"F")
ERR_OPEN, ERR_CLOSED = record(b"stderr", b"P", at=LATE), record(b"stderr", b"F", at=LATE)


@pytest.mark.parametrize(
    ("tail", "written"),
    [
        (b"", b""),
        (OUT_CLOSED, b""),
        (OUT_OPEN, record(b"stdout", b"F", b"")),
        (OUT_OPEN + OUT_CLOSED, b""),
        (OUT_CLOSED + OUT_OPEN + OUT_OPEN, record(b"stdout", b"F", b"")),
        (OUT_OPEN + ERR_CLOSED, record(b"stdout", b"F", b"", LATE)),
        (ERR_OPEN, record(b"stderr", b"F", b"", LATE)),
        (
            OUT_OPEN + ERR_OPEN,
            record(b"stdout", b"F", b"", LATE) + record(b"stderr", b"F", b"", LATE),
        ),
        (OUT_OPEN[:-1], b""),
        (OUT_OPEN + b"no record\n", record(b"stdout", b"F", b"")),
        (b"a line of something else\n", b""),
    ],
)
def test_only_a_stream_whose_last_record_is_open_is_closed(tail: bytes, written: bytes) -> None:
    assert closing_records(tail) == written
    if not tail or tail.endswith(b"\n"):
        assert closing_records(tail + written) == b""


def test_a_log_is_closed_once(tmp_path: Path) -> None:
    log = tmp_path / "main/0.log"
    log.parent.mkdir()
    log.write_bytes(OUT_OPEN)
    for _ in range(2):
        close_log(str(tmp_path), log)
        assert log.read_bytes() == OUT_OPEN + record(b"stdout", b"F", b"")


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "0.log"
    long = record(b"stdout", b"F", b"y" * 8000) * 20
    assert len(long) > TAIL_BYTES
    log.write_bytes(ERR_OPEN + long + OUT_OPEN)
    close_log(str(tmp_path), log)
    assert log.read_bytes() == ERR_OPEN + long + OUT_OPEN + record(b"stdout", b"F", b"")


def test_a_log_that_was_rotated_away_is_not_made_anew(tmp_path: Path) -> None:
    close_log(str(tmp_path), tmp_path / "0.log")
    assert list(tmp_path.iterdir()) == []


def test_the_directory_may_lie_behind_a_link_of_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "logs").symlink_to("real")
    (tmp_path / "real/0.log").write_bytes(OUT_OPEN)
    close_log(str(tmp_path / "logs"), tmp_path / "logs/0.log")
    assert (tmp_path / "real/0.log").read_bytes() != OUT_OPEN


@pytest.mark.parametrize("way", ["link", "hard link", "directory's link", "fifo"])
def test_nothing_is_written_where_somebody_else_led_us(tmp_path: Path, way: str) -> None:
    logs, outside = tmp_path / "logs", tmp_path / "outside"
    (logs / "main").mkdir(parents=True)
    outside.mkdir()
    (outside / "0.log").write_bytes(OUT_OPEN)
    log = logs / "main/0.log"
    match way:
        case "link":
            log.symlink_to(outside / "0.log")
        case "hard link":
            os.link(outside / "0.log", log)
        case "fifo":
            os.mkfifo(log)
        case _:
            (logs / "main").rmdir()
            (logs / "main").symlink_to(outside)
    if way in ("link", "directory's link"):
        with pytest.raises(OSError, match="symbolic links"):
            close_log(str(logs), log)
    else:
        close_log(str(logs), log)
    assert (outside / "0.log").read_bytes() == OUT_OPEN
