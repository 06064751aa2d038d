"""Counters of interfaces, whoever made the interfaces and the process that shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.host.interface_counters import (
    MAX_BYTES,
    InterfaceCounters,
    interface_counters,
    parse_net_dev,
)

HEAD = b"""Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
"""
ETH0 = b"  eth0: 1 2 3 4 5 6 7 8 11 12 13 14 15 16 17 18\n"


def test_each_interface_is_a_row() -> None:
    rows = parse_net_dev(HEAD + b"    lo:       0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n" + ETH0)
    assert rows == [
        InterfaceCounters("lo", *([0] * 8)),
        InterfaceCounters("eth0", 1, 2, 3, 4, 11, 12, 13, 14),
    ]


@pytest.mark.parametrize(
    "line", [b"eth0: 1 2 3", b"eth0:" + b" -1" * 16, b"eth0" + b" 1" * 16, b"", b":", b"\xff\x00"]
)
def test_a_line_of_another_form_is_left_out(line: bytes) -> None:
    assert parse_net_dev(line + b"\n" + ETH0) == parse_net_dev(ETH0)


def test_a_name_that_is_no_text_is_made_one() -> None:
    [row] = parse_net_dev(b"\xffx: " + b"1 " * 16)
    assert row.name == "\ufffdx"


def test_what_this_process_sees_is_read() -> None:
    own = Path("/proc/self/ns/net")
    rows = interface_counters(os.getpid(), own)
    assert "lo" in {row.name for row in rows or ()}


class Proc:
    """A /proc with one process, and a pinned namespace."""

    def __init__(self, base: Path, text: bytes) -> None:
        self.dir = base / "proc"
        (self.dir / "42/ns").mkdir(parents=True)
        (self.dir / "42/net").mkdir()
        (self.dir / "42/net/dev").write_bytes(text)
        self.pin = base / "pin"
        self.pin.touch()
        (self.dir / "42/ns/net").symlink_to(self.pin)

    def read(self, pid: int = 42) -> list[InterfaceCounters] | None:
        return interface_counters(pid, self.pin, str(self.dir))


def test_a_process_elsewhere_shows_nothing(tmp_path: Path) -> None:
    """Its pid was the pause process's."""
    proc = Proc(tmp_path, HEAD + ETH0)
    assert [row.name for row in proc.read() or ()] == ["eth0"]
    proc.pin.rename(tmp_path / "former")
    proc.pin.touch()
    (tmp_path / "proc/42/ns/net").unlink()
    (tmp_path / "proc/42/ns/net").symlink_to(tmp_path / "former")
    assert proc.read() is None


def test_a_process_that_is_gone_shows_nothing(tmp_path: Path) -> None:
    proc = Proc(tmp_path, ETH0)
    assert proc.read(43) is None
    (tmp_path / "proc/42/net/dev").unlink()
    assert proc.read() is None
    proc.pin.unlink()
    assert proc.read() is None


def test_a_crowd_of_interfaces_is_cut(tmp_path: Path) -> None:
    proc = Proc(tmp_path, ETH0 * (3 * MAX_BYTES // len(ETH0)))
    assert 0 < len(proc.read() or ()) * len(ETH0) <= 2 * MAX_BYTES
