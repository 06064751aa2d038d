"""Pressure as the kernels of different ages write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.host.cgroups.pressure import Pressure, Stalls, read_pressure

if TYPE_CHECKING:
    from pathlib import Path

SOME = b"some avg10=1.50 avg60=0.75 avg300=0.25 total=1234567\n"
FULL = b"full avg10=100.00 avg60=20.00 avg300=3.00 total=18446744073709551615\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            SOME + FULL,
            Pressure(
                Stalls(1_234_567, 1.5, 0.75, 0.25), Stalls(18446744073709551615, 100.0, 20.0, 3.0)
            ),
        ),
        (SOME, Pressure(some=Stalls(1_234_567, 1.5, 0.75, 0.25))),
        (b"", None),
        (b"some avg10=1.50 avg60=0.75\n", None),
        (b"\xff\x00", None),
    ],
    ids=["both", "before 5.13", "empty", "cut", "no text"],
)
def test_pressure_is_what_the_kernel_wrote(
    tmp_path: Path, text: bytes, expected: Pressure | None
) -> None:
    (tmp_path / "cpu.pressure").write_bytes(text)
    assert read_pressure(f"{tmp_path}/cpu.pressure") == expected


def test_pressure_that_is_not_accounted_is_none(tmp_path: Path) -> None:
    assert read_pressure(f"{tmp_path}/cpu.pressure") is None
