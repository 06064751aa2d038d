"""In-memory use cases behind the services, and a server on a socket of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from cri_shim._pb.admin.v1 import admin_pb2_grpc
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1 import api_pb2_grpc
from cri_shim._pb.cri.v1alpha2 import api_pb2_grpc as v1alpha2_grpc
from cri_shim.config.model import SocketSettings, TlsSettings
from cri_shim.config.values import FileMode, GroupName, ListenUrl
from cri_shim.errors import NotFoundError
from cri_shim.image.integrity.report import (
    CheckProgress,
    CheckReport,
    Collected,
    RepairReport,
    Unrepaired,
)
from cri_shim.image.manifest import ImageConfig
from cri_shim.image.model import Image, ImportProgress, PullProgress
from cri_shim.operations import Operations
from cri_shim.paths import Paths
from cri_shim.rpc.admin_service import AdminService, DaemonInfo
from cri_shim.rpc.gate import Gate
from cri_shim.rpc.handlers import admin_service, cri_services
from cri_shim.rpc.image_service import ImageService
from cri_shim.rpc.listen import Listeners
from cri_shim.rpc.request_budget import RequestBudget
from cri_shim.rpc.runtime_service import Condition, HandlerFacts, NodeStatus, RuntimeService
from cri_shim.sandbox.container_events import ContainerEvents
from cri_shim.sandbox.cri_metrics.families import CONTAINER_FAMILIES, POD_FAMILIES
from cri_shim.sandbox.recovery.wipe import Wiped
from cri_shim.sandbox.store.model import (
    ContainerMetadata,
    ContainerRecord,
    ContainerStatus,
    PodMetadata,
    SandboxRecord,
    SandboxStatus,
    User,
)
from cri_shim.sandbox.store.store import (
    Container,
    Sandbox,
    Store,
    read_container,
    read_sandbox,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Mapping,
        Sequence,
    )

    from cri_shim.image.integrity.report import Finding
    from cri_shim.image.registry.credentials import Credentials
    from cri_shim.sandbox.cri_metrics.families import Family
    from cri_shim.sandbox.cri_metrics.readings import ContainerReading, PodReading
    from cri_shim.sandbox.pod_stats import PodUsage
    from cri_shim.sandbox.stats import ContainerUsage

CREATED_AT_NS = 1_700_000_000_000_000_000


def make_sandbox(
    sandbox_id: str = "5" * 64,
    config: api.PodSandboxConfig | None = None,
    status: SandboxStatus | None = None,
) -> Sandbox:
    config = config or api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", namespace="default", uid="u1", attempt=2),
        labels={"app": "web"},
        annotations={"note": "one"},
    )
    of = config.metadata
    record = SandboxRecord(
        id=sandbox_id,
        metadata=PodMetadata(of.name, of.namespace, of.uid, of.attempt),
        handler="runc",
        digest="d",
        created_at_ns=CREATED_AT_NS,
        boot_id="b",
        cgroup_parent="/p",
        netns="/run/netns/x",
        hostname="web",
        image_id="sha256:pause",
        layers=(),
        config=msgspec.Raw(b"{}"),
    )
    return Sandbox(
        record,
        status or SandboxStatus(ready_at_ns=CREATED_AT_NS + 1, ips=("10.1.0.2", "fd00::2")),
        config,
    )


def make_container(
    container_id: str = "c" * 64,
    sandbox_id: str = "5" * 64,
    config: api.ContainerConfig | None = None,
    status: ContainerStatus | None = None,
    **record: Any,
) -> Container:
    config = config or api.ContainerConfig(
        metadata=api.ContainerMetadata(name="app", attempt=1),
        image=api.ImageSpec(image="sha256:1234", user_specified_image="busybox:1"),
        labels={"tier": "front"},
        annotations={"note": "two"},
        mounts=[api.Mount(container_path="/data", host_path="/srv/data", readonly=True)],
    )
    facts: dict[str, Any] = {
        "id": container_id,
        "sandbox_id": sandbox_id,
        "metadata": ContainerMetadata(config.metadata.name, config.metadata.attempt),
        "handler": "runc",
        "digest": "d",
        "created_at_ns": CREATED_AT_NS,
        "boot_id": "b",
        "cgroup_parent": "/p",
        "image_id": "sha256:1234",
        "image_ref": "docker.io/library/busybox@sha256:abcd",
        "layers": ("l2", "l1"),
        "log_path": "/var/log/pods/web/app/0.log",
        "stop_signal": 15,
        "config": msgspec.Raw(b"{}"),
        **record,
    }
    status = status or ContainerStatus(committed_at_ns=CREATED_AT_NS + 1)
    if status.user is None:
        status = msgspec.structs.replace(status, user=User(1000, 2000, (2000, 3000)))
    return Container(ContainerRecord(**facts), status, config)


@dataclass
class ExecAnswer:
    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass
class FakePods:
    sandboxes: list[Sandbox] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    failure: BaseException | None = None
    hold: asyncio.Event | None = None
    """While set and unset itself, RunPodSandbox waits for it."""
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def run_pod_sandbox(self, config: api.PodSandboxConfig, handler: str) -> str:
        self.calls.append(("run", config, handler))
        self.entered.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        sandbox = make_sandbox(f"{len(self.sandboxes):064x}", config)
        self.sandboxes.append(sandbox)
        return sandbox.id

    async def stop_pod_sandbox(self, sandbox_id: str) -> None:
        self.calls.append(("stop", sandbox_id))

    async def remove_pod_sandbox(self, sandbox_id: str) -> None:
        self.calls.append(("remove", sandbox_id))
        self.sandboxes = [s for s in self.sandboxes if s.id != sandbox_id]

    async def update_pod_sandbox_resources(
        self,
        sandbox_id: str,
        overhead: api.LinuxContainerResources,
        resources: api.LinuxContainerResources,
    ) -> None:
        self.calls.append(("resize", sandbox_id, overhead, resources))

    def find(self, id_or_prefix: str) -> Sandbox:
        for sandbox in self.sandboxes:
            if sandbox.id.startswith(id_or_prefix):
                return sandbox
        raise NotFoundError("sandbox", id_or_prefix)

    def list_pod_sandbox(self) -> Sequence[Sandbox]:
        return self.sandboxes

    async def verbose_info(self, sandbox: Sandbox) -> Mapping[str, object]:
        return {"pid": 42, "root": Path("/x")}


@dataclass
class FakeContainers:
    containers: list[Container] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    exec_answer: ExecAnswer = field(default_factory=lambda: ExecAnswer(b"out", b"err\xff", 3))

    async def create_container(
        self, sandbox_id: str, config: api.ContainerConfig, sandbox_config: api.PodSandboxConfig
    ) -> str:
        self.calls.append(("create", sandbox_id, config, sandbox_config))
        container = make_container(f"{len(self.containers):064x}", sandbox_id, config)
        self.containers.append(container)
        return container.id

    async def start_container(self, container_id: str) -> None:
        self.calls.append(("start", container_id))
        container = self.find(container_id)
        container.status = container.status.started(CREATED_AT_NS + 2)

    async def stop_container(self, container_id: str, timeout_s: int) -> None:
        self.calls.append(("stop", container_id, timeout_s))
        container = self.find(container_id)
        container.status = container.status.exited(CREATED_AT_NS + 3, 137, reason="Error")

    async def update_container_resources(
        self,
        container_id: str,
        resources: api.LinuxContainerResources,
        annotations: Mapping[str, str],
    ) -> None:
        self.calls.append(("update resources", container_id, resources, dict(annotations)))

    async def remove_container(self, container_id: str) -> None:
        self.calls.append(("remove", container_id))
        self.containers = [c for c in self.containers if c.id != container_id]

    def find(self, id_or_prefix: str) -> Container:
        for container in self.containers:
            if container.id.startswith(id_or_prefix):
                return container
        raise NotFoundError("container", id_or_prefix)

    def list_containers(self) -> Sequence[Container]:
        return self.containers

    def containers_of(self, sandbox_id: str) -> Sequence[Container]:
        return [c for c in self.containers if c.sandbox_id == sandbox_id]

    async def exec_sync(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecAnswer:
        self.calls.append(("exec", container_id, cmd, timeout_s))
        return self.exec_answer

    async def reopen_container_log(self, container_id: str) -> None:
        self.calls.append(("reopen", container_id))

    async def verbose_info(self, container: Container) -> Mapping[str, object]:
        return {"pid": 43}


@dataclass
class FakeStats:
    usages: dict[str, ContainerUsage] = field(default_factory=dict)

    async def container_stats(self, containers: Sequence[Container]) -> Sequence[ContainerUsage]:
        return [self.usages[c.id] for c in containers if c.id in self.usages]


@dataclass
class FakePodStats:
    usages: dict[str, PodUsage] = field(default_factory=dict)

    async def pod_sandbox_stats(self, sandboxes: Sequence[Sandbox]) -> Sequence[PodUsage]:
        return [self.usages[s.id] for s in sandboxes if s.id in self.usages]


@dataclass
class FakePodMetrics:
    readings: dict[str, PodReading] = field(default_factory=dict)
    container_families: Sequence[Family[ContainerReading]] = CONTAINER_FAMILIES
    pod_families: Sequence[Family[PodReading]] = POD_FAMILIES

    async def pod_sandbox_metrics(self, sandboxes: Sequence[Sandbox]) -> Sequence[PodReading]:
        return [self.readings[s.id] for s in sandboxes if s.id in self.readings]


@dataclass
class FakeNode:
    answer: NodeStatus = field(
        default_factory=lambda: NodeStatus(
            runtime=Condition(ok=True),
            network=Condition(ok=False, reason="NoNetwork", message="no configuration in /etc"),
            handlers=[
                HandlerFacts("", recursive_read_only_mounts=True, user_namespaces=True),
                HandlerFacts("runc", recursive_read_only_mounts=True, user_namespaces=True),
                HandlerFacts("crun"),
            ],
            supplemental_groups_policy=True,
            user_namespaces_host_network=True,
            mount_options=True,
        )
    )
    systemd: bool = False
    pod_cidrs: list[str] = field(default_factory=list)

    def status(self) -> NodeStatus:
        return self.answer

    def info(self) -> Mapping[str, object]:
        return {"config": {"root": "/var/lib/cri-shim"}}

    def update_pod_cidr(self, pod_cidr: str) -> None:
        self.pod_cidrs.append(pod_cidr)

    def uses_systemd_cgroups(self) -> bool:
        return self.systemd


def make_image(
    number: int = 1, *names: str, user: str = "", pinned: bool = False, digests: Sequence[str] = ()
) -> Image:
    return Image(
        id=f"sha256:{number:064x}",
        repo_tags=names,
        repo_digests=tuple(digests),
        size=1000,
        config=ImageConfig(user=user),
        pinned=pinned,
        chain=("sha256:" + "1" * 64,),
        manifest_digests=(),
    )


@dataclass
class FakeUsage:
    used_bytes: int
    inodes: int


@dataclass
class FakeArchive:
    pieces: Sequence[bytes]
    failure: Exception | None = None
    was_closed: bool = False

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.pieces))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self.pieces:
                yield piece
            if self.failure is not None:
                raise self.failure
        finally:
            self.was_closed = True


@dataclass
class FakeImages:
    held: list[Image] = field(default_factory=list)
    pulls: list[tuple[str, Credentials | None]] = field(default_factory=list)
    pull_failure: Exception | None = None
    pull_steps: Sequence[PullProgress] = ()
    pull_hold: asyncio.Event | None = None
    """While set and unset itself, a pull waits for it."""
    pulls_abandoned: int = 0
    exports: list[Sequence[str]] = field(default_factory=list)
    archive: FakeArchive = field(default_factory=lambda: FakeArchive([b"abc", b"def"]))
    checks: list[tuple[Collection[str], bool]] = field(default_factory=list)
    findings: Sequence[Finding] = ()
    unrepaired: Sequence[Unrepaired] = ()
    collections: list[tuple[bool, bool]] = field(default_factory=list)
    damage: Exception | None = None
    archives: list[tuple[str | None, bytes]] = field(default_factory=list)
    import_failure: Exception | None = None
    fails_early: bool = False
    """Whether a failing import reads only the beginning of its archive."""
    imports_cut_off: int = 0
    import_started: asyncio.Event = field(default_factory=asyncio.Event)

    def images(self) -> Sequence[Image]:
        return self.held

    def find(self, text: str) -> Image | None:
        for image in self.held:
            if text in (image.id, *image.repo_tags, *image.repo_digests):
                return image
        return None

    async def remove(self, text: str) -> None:
        found = self.find(text)
        if found is None:
            raise NotFoundError("image", text)
        self.held = [image for image in self.held if image is not found]

    async def pull(
        self,
        image: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        *,
        abandon: bool = False,
    ) -> Image:
        self.pulls.append((image, credentials))
        for step in self.pull_steps:
            assert progress is not None
            progress(step)
            await asyncio.sleep(0)
        try:
            if self.pull_hold is not None:
                await self.pull_hold.wait()
        except asyncio.CancelledError:
            self.pulls_abandoned += abandon
            raise
        if self.pull_failure is not None:
            raise self.pull_failure
        found = self.find(image)
        if found is None:
            raise NotFoundError("image", image)
        return found

    async def configuration(self, image: Image) -> bytes:
        if self.damage is not None:
            raise self.damage
        return msgspec.json.encode({"config": {"User": image.config.user}})

    async def fs_usage(self) -> FakeUsage:
        return FakeUsage(4096, 7)

    async def layers_usage(self) -> FakeUsage:
        return FakeUsage(512, 3)

    @asynccontextmanager
    async def export(self, names: Sequence[str]) -> AsyncIterator[FakeArchive]:
        for name in names:
            if self.find(name) is None:
                raise NotFoundError("image", name)
        self.exports.append(names)
        yield self.archive

    async def check(
        self,
        names: Collection[str] = (),
        *,
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> CheckReport:
        self.checks.append((names, False))
        assert progress is not None
        progress(CheckProgress("layer sha256:1", 5, 10))
        return CheckReport(len(self.held), 2, 3, 4096, tuple(self.findings))

    async def repair(
        self,
        names: Collection[str] = (),
        *,
        pull: Callable[[str], Awaitable[Image]],
        progress: Callable[[CheckProgress], None] | None = None,
    ) -> RepairReport:
        checked = await self.check(names, progress=progress)
        self.checks[-1] = (names, True)
        left = tuple(self.unrepaired)
        mended = [each for each in self.findings if each not in [one.finding for one in left]]
        return RepairReport(checked, tuple(mended), left)

    async def collect(self, *, dry_run: bool = False, untagged: bool = False) -> Collected:
        self.collections.append((dry_run, untagged))
        return Collected(("old:1", "sha256:aa"), 1, 2, 0, 3 << 20, 40)

    async def import_archive(
        self,
        source: AsyncIterator[bytes],
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Sequence[Image]:
        data = b""
        try:
            async for chunk in source:
                data += chunk
                self.import_started.set()
                if self.fails_early:
                    break
        except BaseException:
            self.imports_cut_off += 1
            raise
        if self.import_failure is not None:
            raise self.import_failure
        assert progress is not None
        progress(ImportProgress("layer", "demo", 1, 1))
        await asyncio.sleep(0)
        self.archives.append((name, data))
        image = make_image(0xABCDEF, name or "docker.io/library/demo:1")
        self.held.append(image)
        return [image]


async def describe() -> DaemonInfo:
    return DaemonInfo(
        root="/var/lib/cri-shim",
        state="/run/cri-shim",
        config_json="{}",
        cgroup_driver="cgroupfs",
        handlers=[("runc", "1.1.5")],
    )


class FakeStreams:
    """Gives out URLs that say what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def exec(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> str:
        self.asked.append(("exec", container_id, list(command), stdin, stdout, stderr, tty))
        return "http://node/exec/1"

    def attach(
        self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool
    ) -> str:
        self.asked.append(("attach", container_id, stdin, stdout, stderr, tty))
        return "http://node/attach/1"

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        self.asked.append(("port_forward", sandbox_id, list(ports)))
        return "http://node/portforward/1"


class FakeWipe:
    """Everything of a node: takes away what it is told, as soon as it may."""

    def __init__(self) -> None:
        self.wiped = Wiped(sandboxes=2, containers=3)
        self.asked: list[bool] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self, *, images: bool, tell: Callable[[str, int, int], None]) -> Wiped:
        self.asked.append(images)
        tell("removing pods", 1, 2)
        await self.may_end.wait()
        return self.wiped


