"""The records of layers: what lies below a layer, in time that grows with the layers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cri_shim.image.layer_records import Layer, LayerRecords

if TYPE_CHECKING:
    from pathlib import Path

DEEP = 500


def stack(records: LayerRecords, number: int, depth: int = DEEP) -> list[Layer]:
    """The layers of an image, lowest first."""
    layers: list[Layer] = []
    for height in range(depth):
        chain_id = f"sha256:{number:032x}{height:032x}"
        layer = Layer(
            chain_id=chain_id,
            diff_id=chain_id,
            parent=layers[-1].chain_id if layers else "",
            name=f"{number}-{height}",
            disk_bytes=1,
            inodes=1,
        )
        records.add(layer, durable=False)
        layers.append(layer)
    return layers


def test_what_a_container_stands_on_is_all_that_is_below_its_layers(tmp_path: Path) -> None:
    records = LayerRecords(tmp_path)
    used, other = stack(records, 1, 4), stack(records, 2, 4)
    below = records.with_all_below([used[2]])
    assert below == {layer.chain_id for layer in used[:3]}
    records.drop(used[1])
    assert records.with_all_below([used[2]]) == {used[2].chain_id}
    assert records.with_all_below([used[2], other[0]]) == {used[2].chain_id, other[0].chain_id}
    assert records.with_all_below([]) == set()


def test_deep_stacks_cost_in_proportion_to_their_layers(tmp_path: Path) -> None:
    """All layers of a container's stack are in use, so each is asked for."""
    records = LayerRecords(tmp_path)
    layers = [layer for number in range(16) for layer in stack(records, number)]
    began_s = time.thread_time()
    for layer in layers:
        records.with_all_below([layer] if not layer.parent else [])
    flat_s = time.thread_time() - began_s
    took_s = []
    for _ in range(3):
        began_s = time.thread_time()
        assert len(records.with_all_below(layers)) == len(layers)
        took_s.append(time.thread_time() - began_s)
    assert min(took_s) < 10 * flat_s, "as many steps again for each layer of a stack"
