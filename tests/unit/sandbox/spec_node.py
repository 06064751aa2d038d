"""A node on disk, with the objects that make runtime-specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.host.port import Host
from cri_shim.image.manifest import ImageConfig
from cri_shim.oci.spec.inputs import HandlerFacts
from cri_shim.paths import Paths
from cri_shim.sandbox.spec.cgroup_paths import CgroupPaths
from cri_shim.sandbox.spec.container_limits import ContainerLimits
from cri_shim.sandbox.spec.container_specs import ContainerSpecs
from cri_shim.sandbox.spec.node_resources import NodeResources
from cri_shim.sandbox.spec.sandbox_specs import SandboxSpecs
from cri_shim.sandbox.spec.spec_facts import SpecFacts
from cri_shim.sandbox.spec.volumes import Volumes
from cri_shim.sandbox.store.model import ContainerStatus, Process, SandboxStatus
from cri_shim.sandbox.store.store import Container, Store, read_container
from tests.fakes.networks import FakeImages
from tests.fakes.node_harness import node_facts
from tests.unit.sandbox.records import make_sandbox

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from cri_shim.image.store import Image
    from cri_shim.sandbox.store.store import Sandbox

READY = SandboxStatus(ready_at_ns=1, process=Process(4242, 1))
NO_VOLUMES = Volumes(images={}, declared=())
RUNNING = ContainerStatus(committed_at_ns=1, started_at_ns=2, process=Process(777, 1))


CGROUP_PATHS = CgroupPaths(systemd=False, default_parent="")


class Node:
    """What specs are made from."""

    def __init__(self, base: Path) -> None:
        self.paths = Paths(base / "root", base / "state")
        self.paths.containers_dir.mkdir(parents=True, exist_ok=True)
        self.store: Store[Container] = Store(
            "container", self.paths.containers_dir, self.paths.container, read_container
        )
        self.images = FakeImages()
        self.provide()

    def provide(self, **node_resources: Any) -> None:
        """Have the node give containers these resources."""
        facts = SpecFacts(
            paths=self.paths,
            node=node_facts(),
            node_resources=NodeResources(**node_resources),
            handler_facts=HandlerFacts,
        )
        self.sandbox_specs = SandboxSpecs(paths=self.paths, facts=facts, cgroup_paths=CGROUP_PATHS)
        self.specs = ContainerSpecs(
            host=Host(),
            paths=self.paths,
            facts=facts,
            containers=self.store,
            cgroup_paths=CGROUP_PATHS,
        )
        self.limits = ContainerLimits(facts)

    def image(self, **config: Any) -> Image:
        return self.images.add("made", ImageConfig(**{"cmd": ("sh",), **config}))

    def etc(self, container: Container, **files: str) -> None:
        etc = self.paths.container(container.id).rootfs_dir / "etc"
        etc.mkdir(parents=True)
        for name, text in files.items():
            (etc / name).write_text(text)

    async def spec(
        self, container: Container, sandbox: Sandbox | None = None, image: Image | None = None
    ) -> tuple[dict[str, Any], Any]:
        self.paths.container(container.id).rootfs_dir.mkdir(parents=True, exist_ok=True)
        return await self.specs.build(
            sandbox or make_sandbox(status=READY), container, image or self.image(), NO_VOLUMES
        )
