"""A chain whose plugins do anything but their work, at every verb of an attachment: nothing hangs or is lost."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.errors import CniPluginError

from .conftest import make_cni

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper
    from tests.unit.cni.conftest import Node

pytestmark = pytest.mark.asyncio

BEHAVIOURS = [
    {"do": "fail", "msg": "no", "after_effect": False},
    {"do": "hang", "helper": True, "after_effect": False},
    {"do": "crash", "after_effect": False},
    {"do": "die", "after_effect": False},
    {"do": "flood", "bytes": 4 << 20, "after_effect": False},
]


@pytest.mark.parametrize("step", BEHAVIOURS, ids=lambda step: step["do"])
@pytest.mark.parametrize("verb", ["DEL", "CHECK"])
async def test_a_verb_that_fails_in_whatever_way_is_reported_and_can_be_repeated(
    node: Node, reaper: Reaper, verb: str, step: dict[str, object]
) -> None:
    await node.cni.add(node.attachment())
    node.script("first", **{verb: step})
    # A deadline for the one that hangs only: whatever else a plugin does may take as long as a busy machine needs.
    hangs = step["do"] == "hang"
    failing = make_cni(node.root, reaper, timeout_s=0.4) if hangs else node.cni
    complaint = f"{verb}: no answer" if hangs else f"first: {verb}: "
    with pytest.raises(CniPluginError, match=complaint):
        await (failing.delete if verb == "DEL" else failing.check)(node.attachment())
    assert node.held()[0] == "first"
    node.script("first")
    await (node.cni.delete if verb == "DEL" else node.cni.check)(node.attachment())
    await node.cni.delete(node.attachment())
    assert node.held() == []
    assert list(node.cache_dir.iterdir()) == []
    assert plugins_running(node) == []


@pytest.mark.parametrize("step", [{"do": "garbage"}, {"do": "silent"}, {"delay": 0.2}])
@pytest.mark.parametrize("verb", ["DEL", "CHECK"])
async def test_what_a_plugin_prints_when_it_succeeds_late_or_not_does_not_matter(
    node: Node, verb: str, step: dict[str, object]
) -> None:
    await node.cni.add(node.attachment())
    node.script("first", **{verb: step})
    await node.cni.check(node.attachment())
    await node.cni.delete(node.attachment())
    assert node.held() == []


def plugins_running(node: Node) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(word.startswith(str(node.root / "bin")) for word in words):
            found.append(pid)
    return found


async def test_a_result_that_is_only_passed_on_is_not_written_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    save = ResultCache.save

    def note(cache: ResultCache, entry: CacheEntry) -> None:
        written.append(entry.result)
        save(cache, entry)

    monkeypatch.setattr(ResultCache, "save", note)
    made = await node.cni.add(node.attachment())
    assert node.order() == ["ADD first", "ADD second"]
    assert written[0] is None
    assert all(later != earlier for earlier, later in pairwise(written))
    assert node.cni.cached_result(node.attachment()) == made
