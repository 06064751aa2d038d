"""A daemon's life in this process: started, told things by signals, stopped. Everything is below one directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import msgspec
import pytest

from cri_shim import metrics
from cri_shim._pb.admin.v1 import admin_pb2, admin_pb2_grpc
from cri_shim._pb.cri.v1 import api_pb2 as api
from cri_shim._pb.cri.v1 import api_pb2_grpc
from cri_shim.config.model import LogLevel, LogSettings, MetricsSettings, RuntimeSettings
from cri_shim.config.values import HandlerName
from cri_shim.daemon import lifecycle
from cri_shim.daemon.build import build
from cri_shim.daemon.lifecycle import Daemon
from cri_shim.errors import AlreadyExistsError, ConfigError
from cri_shim.sandbox.store.model import ContainerStatus, SandboxStatus
from tests.fakes.clock import turn_over, until
from tests.unit.sandbox.records import make_container, make_sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from cri_shim.config import Config
    from cri_shim.daemon.build import Parts
    from tests.fakes.clock import MovableClock

pytestmark = pytest.mark.asyncio


class Node:
    """What a daemon of this test is told, and tells."""

    def __init__(self, config: Config, base: Path) -> None:
        self.config = config
        self.base = base
        self.next_config: Config | Exception = config
        self.parts: list[Parts] = []
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(base / "notify"))
        self.manager.setblocking(False)
        self.told: list[bytes] = []

    def daemon(self) -> Daemon:
        return Daemon(self.config, reread=self.reread, cni_cache_dir=self.base / "cache")

    def reread(self) -> Config:
        if isinstance(self.next_config, Exception):
            raise self.next_config
        return self.next_config

    def was_told(self, state: bytes) -> bool:
        try:
            self.told.extend(self.manager.recv(200).splitlines())
        except BlockingIOError:
            pass
        return state in self.told

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Task[None]]:
        """A daemon that is ready, and stopped at the end as a service manager does."""
        running = asyncio.ensure_future(self.daemon().run())
        try:
            await until(lambda: running.done() or self.was_told(b"READY=1"), within_s=20)
        except AssertionError:
            running.cancel()  # it may not listen to signals yet
            raise
        try:
            yield running
        finally:
            if not running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await running

    @asynccontextmanager
    async def client(self) -> AsyncIterator[api_pb2_grpc.RuntimeServiceAsyncStub]:
        async with grpc.aio.insecure_channel(f"unix:{self.base}/s") as channel:
            yield api_pb2_grpc.RuntimeServiceStub(channel)


@pytest.fixture
def node(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded_node: None
) -> Iterator[Node]:
    made = Node(config, tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

    async def remember(*args: object, **options: object) -> Parts:
        parts = await build(*args, **options)  # type: ignore[arg-type]
        made.parts.append(parts)
        return parts

    monkeypatch.setattr(lifecycle, "build", remember)
    with made.manager:
        yield made


async def test_a_daemon_serves_until_it_is_told_to_stop(node: Node) -> None:
    async with node.serving() as running:
        async with node.client() as client:
            version = await client.Version(api.VersionRequest())
            assert version.runtime_name == "cri-shim"
            listed = await client.ListPodSandbox(api.ListPodSandboxRequest())
            assert not listed.items
        assert not running.done()
    assert node.was_told(b"STOPPING=1")
    assert not (node.base / "s").exists()


async def test_what_others_must_not_see_is_closed_to_them(node: Node) -> None:
    async with node.serving():
        root, state = node.config.root, node.config.state
        assert root.stat().st_mode & 0o077 == 0
        assert state.stat().st_mode & 0o066 == 0
        for directory in (*root.iterdir(), *state.iterdir()):
            if directory.is_dir() and directory.name != "layers":
                # Others may pass, not look: the root of a user namespace does, on its way to its root file system.
                passable = directory in (state / "sandboxes", state / "containers")
                assert directory.stat().st_mode & 0o077 == (0o011 if passable else 0), directory


@pytest.mark.parametrize("shared", ["root", "state"])
async def test_two_daemons_never_share_a_directory(node: Node, shared: str) -> None:
    async with node.serving():
        apart = {"root": node.base / "root2", "state": node.base / "state2"}
        del apart[shared]
        other = msgspec.structs.replace(node.config, **apart)
        with pytest.raises(AlreadyExistsError, match=shared):
            await Daemon(other, reread=node.reread, cni_cache_dir=node.base).run()


async def test_two_daemons_never_share_a_socket(node: Node) -> None:
    async with node.serving():
        other = msgspec.structs.replace(
            node.config, root=node.base / "root2", state=node.base / "state2"
        )
        with pytest.raises(AlreadyExistsError, match="socket"):
            await Daemon(other, reread=node.reread, cni_cache_dir=node.base).run()


@pytest.mark.parametrize("which", ["root", "state"])
async def test_a_directory_that_cannot_be_made_is_a_matter_of_configuration(
    node: Node, which: str
) -> None:
    (node.base / "file").touch()
    wrong = msgspec.structs.replace(node.config, **{which: node.base / "file" / "below"})
    with pytest.raises(ConfigError, match=f"{which}: cannot create directory"):
        await Daemon(wrong, reread=node.reread, cni_cache_dir=node.base).run()


async def test_a_part_of_the_tree_that_cannot_be_made_is_named(node: Node) -> None:
    node.config.root.mkdir()
    (node.config.root / "sandboxes").touch()
    with pytest.raises(ConfigError, match="sandboxes"):
        await node.daemon().run()
    # Nothing is held any more.
    (node.config.root / "sandboxes").unlink()
    async with node.serving():
        pass


async def test_objects_are_counted_by_state(node: Node) -> None:
    async with node.serving():
        [parts] = node.parts
        parts.sandboxes.create(make_sandbox(status=SandboxStatus(ready_at_ns=1)))
        parts.containers.create(make_container(status=ContainerStatus(committed_at_ns=1)))

        def count(what: str, state: str) -> float | None:
            return metrics.REGISTRY.get_sample_value(f"cri_shim_{what}", {"state": state})

        assert (count("sandboxes", "ready"), count("sandboxes", "notready")) == (1, 0)
        assert (count("containers", "created"), count("containers", "running")) == (1, 0)


async def test_a_status_that_could_not_be_written_is_written_by_and_by(
    node: Node, clock: MovableClock
) -> None:
    async with node.serving():
        [parts] = node.parts
        sandbox = make_sandbox(status=SandboxStatus(ready_at_ns=1))
        container = make_container(status=ContainerStatus(committed_at_ns=1))
        parts.sandboxes.create(sandbox)
        parts.containers.create(container)
        sandbox.unsaved = container.unsaved = True
        clock.move(lifecycle.TIDY_INTERVAL_S)
        await until(lambda: not sandbox.unsaved and not container.unsaved)


async def test_a_hangup_applies_what_can_be_applied(node: Node) -> None:
    async with node.serving():
        [parts] = node.parts
        handlers = dict(node.config.runtime.handlers)
        handlers[HandlerName("more")] = handlers[HandlerName("rro")]
        node.next_config = msgspec.structs.replace(
            node.config,
            log=LogSettings(level=LogLevel.ERROR),
            runtime=RuntimeSettings(
                default_handler=HandlerName("more"),
                handlers=handlers,
                monitor=node.config.runtime.monitor,
            ),
        )
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: parts.handlers.get("").settings.name == "more")
        await until(lambda: parts.handlers.facts("more").recursive_read_only_mounts)


async def test_a_hangup_with_a_bad_configuration_changes_nothing(node: Node) -> None:
    async with node.serving():
        [parts] = node.parts
        before = parts.handlers.runtimes
        node.next_config = ConfigError("log.level: 'loud'")
        os.kill(os.getpid(), signal.SIGHUP)
        await parts.background.close(2)
        node.next_config = msgspec.structs.replace(
            node.config,
            runtime=msgspec.structs.replace(
                node.config.runtime, default_handler=HandlerName("missing")
            ),
        )
        os.kill(os.getpid(), signal.SIGHUP)
        await turn_over()
        await parts.background.close(2)
        assert parts.handlers.runtimes is before


async def test_the_daemon_tells_clients_how_it_is_set_up(node: Node) -> None:
    async with node.serving():
        async with grpc.aio.insecure_channel(f"unix:{node.base}/s") as channel:
            described = await admin_pb2_grpc.AdminStub(channel).Info(admin_pb2.InfoRequest())
    assert described.root == str(node.config.root)
    assert described.cgroup_driver == "cgroupfs"


async def test_a_daemon_serves_without_metrics_where_no_address_is_given(node: Node) -> None:
    node.config = msgspec.structs.replace(node.config, metrics=MetricsSettings(address=None))
    async with node.serving() as running:
        assert not running.done()


async def test_keys_that_nothing_heeds_are_said_and_stop_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "without_effect", lambda _config: ("some.key",))
    async with node.serving() as running:
        assert not running.done()


async def test_an_interrupt_stops_it_too(node: Node) -> None:
    async with node.serving() as running:
        os.kill(os.getpid(), signal.SIGINT)
        await running
