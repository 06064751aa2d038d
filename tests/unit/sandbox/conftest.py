"""A house per test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.fakes.house import House, open_house

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest


@pytest_asyncio.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """All use cases on a fake kernel."""
    async with open_house(tmp_path, monkeypatch) as opened:
        yield opened
