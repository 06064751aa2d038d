"""The whole sandbox layer, built by the daemon's own code on a fake kernel, with a list of what is left there."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim.background import Background
from cri_shim.config import Config
from cri_shim.config.model import HandlerKind, RuntimeSettings, SandboxSettings
from cri_shim.config.values import Seconds
from cri_shim.daemon.mechanisms import Mechanisms
from cri_shim.daemon.sandbox_layer import build_sandbox_layer
from cri_shim.oci.spec.inputs import NodeFacts
from cri_shim.operations import Operations
from cri_shim.paths import Paths
from cri_shim.sandbox.exits import Exit
from cri_shim.sandbox.spec.node_resources import NodeResources
from cri_shim.sandbox.store.store import Container, Sandbox, Store, read_container, read_sandbox
from tests.fakes.kernel import FakeProcess, Kernel
from tests.fakes.networks import FakeCni, FakeImages, FakePuller
from tests.fakes.points import Points
from tests.fakes.runtime import Entry, FakeHandlers, FakeMonitors, FakeRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    import pytest

    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.network import Cni
    from cri_shim.daemon.handlers import Handlers
    from cri_shim.host.cgroups.tree import Cgroups
    from cri_shim.host.port import Host
    from cri_shim.host.process import Reaper
    from cri_shim.image.pull import Puller
    from cri_shim.image.store import ImageStore
    from cri_shim.oci.conmon import Monitors

BOOT_ID = "this-boot"


def node_facts() -> NodeFacts:
    """A node with all features."""
    return NodeFacts(
        arch="x86_64",
        kernel=(6, 1),
        cgroup_v2=False,
        cgroup_namespace=False,
        capabilities=("CHOWN", "KILL", "SYS_ADMIN"),
        default_capabilities=("CHOWN", "KILL"),
    )


def pod_config(
    name: str = "web", *, attempt: int = 0, host_network: bool = False, log_directory: str = ""
) -> api.PodSandboxConfig:
    """A pod as a kubelet requests it."""
    config = api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(
            name=name, namespace="default", uid=f"uid-{name}", attempt=attempt
        ),
        hostname="" if host_network else name,
        log_directory=log_directory,
        labels={"app": name},
    )
    if host_network:
        config.linux.security_context.namespace_options.network = api.NODE
    return config


def container_config(name: str = "main", *, attempt: int = 0) -> api.ContainerConfig:
    """A container as a kubelet requests it."""
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=name, attempt=attempt),
        image=api.ImageSpec(image="busybox"),
        command=["sleep", "9"],
    )


@dataclass(frozen=True)
class Snapshot:
    """The state of a node at one instant, as a crash of the daemon would leave it."""

    files: Path
    processes: dict[int, FakeProcess]
    mounts: set[Path]
    namespaces: dict[Path, dict[str, str]]
    cgroups: set[str]
    attached: dict[tuple[str, str, str], Attachment]
    containers: dict[str, dict[str, Entry]]


@dataclass
class NodeHarness:
    """The sandbox layer of one daemon on one node."""

    base: Path
    points: Points
    kernel: Kernel
    cni: FakeCni
    images: FakeImages
    runtimes: dict[str, FakeRuntime]
    boot_id: str = BOOT_ID
    pause_reference: str | None = None
    publish_ports: bool = True
    node: NodeFacts = field(default_factory=node_facts)
    node_resources: NodeResources = field(default_factory=NodeResources)
    reported: list[tuple[str, Exit]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = Paths(self.base / "root", self.base / "state")
        for directory in (
            *(self.paths.sandboxes_dir, self.paths.containers_dir, self.paths.exits_dir),
            *(self.paths.state / "sandboxes", self.paths.state / "containers"),
            *(self.paths.layers_dir, self.base / "netns", self.base / "etc"),
        ):
            directory.mkdir(parents=True, exist_ok=True)
        self.background = Background()
        self.operations = Operations()
        self.sandboxes: Store[Sandbox] = Store(
            "sandbox", self.paths.sandboxes_dir, self.paths.sandbox, read_sandbox
        )
        self.stored: Store[Container] = Store(
            "container", self.paths.containers_dir, self.paths.container, read_container
        )
        self.monitors = FakeMonitors(self.kernel, self.paths.exits_dir, self.runtimes)
        self.puller = FakePuller(self.images)
        self.handlers = FakeHandlers(self.runtimes)
        self._build()

    def _build(self) -> None:
        layer = build_sandbox_layer(self._config(), self._mechanisms())
        layer.pending_deletes.load()
        self.cgroup_paths = layer.cgroup_paths
        self.spec_facts = layer.facts
        self.teardown = layer.teardown
        self.launcher = layer.launcher
        self.pending_deletes = layer.pending_deletes
        self.network = layer.network
        self.reconciler = layer.reconciler
        self.exits = layer.exits
        self.exit_handling = layer.exit_handling
        self.removal = layer.removal
        self.containers = layer.containers
        self.pods = layer.pods
        self.events = layer.events
        self.orphans = layer.orphans
        self.recovery = layer.recovery
        self.wipe = layer.wipe
        self._dispatcher = layer.exit_dispatcher

    def _config(self) -> Config:
        return Config(
            sandbox=SandboxSettings(image=self.pause_reference, hostport=self.publish_ports),
            runtime=RuntimeSettings(start_timeout_s=Seconds(10), max_parallel_creates=2),
        )

    def _mechanisms(self) -> Mechanisms:
        return Mechanisms(
            host=self.host,
            paths=self.paths,
            host_etc=self.base / "etc",
            boot_id=self.boot_id,
            node=replace(self.node, lack_of_files_limits=self.kernel.cgroups.lack_of_files_limits),
            node_resources=self.node_resources,
            systemd=False,
            cgroups=cast("Cgroups", self.kernel.cgroups),
            reaper=cast("Reaper", None),
            background=self.background,
            operations=self.operations,
            handlers=cast("Handlers", self.handlers),
            monitors=cast("Monitors", self.monitors),
            cni=cast("Cni", self.cni),
            leftover_plugins=cast("LeftoverPlugins", self.cni.leftovers),
            images=cast("ImageStore", self.images),
            puller=cast("Puller", self.puller),
            sandboxes=self.sandboxes,
            containers=self.stored,
        )

    @property
    def host(self) -> Host:
        """The fake kernel as the host port of the daemon's objects. A missing method is an AttributeError."""
        return cast("Host", self.kernel)

    @property
    def runtime(self) -> FakeRuntime:
        """The runtime of the default handler."""
        return self.runtimes["runc"]

    def report_exit(self, object_id: str, code: int) -> None:
        """Report an exit as the exit watch does."""
        self._on_exit(object_id, Exit(code, 1))

    def rebuild(self) -> None:
        """Build the layer's objects again, after the test has changed the objects below them."""
        self.exits.close()
        self._build()
        self.open()

    def open(self) -> None:
        """Start to watch for exits, as the daemon does before recovery."""
        self.exits.open(self._on_exit)

    def _on_exit(self, object_id: str, exit_: Exit) -> None:
        self.reported.append((object_id, exit_))
        self._dispatcher.dispatch(object_id, exit_)

    # --- the daemon's life ---------------------------------------------------------------------------------------

    def restarted(self, boot_id: str | None = None) -> NodeHarness:
        """A new daemon on the same node. This one ends at once, with its watches."""
        self.exits.close()
        if boot_id is not None:
            self.reboot()
        harness = NodeHarness(
            base=self.base,
            points=self.points,
            kernel=self.kernel,
            cni=self.cni,
            images=self.images,
            runtimes=self.runtimes,
            boot_id=boot_id or self.boot_id,
            node=self.node,
            node_resources=self.node_resources,
        )
        harness.open()
        return harness

    async def crashed_at(self, point: str, call: Coroutine[object, object, object]) -> NodeHarness:
        """A new daemon on the state that is left when the former one dies at `point` of `call`."""
        hold = self.points.hold(point)
        task = asyncio.ensure_future(call)
        await hold.reached.wait()
        snapshot = self._snapshot()
        hold.release()
        await asyncio.wait([task])
        task.cancelled() or task.exception()
        self._restore(snapshot)
        return self.restarted()

    def _snapshot(self) -> Snapshot:
        files = self.base.with_name(f"{self.base.name}-snapshot")
        shutil.rmtree(files, ignore_errors=True)
        shutil.copytree(self.base, files, symlinks=True)
        return Snapshot(
            files=files,
            processes={pid: replace(p) for pid, p in self.kernel.processes.items()},
            mounts=set(self.kernel.mounts),
            namespaces=dict(self.kernel.namespaces),
            cgroups=set(self.kernel.cgroups.dirs),
            attached=dict(self.cni.attached),
            containers={name: dict(r.containers) for name, r in self.runtimes.items()},
        )

    def _restore(self, snapshot: Snapshot) -> None:
        shutil.rmtree(self.base)
        snapshot.files.rename(self.base)
        self.kernel.processes = snapshot.processes
        self.kernel.mounts = snapshot.mounts
        self.kernel.namespaces = snapshot.namespaces
        self.kernel.cgroups.dirs = snapshot.cgroups
        self.cni.attached = snapshot.attached
        for name, runtime in self.runtimes.items():
            runtime.containers = snapshot.containers[name]

    def reboot(self) -> None:
        """A power cut: every process, mount, namespace and cgroup is gone."""
        self.kernel.processes.clear()
        self.kernel.mounts.clear()
        self.kernel.namespaces.clear()
        self.kernel.cgroups.dirs.clear()
        for pin in (self.base / "netns").iterdir():
            pin.unlink()
        for runtime in self.runtimes.values():
            runtime.containers.clear()

    async def close(self) -> None:
        await self.pods.close(1)
        await self.containers.close(1)
        await self.background.close(1)
        self.exits.close()

    # --- short ways ----------------------------------------------------------------------------------------------

    async def run_pod(self, name: str = "web") -> Sandbox:
        return self.pods.find(await self.pods.run_pod_sandbox(pod_config(name), ""))

    async def create(
        self, sandbox: Sandbox, name: str = "main", *, log_path: str = ""
    ) -> Container:
        config = container_config(name)
        config.log_path = log_path
        created = await self.containers.create_container(sandbox.id, config, sandbox.config)
        return self.containers.find(created)

    async def start(self, sandbox: Sandbox, name: str = "main", *, log_path: str = "") -> Container:
        container = await self.create(sandbox, name, log_path=log_path)
        await self.containers.start_container(container.id)
        return container

    async def settle(self) -> None:
        """Wait for the end of all background work."""
        await asyncio.sleep(0.002)  # inotify
        await self.background.close(2)

    # --- what is left --------------------------------------------------------------------------------------------

    def leftovers(self) -> dict[str, object]:
        """Everything that is left on the node, by kind. Empty for an unused node."""
        kernel, paths = self.kernel, self.paths
        found: dict[str, object] = {
            "processes": [p.argv for p in kernel.processes.values()],
            "mounts": sorted(map(str, kernel.mounts)),
            "namespaces": sorted(map(str, kernel.namespaces)),
            "cgroups": sorted(kernel.cgroups.dirs),
            "attachments": sorted(self.cni.attached),
            "runtime": [i for r in self.runtimes.values() for i in r.containers],
            "sandboxes": [s.id for s in self.sandboxes],
            "containers": [c.id for c in self.stored],
            "pending_deletes": [d.key for d in self.pending_deletes],
            "watches": list(kernel.watches),
            "files": sorted(
                str(entry.relative_to(self.base))
                for directory in (
                    *(paths.sandboxes_dir, paths.containers_dir, paths.exits_dir),
                    *(paths.state / "sandboxes", paths.state / "containers", self.base / "netns"),
                )
                for entry in directory.iterdir()
            ),
        }
        return {kind: what for kind, what in found.items() if what}


@asynccontextmanager
async def open_harness(base: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[NodeHarness]:
    """A harness for a test. Its background work is ended afterwards."""
    points = Points()
    kernel = Kernel(points)
    patch.setattr("cri_shim.paths.NETNS_DIR", base / "netns")
    harness = NodeHarness(
        base=base,
        points=points,
        kernel=kernel,
        cni=FakeCni(points),
        images=FakeImages(),
        runtimes={
            "runc": FakeRuntime(kernel),
            "kata": FakeRuntime(kernel, "kata", HandlerKind.VM),
        },
    )
    harness.open()
    try:
        yield harness
    finally:
        await harness.close()
