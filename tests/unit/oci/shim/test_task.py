"""The task API's errors in the daemon's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import (
    DeadlineError,
    NotFoundError,
    RuntimeCommandError,
    UnavailableError,
    UnsupportedError,
)
from cri_shim.oci.shim.task import Task
from cri_shim.ttrpc.errors import CallError, Code
from tests.fakes.ttrpc import client_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.NOT_FOUND, NotFoundError),
        (Code.UNIMPLEMENTED, UnsupportedError),
        (Code.DEADLINE_EXCEEDED, DeadlineError),
        (Code.UNKNOWN, RuntimeCommandError),
    ],
)
async def test_a_refusal_names_container_and_method(
    short_path: Path, code: Code, kind: type[Exception]
) -> None:
    async def refuse(_request: bytes) -> bytes:
        raise CallError(code, "words\x1b of the shim: unknown")

    async with client_of({"s": {"State": refuse}}, short_path / "s") as client:
        task = Task(client, "s", handler="h", timeout_s=5)
        with pytest.raises(kind) as refusal:
            await task.state("abc")
    assert "abc" in str(refusal.value)
    assert "words  of the shim" in str(refusal.value)


async def test_answers_that_can_not_be_read_and_connections_that_end_are_unavailable(
    short_path: Path,
) -> None:
    async def garbage(_request: bytes) -> bytes:
        return b"\xff\xff"

    async with client_of({"s": {"Pids": garbage, "State": garbage}}, short_path / "s") as client:
        task = Task(client, "s", handler="h", timeout_s=5)
        with pytest.raises(UnavailableError, match="can't be read"):
            await task.state("abc")
        task.close()
        with pytest.raises(UnavailableError, match="closed"):
            await task.pids("abc")
