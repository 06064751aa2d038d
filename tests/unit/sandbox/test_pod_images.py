"""The pause image: made once, however many ask, or pulled where the configuration names one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from cri_shim.image.builtin import PAUSE_REFERENCE
from cri_shim.sandbox.pod_images import PauseImage
from tests.fakes.networks import FakeImages, FakePuller

if TYPE_CHECKING:
    from cri_shim.image.store import ImageStore

pytestmark = pytest.mark.asyncio


async def test_the_configured_one_is_pulled_once_and_then_found() -> None:
    images = FakeImages()
    pause = PauseImage(
        cast("ImageStore", images), "registry.local/pause:1", FakePuller(images).pull
    )
    image = await pause.get()
    assert (await pause.get()).id == image.id
    assert images.pulls == ["registry.local/pause:1"]
    assert images.imports == []
    assert pause.layers(image) == (f"top-{image.id[-4:]}", "base")


async def test_the_built_in_one_is_imported_when_it_is_missing_once_for_all_who_ask() -> None:
    images = FakeImages()
    images.forget(PAUSE_REFERENCE)
    pause = PauseImage(cast("ImageStore", images), None, FakePuller(images).pull)
    found = await asyncio.gather(*(pause.get() for _ in range(5)))
    assert {image.id for image in found} == {found[0].id}
    assert images.imports == [PAUSE_REFERENCE]
    assert images.pulls == []


async def test_an_image_that_was_removed_before_its_pod_is_swept_with_it() -> None:
    images = FakeImages()
    pause = PauseImage(cast("ImageStore", images), None, FakePuller(images).pull)
    image = await pause.get()
    await pause.sweep_after(image.id)
    assert images.sweeps == 0
    images.forget(PAUSE_REFERENCE)
    await pause.sweep_after(image.id)
    assert images.sweeps == 1
