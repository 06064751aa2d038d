"""Layers that go: out of the list at once, their files in a thread, and none lost where that fails."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING

import pytest

from cri_shim.image.layer_records import LayerRecords
from cri_shim.image.layers import LayerStore
from tests.unit.image.test_layer_records import stack

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.image.layer_records import Layer

pytestmark = pytest.mark.asyncio
DEEP = 500


class Store:
    """A store with one image's layers on disk."""

    def __init__(self, base: Path) -> None:
        self.layers = stack(LayerRecords(base / "unused"), 1, DEEP)
        records = LayerRecords(base / "records")
        (base / "records").mkdir()
        for layer in self.layers:
            (base / "layers" / layer.name).mkdir(parents=True)
            records.write(layer, fsync=False)
        self.records_dir, self.dir = base / "records", base / "layers"
        self.store = LayerStore(self.dir, self.records_dir)
        self.store.open(base / "damaged")

    def here(self) -> list[Layer]:
        return [layer for layer in self.layers if self.store.get(layer.chain_id)]

    def sweep(self) -> asyncio.Task[list[Path]]:
        unneeded = self.store.unneeded(set(), (), among=None)
        return asyncio.ensure_future(self.store.detach(unneeded))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def test_loop_goes_on_while_the_files_of_many_layers_go(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, go = LayerRecords.unlink, threading.Event()

    def waits(records: LayerRecords, layer: Layer) -> None:
        go.wait(20)
        unlink(records, layer)

    monkeypatch.setattr(LayerRecords, "unlink", waits)
    assert len(store.here()) == DEEP
    sweeping = store.sweep()
    await asyncio.sleep(0)
    assert store.here() == []  # nobody begins to use one
    assert len(list(store.records_dir.iterdir())) == DEEP
    assert not sweeping.done()
    go.set()
    trash = await sweeping
    assert len(trash) == DEEP
    assert not any(store.records_dir.iterdir())
    assert store.store.disk_bytes == 0
    assert store.store.leftovers() == []  # somebody works on them: whoever has `trash`
    await store.store.delete(trash)
    assert [path.name for path in store.dir.iterdir()] == [".ingest"]
    assert store.store.leftovers() == []


async def test_layers_whose_records_can_not_be_removed_stay_as_they_were(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, left = LayerRecords.unlink, iter(range(DEEP))

    def fails_later(records: LayerRecords, layer: Layer) -> None:
        if next(left) >= 3:
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(records, layer)

    monkeypatch.setattr(LayerRecords, "unlink", fails_later)
    trash = await store.sweep()
    assert len(trash) == 3
    assert len(store.here()) == DEEP - 3
    assert store.store.unrecorded([layer.chain_id for layer in store.here()]) == []
    monkeypatch.undo()
    assert len(await store.sweep()) == DEEP - 3


async def test_cancelled_sweep_leaves_leftovers_for_a_collection(store: Store) -> None:
    sweeping = store.sweep()
    await asyncio.sleep(0)
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    assert store.here() == []
    assert len(store.store.leftovers()) == DEEP
