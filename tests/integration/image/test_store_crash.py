"""The store after SIGKILL at any moment: what it lists is whole, and what it doesn't list is gone."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cri_shim
from cri_shim.image.store import ImageStore
from tests.integration.image.scene import until_children_are

if TYPE_CHECKING:
    from cri_shim.host.process import Reaper

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
KILLS = 12
MAX_STEPS = 4
FILES = 40

CHURN = f"""
import asyncio, itertools, sys
from pathlib import Path
from cri_shim.host.process import Reaper
from cri_shim.image.store import ImageStore
from tests.images import file, layer, oci_archive, stream

def archive(number):
    shared = [layer(*(file(f"shared/{{n}}", b"s" * n) for n in range({FILES})), compression="gzip")]
    own = layer(*(file(f"own/{{n}}", b"%d" % number) for n in range({FILES})), compression="zstd")
    return oci_archive(*shared, own, name=f"r.example/churn:{{number}}")

async def main():
    reaper = Reaper()
    reaper.open()
    place = Path(sys.argv[1])
    store = await ImageStore.open(place / "images", place / "layers", reaper)
    for number in itertools.cycle(range(6)):
        print(number, flush=True)
        [image] = await store.import_archive(stream(archive(number)))
        if number % 3 == 1:
            # As a repair has it: both layers come once more, and take the place of those that are here.
            for chain_id in image.chain:
                store._layers.mark_damaged(chain_id)
            await store.import_archive(stream(archive(number)))
            await store.sweep()
        if number % 3 == 2:
            await store.remove(f"r.example/churn:{{number - 1}}")
            await store.collect()

asyncio.run(main())
"""


async def test_a_store_that_was_killed_tells_no_lie(tmp_path: Path, reaper: Reaper) -> None:
    seed = random.Random(6)
    package = str(Path(cri_shim.__file__).parent.parent)
    listed = 0
    for _ in range(KILLS):
        receiving, sending = os.pipe()
        child = reaper.spawn(
            [sys.executable, "-c", CHURN, str(tmp_path)],
            stdout=sending,
            env={"PYTHONPATH": package},
            cwd=package,
        )
        os.close(sending)
        with open(receiving, "rb") as steps:
            # How long a step takes depends on the machine; how many are done before the last one does not.
            for _ in range(1 + seed.randrange(MAX_STEPS)):
                assert await asyncio.to_thread(steps.readline)
            await asyncio.sleep(seed.random() * 0.2)
            assert child.ending is None
            child.kill()
            await child.wait()
        listed += await check(tmp_path, reaper)
        await until_children_are(set())
    assert listed > 0


async def check(place: Path, reaper: Reaper) -> int:
    """What is listed is whole; nothing else is there. How many images are listed."""
    store = await ImageStore.open(place / "images", place / "layers", reaper)
    await store.sweep()
    names = {".ingest"}
    blobs = 0
    for image in store.images():
        number = image.repo_tags[0].rpartition(":")[2].encode()
        top, low = store.layer_stack(image).lowers
        names |= {top, low}
        for n in range(FILES):
            assert (place / "layers" / top / f"own/{n}").read_bytes() == number
            assert (place / "layers" / low / f"shared/{n}").read_bytes() == b"s" * n
        blobs += 3  # manifest, configuration and one layer of its own
    assert {path.name for path in (place / "layers").iterdir()} == names
    shared = 1 if blobs else 0
    assert len(list((place / "images/blobs/sha256").iterdir())) == blobs + shared
    assert list((place / "images/.ingest").iterdir()) == []
    assert list((place / "layers/.ingest").iterdir()) == []
    assert not (place / "images/damaged").exists()
    await store.close()
    return len(store.images())
