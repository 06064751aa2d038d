"""Failpoints: how they are written, and where they act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import UnavailableError
from tests.harness.failpoint_daemon import Failpoint, Observer

if TYPE_CHECKING:
    from pathlib import Path


def observer(text: str) -> Observer:
    return Observer(Failpoint.parse(text), None)


@pytest.mark.parametrize(
    "text", ["", "sandbox netns kill", "sandbox netns x kill", "sandbox netns 1 explode"]
)
def test_text_that_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KIND STEP NTH ACTION"):
        Failpoint.parse(text)


def test_other_steps_and_kinds_pass() -> None:
    observe = observer("sandbox netns 1 raise")
    observe("sandbox 1a2b", "record")
    observe("container 3c4d", "netns")


def test_the_step_of_that_number_fails() -> None:
    observe = observer("container rootfs 2 raise")
    observe("container 1a2b", "rootfs")
    with pytest.raises(UnavailableError, match="container 3c4d, step rootfs"):
        observe("container 3c4d", "rootfs")
    observe("container 5e6f", "rootfs")


def test_any_step_counts_every_step_of_the_kind() -> None:
    observe = observer("sandbox * 3 bug")
    observe("sandbox 1a2b", "record")
    observe("sandbox 1a2b", "netns")
    with pytest.raises(ZeroDivisionError, match="step network"):
        observe("sandbox 1a2b", "network")


def test_steps_are_recorded_in_order(tmp_path: Path) -> None:
    record = tmp_path / "steps"
    observe = Observer(None, record)
    observe("sandbox 1a2b", "record")
    observe("sandbox 1a2b", "commit")
    assert record.read_text() == "sandbox record\nsandbox commit\n"