class Daemon:
    """A server with fakes behind it, and clients of each kind."""

    def __init__(
        self,
        directory: Path,
        *,
        max_message_bytes: int = 1 << 20,
        urls: Sequence[str] | None = None,
        tls: TlsSettings | None = None,
        events: bool = True,
    ) -> None:
        self.socket_path = directory / "cri.sock"
        self.pods = FakePods()
        self.containers = FakeContainers()
        self.stats = FakeStats()
        self.pod_stats = FakePodStats()
        self.pod_metrics = FakePodMetrics()
        self.streams = FakeStreams()
        self.sandbox_store = Store(
            "sandbox", directory, Paths(directory, directory).sandbox, read_sandbox
        )
        self.container_store = Store(
            "container", directory, Paths(directory, directory).container, read_container
        )
        self.events = ContainerEvents(
            sandboxes=self.sandbox_store, containers=self.container_store, enabled=events
        )
        self.node = FakeNode()
        self.images = FakeImages()
        self.gate = Gate()
        self.operations = Operations()
        self.everything = FakeWipe()
        self.listeners = Listeners(
            [ListenUrl(url) for url in ([f"unix://{self.socket_path}"] if urls is None else urls)],
            [
                *cri_services(
                    lambda version: RuntimeService(
                        self.pods,
                        self.containers,
                        self.stats,
                        self.pod_stats,
                        self.pod_metrics,
                        self.streams,
                        self.events,
                        self.node,
                        Path("/var/lib/cri-shim"),
                        api_version=version,
                    ),
                    lambda version: ImageService(
                        self.images, self.images, self.images, Path("/var/lib/cri-shim")
                    ),
                ),
                admin_service(
                    AdminService(
                        self.images,
                        self.images,
                        describe,
                        running=self.operations,
                        everything=self.everything,
                        gate=self.gate,
                    )
                ),
            ],
            budget=RequestBudget(lambda _: "no pod"),
            gate=self.gate,
            socket=SocketSettings(group=GroupName(""), mode=FileMode(0o600)),
            tls=tls or TlsSettings(),
            max_message_bytes=max_message_bytes,
        )

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"unix:{self.socket_path}", options=[("grpc.max_receive_message_length", -1)]
        )


class Clients:
    """Stubs of every service on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        # The generated stubs serve both kinds of channel; their type is that of the synchronous one.
        either: Any = channel
        self.runtime: Any = api_pb2_grpc.RuntimeServiceStub(either)
        self.images: Any = api_pb2_grpc.ImageServiceStub(either)
        self.old_runtime: Any = v1alpha2_grpc.RuntimeServiceStub(either)
        self.old_images: Any = v1alpha2_grpc.ImageServiceStub(either)
        self.admin: Any = admin_pb2_grpc.AdminStub(either)


@asynccontextmanager
async def serving(
    directory: Path, *, is_ready: bool = True, **options: Any
) -> AsyncIterator[tuple[Daemon, Clients]]:
    daemon = Daemon(directory, **options)
    await daemon.listeners.start()
    try:
        if is_ready:
            await daemon.listeners.set_ready()
            daemon.events.open()
        async with daemon.channel() as channel:
            yield daemon, Clients(channel)
    finally:
        daemon.events.close()
        await daemon.listeners.stop(5)  # not waited for unless calls are under way


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")
