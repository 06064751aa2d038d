"""conmon's framing, both ways."""

from __future__ import annotations

import pytest

from cri_shim.oci.attach_wire import Source, resize_line, split_packets


def test_packets_are_sorted_by_their_stream_in_their_order() -> None:
    packets = [b"\x02one", b"\x03bad", b"\x02two", b"\x02", b"", b"\x07what"]
    assert split_packets(packets) == {
        Source.STDOUT: [memoryview(b"one"), memoryview(b"two")],
        Source.STDERR: [memoryview(b"bad")],
    }


@pytest.mark.parametrize(
    ("width", "height", "line"),
    [(80, 25, b"1 25 80\n"), (0, 0, b"1 0 0\n"), (1 << 40, 70_000, b"1 65535 65535\n")],
)
def test_a_size_is_a_line_with_the_height_first(width: int, height: int, line: bytes) -> None:
    assert resize_line(width, height) == line
