"""A harness per test."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cri_shim.background import until_done
from cri_shim.sandbox import exit_handling
from tests.fakes.node_harness import NodeHarness, open_harness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must not be given up is tried again almost at once."""
    monkeypatch.setattr(exit_handling, "until_done", partial(until_done, first_pause_s=0.001))


@pytest_asyncio.fixture
async def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeHarness]:
    """All use cases on a fake kernel."""
    async with open_harness(tmp_path, monkeypatch) as opened:
        yield opened
