from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

from cri_shim.config.render import reference_markdown

if TYPE_CHECKING:
    import pytest


def test_running_the_package_prints_the_reference_page(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("cri_shim.config", run_name="__main__")
    assert capsys.readouterr().out == reference_markdown()
