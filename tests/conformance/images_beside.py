"""Root file systems of odd images beside those of Debian's containerd: byte for byte, attribute for attribute.

    python -m tests.conformance.images_beside [--images 1000] [--first 0]

Each image (`tests.odd_images`) is imported into a store of ours and into a containerd of its own, and what a container
would see of it is compared with the model of the image-spec (`tests.oci_layers`). Ours has to be equal for every image.
containerd's has to be equal for every second one; the others also have what containerd 1.6 does in a way of its own,
which docs/images.md lists. A table tells how many were equal, and what the others had. Whatever else differs is a
failure.

Needs root, and the package containerd.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cri_shim.errors import CriShimError
from cri_shim.host.mounts import unmount
from cri_shim.host.process import Reaper
from cri_shim.image.store import ImageStore
from tests.bench.containerd import containerd
from tests.harness.isolation import disk_dir
from tests.images import stream
from tests.odd_images import OddImage, odd_image
from tests.rootfs import GHOST, mounted, seen

if TYPE_CHECKING:
    from collections.abc import Collection

Facts = dict[str, tuple[object, ...]]
_MTIME = 4
_NO_CRI = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'


class Beside:
    """Two that unpack, and what came of it."""

    def __init__(self, work: Path, store: ImageStore, socket: Path) -> None:
        self._work = work
        self._store = store
        self._socket = socket
        self.equal: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.failures: list[str] = []

    async def compare(self, image: OddImage) -> None:
        """One image, on both sides."""
        want = image.tree.facts()
        try:
            self._judge("cri-shim", image, difference(await self._ours(image), want))
        except CriShimError as error:
            self._judge("cri-shim", image, str(error))
        try:
            found = await asyncio.to_thread(self._theirs, image)
        except subprocess.CalledProcessError as error:
            self._judge("containerd", image, f"refused: {error.stderr.decode()[-300:]}")
            return
        ghosts = [name for name, fact in found.items() if fact == GHOST]
        if ghosts:
            self.reasons["a listing shows a whiteout"] += 1
        found = {name: fact for name, fact in found.items() if fact != GHOST}
        self._judge("containerd", image, difference(found, want, undated=image.tree.needed()))

    def _judge(self, whose: str, image: OddImage, problem: str) -> None:
        if not problem:
            self.equal[whose] += 1
        elif whose == "containerd" and image.tree.departures:
            self.equal[f"{whose}, in a way of its own"] += 1
            self.reasons.update(image.tree.departures)
        else:
            layers = "\n    ".join(image.listing)
            self.failures.append(f"{whose}, {image.name}: {problem}\n    {layers}")

    async def _ours(self, image: OddImage) -> Facts:
        [known] = await self._store.import_archive(stream(image.archive))
        with (
            TemporaryDirectory(dir=self._work) as work,
            mounted(self._store.layer_stack(known), Path(work)) as root,
        ):
            return seen(root)

    def _theirs(self, image: OddImage) -> Facts:
        archive = self._work / "image.tar"
        archive.write_bytes(image.archive)
        self._ctr("image", "import", "--snapshotter", "overlayfs", str(archive))
        if not image.chain_id:
            return {}  # it has no snapshot to mount
        with TemporaryDirectory(dir=self._work) as target:
            self._ctr("image", "mount", "--snapshotter", "overlayfs", image.name, target)
            try:
                return seen(Path(target))
            finally:
                unmount(Path(target))

    def _ctr(self, *command: str) -> None:
        subprocess.run(
            ["ctr", "--address", str(self._socket), *command], check=True, capture_output=True
        )


def difference(found: Facts, want: Facts, undated: Collection[str] = ()) -> str:
    """The first name that differs, and how; `undated` are those whose time does not count."""
    for name in sorted(found.keys() | want.keys()):
        has, should = found.get(name), want.get(name)
        if has is not None and should is not None:
            loose = name in undated or should[_MTIME] is None
            if loose and (*has[:_MTIME], *has[_MTIME + 1 :]) == (
                *should[:_MTIME],
                *should[_MTIME + 1 :],
            ):
                continue
        if has != should:
            return f"{name[:60]!r} is {has!r:.300}, not {should!r:.300}"
    return ""


async def run(numbers: range) -> int:
    """Compare these images. Zero when all is as it must be."""
    if os.geteuid() != 0:
        raise SystemExit("it needs root")
    with (
        TemporaryDirectory(dir=disk_dir()) as directory,
        containerd(Path(directory) / "containerd", top=_NO_CRI) as (_, socket),
    ):
        place = Path(directory)
        reaper = Reaper()
        reaper.open()
        store = await ImageStore.open(place / "images", place / "layers", reaper)
        beside = Beside(place, store, socket)
        try:
            for number in numbers:
                await beside.compare(odd_image(number))
        finally:
            await store.close()
            reaper.close()
    for failure in beside.failures[:20]:
        print(failure)
    print(f"{len(numbers)} images, {len(beside.failures)} failures; equal to the image-spec:")
    for what, count in sorted(beside.equal.items()):
        print(f"  {count:5} {what}")
    print("what containerd's own ways were, of those that differ:")
    for what, count in beside.reasons.most_common():
        print(f"  {count:5} {what}")
    return 1 if beside.failures else 0


def main() -> int:
    """Read the arguments, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    options = parser.parse_args()
    return asyncio.run(run(range(options.first, options.first + options.images)))


if __name__ == "__main__":
    sys.exit(main())
