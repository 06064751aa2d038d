"""The order of a layer's entries: what an entry means for lower layers, no later entry of the layer leads elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import BadArchiveError
from tests.images import (
    LayerBlob,
    directory,
    file,
    hardlink,
    layer,
    oci_archive,
    opaque,
    symlink,
    whiteout,
)
from tests.integration.image.scene import bring
from tests.rootfs import mounted, seen

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.image.store import ImageStore
    from tests.images import Entry

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

LOW: tuple[Entry, ...] = (
    directory("a", 0o711, mtime=1000),
    file("a/x"),
    file("a/y"),
    directory("b", 0o711, mtime=1000),
    file("b/x"),
    file("b/keep"),
)


async def names(store: ImageStore, tmp_path: Path, *layers: LayerBlob) -> list[str]:
    """What a container lists; names that it could not open are among them."""
    return sorted(await facts(store, tmp_path, *layers))


async def facts(
    store: ImageStore, tmp_path: Path, *layers: LayerBlob
) -> dict[str, tuple[object, ...]]:
    image = await bring(store, oci_archive(*layers, name="order.example/a:1"))
    work = tmp_path / f"mount-{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    with mounted(store.layer_stack(image), work) as root:
        return seen(root)


async def test_a_whiteout_is_not_carried_through_a_link_that_comes_later(
    store: ImageStore, tmp_path: Path
) -> None:
    high = layer(whiteout("a/x"), whiteout("a/y"), directory("b"), file("b/new"), symlink("a", "b"))
    assert await names(store, tmp_path, layer(*LOW), high) == ["a", "b", "b/keep", "b/new", "b/x"]


async def test_a_whiteout_below_what_becomes_a_link_is_no_reason_to_refuse_a_layer(
    store: ImageStore, tmp_path: Path
) -> None:
    high = layer(
        directory("a"),
        whiteout("a/y"),
        directory("b"),
        directory("b/y"),
        file("b/y/z"),
        symlink("a", "/b"),
    )
    found = await names(store, tmp_path, layer(*LOW), high)
    assert found == ["a", "b", "b/keep", "b/x", "b/y", "b/y/z"]


async def test_an_opaque_mark_goes_with_its_directory(store: ImageStore, tmp_path: Path) -> None:
    low = layer(directory("a/d"), file("a/d/x"), directory("b/d"), file("b/d/x"))
    high = layer(directory("a/d"), opaque("a/d"), directory("b/d"), symlink("a", "b"))
    assert await names(store, tmp_path, low, high) == ["a", "b", "b/d", "b/d/x"]


async def test_a_directory_s_time_goes_with_it(store: ImageStore, tmp_path: Path) -> None:
    high = layer(
        directory("b/d", mtime=7), directory("a/d", mtime=5), symlink("a", "b"), file("b/d/f")
    )
    assert (await facts(store, tmp_path, layer(*LOW), high))["b/d"][4] == 7


async def test_a_directory_that_no_entry_describes_takes_after_the_one_that_it_covers(
    store: ImageStore, tmp_path: Path
) -> None:
    low = layer(directory("a/d", 0o700), directory("b/d", 0o711))
    # a/d was implied, and is gone with `a`: what is said of b/d stands.
    high = layer(file("a/d/f"), directory("b/d", 0o755), symlink("a", "b"))
    assert (await facts(store, tmp_path, low, high))["b/d"][1] == 0o755


@pytest.mark.parametrize(
    "entries",
    [
        [whiteout("a/x"), directory("a"), opaque("a")],
        [whiteout("a/x"), whiteout("a/y"), opaque("a"), directory("a")],
        [whiteout("a/x"), directory("a/x"), whiteout("a/x/q"), opaque("a")],
        [whiteout("new/x"), directory("new"), opaque("a"), directory("a")],
        [whiteout("a/sub/x"), opaque("a"), directory("a/sub"), directory("a")],
        [whiteout("b/x"), whiteout("b"), whiteout("a/x"), whiteout("a/y")],
    ],
)
async def test_no_whiteout_is_listed(
    store: ImageStore, tmp_path: Path, entries: list[Entry]
) -> None:
    found = await facts(store, tmp_path, layer(*LOW), layer(*entries))
    assert [name for name, fact in found.items() if len(fact) == 1] == []
    alone = await facts(store, tmp_path, layer(*entries))
    assert [name for name, fact in alone.items() if len(fact) == 1] == []


async def test_taking_a_whiteout_away_leaves_the_time_and_the_count_of_files(
    store: ImageStore, tmp_path: Path
) -> None:
    one = layer(whiteout("d/x"), whiteout("d/y"), directory("d", mtime=77), file("d/f"))
    found = await facts(store, tmp_path, one)
    assert sorted(found) == ["d", "d/f"]
    assert found["d"][4] == 77
    [counted] = [store._layers.get(one.diff_id)]
    assert counted is not None
    assert counted.inodes == 2


async def test_a_directory_that_follows_something_else_shows_nothing_of_lower_layers(
    store: ImageStore, tmp_path: Path
) -> None:
    for between in (file("a"), symlink("a", "b"), whiteout("a")):
        high = layer(between, directory("a", 0o755), file("a/new"))
        found = await facts(store, tmp_path, layer(*LOW), high)
        assert sorted(found) == ["a", "a/new", "b", "b/keep", "b/x"]


async def test_a_path_through_a_whiteout_leads_to_a_new_directory(
    store: ImageStore, tmp_path: Path
) -> None:
    for entries in ([whiteout("a"), file("a/new")], [file("a/new"), whiteout("a")]):
        found = await facts(store, tmp_path, layer(*LOW), layer(*entries))
        assert sorted(found) == ["a", "a/new", "b", "b/keep", "b/x"]
        assert found["a"][1] == 0o755  # nothing of the lower one, which had 0711


async def test_a_hard_link_to_what_the_layer_hides_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    with pytest.raises(BadArchiveError, match="has only a whiteout"):
        await facts(store, tmp_path, layer(*LOW), layer(whiteout("a/x"), hardlink("c", "a/x")))
