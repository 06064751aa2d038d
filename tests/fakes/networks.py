"""CNI and images without plugins, registries or files."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cni.conf import NetworkList, parse_conflist
from cri_shim.cni.result import Result, parse_result
from cri_shim.cni.watch import CniStatus
from cri_shim.errors import CniPluginError, NotFoundError, NotReadyError
from cri_shim.image.builtin import PAUSE_REFERENCE
from cri_shim.image.manifest import ImageConfig
from cri_shim.image.model import Image, LayerStack
from cri_shim.image.volume import ImageVolume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from cri_shim.cni.attachment import Attachment
    from tests.fakes.points import Points


CAPABILITIES = (
    "portMappings",
    "bandwidth",
    "dns",
    "cgroupPath",
    "io.kubernetes.cri.pod-annotations",
)


class FakeLeftovers:
    """As `cri_shim.cni.leftover.LeftoverPlugins`, with plugins that exist only by name."""

    def __init__(self, points: Points) -> None:
        self._points = points
        self.found: set[str] = set()

    def at_work(self, container_id: str) -> bool:
        return container_id in self.found

    def containers(self) -> list[str]:
        return sorted(self.found)

    async def end(self, container_id: str) -> None:
        await self._points.pass_by("leftover.end")
        self.found.discard(container_id)


class FakeCni:
    """Stands for `Cni`, with the methods that the sandbox layer uses. Attachments are entries in a dictionary.

    The plugins of its networks declare all `CAPABILITIES`.
    """

    def __init__(self, points: Points, *names: str) -> None:
        self._points = points
        self.networks = {name: _network(name) for name in names or ("pods",)}
        self.ready = True
        self.leftovers = FakeLeftovers(points)
        self.loopback: NetworkList | None = None
        self.refusing: dict[str, CniPluginError] = {}
        """The result of ADD for a network."""
        self.attached: dict[tuple[str, str, str], Attachment] = {}
        self.deleted: list[Attachment] = []
        self.checked: list[Attachment] = []
        self.collected: list[tuple[str, set[tuple[str, str]]]] = []
        """The network and the valid attachments of each GC."""
        self.addresses = {name: f"10.{number}.0.2/24" for number, name in enumerate(self.networks)}

    @property
    def status(self) -> CniStatus:
        if self.ready:
            return CniStatus(ready=True, reason="", message="")
        return CniStatus(ready=False, reason="NetworkPluginNotReady", message="no configuration")

    def default_network(self) -> NetworkList:
        if not self.ready:
            raise NotReadyError("pod network is not ready: no configuration")
        return next(iter(self.networks.values()))

    def network(self, name: str) -> NetworkList:
        if name not in self.networks:
            raise NotReadyError(f"CNI network {name!r} is not configured")
        return self.networks[name]

    def cached_result(self, attachment: Attachment) -> Result | None:
        return self._result(attachment) if _key(attachment) in self.attached else None

    async def check(self, attachment: Attachment) -> None:
        await self._points.pass_by("cni.check")
        self.checked.append(attachment)

    async def collect_garbage(
        self,
        name: str,
        *,
        valid: Callable[[], Collection[tuple[str, str]]],
        known: Callable[[], Collection[tuple[str, str]]],
    ) -> bool:
        await self._points.pass_by("cni.gc")
        known()
        self.collected.append((name, set(valid())))
        return True

    def attachments(self, container_id: str) -> tuple[Attachment, ...]:
        return tuple(a for a in self.attached.values() if a.container_id == container_id)

    async def add(self, attachment: Attachment) -> Result:
        await self._points.pass_by("cni.add")
        if (error := self.refusing.get(attachment.network)) is not None:
            raise error
        self.attached[_key(attachment)] = attachment
        await self._points.pass_by("cni.added")
        return self._result(attachment)

    def _result(self, attachment: Attachment) -> Result:
        addresses = self.addresses.get(attachment.network, "").split()
        answer = {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": attachment.ifname, "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}
            ],
            "ips": [{"address": address, "interface": 0} for address in addresses],
        }
        return parse_result(json.dumps(answer).encode(), cni_version="1.0.0")

    async def outlast_leftovers(self, container_id: str) -> None:
        await self._points.pass_by("leftover.wait")
        self.leftovers.found.discard(container_id)

    async def delete(self, attachment: Attachment) -> None:
        await self._points.pass_by("cni.del")
        await self._points.pass_by(f"cni.del {attachment.network}")
        self.attached.pop(_key(attachment), None)
        self.deleted.append(attachment)


def _key(attachment: Attachment) -> tuple[str, str, str]:
    return attachment.network, attachment.container_id, attachment.ifname


def _network(name: str) -> NetworkList:
    plugin = {"type": "bridge", "capabilities": dict.fromkeys(CAPABILITIES, True)}
    document = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
    return parse_conflist(json.dumps(document).encode(), source=name)


class FakeImages:
    """Stands for `ImageStore`, with the methods that the sandbox layer uses."""

    def __init__(self) -> None:
        self._by_name: dict[str, Image] = {}
        self.sweeps = 0
        self.held: list[str] = []
        """Images whose layers are held for volumes."""
        self.imports: list[str] = []
        self.pulls: list[str] = []
        self.add(PAUSE_REFERENCE, ImageConfig(entrypoint=("/pause",)))
        self.add("busybox", ImageConfig(cmd=("sh",)), digests=("busybox@sha256:" + "d" * 64,))

    def add(
        self, name: str, config: ImageConfig | None = None, *, digests: tuple[str, ...] = ()
    ) -> Image:
        image = Image(
            id="sha256:" + f"{len(self._by_name):064x}",
            repo_tags=(name,),
            repo_digests=digests,
            size=1,
            config=config or ImageConfig(),
            pinned=False,
            chain=("c",),
            manifest_digests=(),
        )
        self._by_name[name] = image
        return image

    def forget(self, name: str) -> None:
        del self._by_name[name]

    def find(self, text: str) -> Image | None:
        by_id = (image for image in self._by_name.values() if image.id == text)
        return self._by_name.get(text) or next(by_id, None)

    def layer_stack(self, image: Image) -> LayerStack:
        return LayerStack(Path("/layers"), (f"top-{image.id[-4:]}", "base"))

    @asynccontextmanager
    async def volume(self, text: str, sub_path: str = "") -> AsyncIterator[ImageVolume]:
        image = self.find(text)
        if image is None:
            raise NotFoundError("image", text)
        stack = self.layer_stack(image)
        lowers = (*stack.lowers, ".empty/0")
        self.held.append(text)
        try:
            yield ImageVolume(image, stack.layers_dir, lowers, stack.lowers, sub_path)
        finally:
            self.held.remove(text)

    async def sweep_after(self, image_id: str) -> None:
        if self.find(image_id) is None:
            self.sweeps += 1

    async def import_archive(self, source: AsyncIterator[bytes], name: str) -> list[Image]:
        self.imports.append(name)
        await source.aclose()  # type: ignore[attr-defined]
        return [self.add(name)]


class FakePuller:
    """As `Puller`, from a registry that has every image."""

    def __init__(self, images: FakeImages) -> None:
        self._images = images
        self.ended = False

    async def pull(self, reference: str) -> Image:
        self._images.pulls.append(reference)
        return self._images.add(reference)

    async def end_all(self, grace_s: float) -> None:
        self.ended = True
