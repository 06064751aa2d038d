"""Valid and odd images, as many as some seconds allow: what a container sees is what the image-spec says.

`python -m tests.conformance.images_beside` compares the same images with another runtime's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.images import stream
from tests.odd_images import odd_image
from tests.rootfs import mounted, seen

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.image.store import ImageStore

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

_IMAGES = 50
_MTIME = 4


@pytest.mark.parametrize("first", [0, 50, 100])
async def test_an_odd_image_is_what_the_specification_says(
    store: ImageStore, tmp_path: Path, first: int
) -> None:
    for seed in range(first, first + _IMAGES):
        image = odd_image(seed)
        [known] = await store.import_archive(stream(image.archive))
        work = tmp_path / f"mount-{seed}"
        work.mkdir()
        with mounted(store.layer_stack(known), work) as root:
            found = seen(root)
        expected = image.tree.facts()
        for name, fact in expected.items():
            if fact[_MTIME] is None and name in found:
                found[name] = (*found[name][:_MTIME], None, *found[name][_MTIME + 1 :])
        assert found == expected, f"image {seed}: {image.listing}"
