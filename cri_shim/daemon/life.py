"""The daemon's life: locks, start order, readiness, reload, and a stop that leaves every container running.

Start: locks -> directories -> reaper -> sockets (answering "recovering") -> recovery -> CNI -> ready. Exits are watched
before recovery looks, so that none falls between. Stop: turn calls away, let running ones end, let the work behind them
end, then take the sockets down.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
import structlog

import cri_shim
from cri_shim import log as logging_setup
from cri_shim import metrics
from cri_shim.config import reloadable_changes, without_effect
from cri_shim.config.render import to_tree
from cri_shim.daemon.build import Parts, build
from cri_shim.daemon.node_status import NodeState
from cri_shim.errors import ConfigError, CriShimError
from cri_shim.host.locks import FileLock
from cri_shim.host.notify import notify
from cri_shim.host.process import Reaper
from cri_shim.paths import NETNS_DIR, Paths
from cri_shim.rpc.admin_service import AdminService, DaemonInfo
from cri_shim.rpc.gate import Gate, Phase
from cri_shim.rpc.handlers import admin_service, cri_services
from cri_shim.rpc.image_service import ImageService
from cri_shim.rpc.listen import Listeners
from cri_shim.rpc.metrics_server import MetricsServer
from cri_shim.rpc.runtime_service import RuntimeService
from cri_shim.sandbox.model import ContainerState, SandboxState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cri_shim.config import Config

log = structlog.get_logger()
CALLS_GRACE_S = 20.0
"""For the calls under way when the daemon is told to stop: a CNI ADD, an image import."""
WORK_GRACE_S = 5.0
"""For work whose caller has gone; what does not end is undone."""
TIDY_INTERVAL_S = 5.0
"""How often status files that could not be written are tried again."""


class Daemon:
    """One daemon: `run` returns after a signal told it to stop."""

    def __init__(
        self, config: Config, *, reread: Callable[[], Config], cni_cache_dir: Path
    ) -> None:
        """`reread` loads the configuration again, for SIGHUP."""
        self._config = config
        self._reread = reread
        self._cni_cache_dir = cni_cache_dir
        self._paths = Paths(config.root, config.state)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CriShimError when it can't start."""
        started = time.monotonic()
        if unheeded := without_effect(self._config):
            log.warning("configuration keys without effect in this version", keys=unheeded)
        async with AsyncExitStack() as stack:
            for lock in self._locks():
                stack.enter_context(lock)
            self._prepare_directories()
            reaper = Reaper()
            reaper.open()
            stack.callback(reaper.close)
            parts = await build(
                self._config,
                paths=self._paths,
                reaper=reaper,
                cni_cache_dir=self._cni_cache_dir,
            )
            stack.push_async_callback(parts.images.close)
            parts.exits.open()
            stack.callback(parts.exits.close)
            gate = Gate()
            listeners = self._listeners(parts, gate)
            await listeners.start()
            stack.push_async_callback(self._stop, parts, listeners)
            await self._start_metrics(parts, gate, stack)
            self._handle_signals(parts)
            parts.cni.load()
            parts.cni.watch()
            stack.callback(parts.cni.close)
            await parts.handlers.discover()
            await parts.recovery.run()
            await parts.images.sweep()
            await listeners.set_ready()
            notify("READY=1")
            log.info(
                "ready",
                version=cri_shim.__version__,
                pid=os.getpid(),
                listen=[str(url) for url in self._config.listen],
                cgroups=str(parts.cgroups.mode),
                cgroup_driver="systemd" if parts.systemd else "cgroupfs",
                seconds=round(time.monotonic() - started, 3),
            )
            await self._serve(parts)
            notify("STOPPING=1")

    async def _serve(self, parts: Parts) -> None:
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(TIDY_INTERVAL_S):
                    await self._stopping.wait()
            except TimeoutError:
                parts.sandboxes.save_unsaved()
                parts.containers.save_unsaved()

    async def _stop(self, parts: Parts, listeners: Listeners) -> None:
        log.info("stopping; containers go on")
        await listeners.stop(CALLS_GRACE_S)
        await parts.puller.close(WORK_GRACE_S)
        await parts.pods.close(WORK_GRACE_S)
        await parts.container_cases.close(WORK_GRACE_S)
        await parts.background.close(WORK_GRACE_S)
        log.info("stopped")

    # --- start ---------------------------------------------------------------------------------------------------

    def _locks(self) -> Iterable[FileLock]:
        """One daemon per root, per state directory and per socket."""
        for name, directory in (("root", self._paths.root), ("state", self._paths.state)):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"{name}: {directory}: can't be made: {error.strerror}"
                ) from error
            yield FileLock(directory / "lock", protects=f"{name} directory {directory}")
        for url in self._config.listen:
            if url.socket_path is not None:
                path = url.socket_path
                yield FileLock(path.with_name(f"{path.name}.lock"), protects=f"socket {path}")

    def _prepare_directories(self) -> None:
        paths = self._paths
        try:
            # Others must not look into containers' files, nor into their state (CVE-2021-41103): what is below `state`
            # is closed, but the socket in it must be reachable for its group.
            paths.root.chmod(0o700)
            paths.state.chmod(0o711)
            for directory in (
                paths.sandboxes_dir,
                paths.containers_dir,
                paths.exits_dir,
                paths.console_dir,
                paths.state / "sandboxes",
                paths.state / "containers",
                paths.state / "runtime",
            ):
                directory.mkdir(mode=0o700, exist_ok=True)
            NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{error.filename}: can't be made: {error.strerror}") from error

    def _listeners(self, parts: Parts, gate: Gate) -> Listeners:
        node = NodeState(
            cni=parts.cni,
            handlers=parts.handlers,
            monitors=parts.monitors,
            config=lambda: self._config,
            systemd=parts.systemd,
        )
        return Listeners(
            self._config.listen,
            [
                *cri_services(
                    lambda version: RuntimeService(
                        pods=parts.pods,
                        containers=parts.container_cases,
                        stats=parts.stats,
                        node=node,
                        layers_mountpoint=self._paths.root,
                        api_version=version,
                    ),
                    lambda _version: ImageService(
                        images=parts.images,
                        pulls=parts.puller,
                        layers=parts.stats,
                        mountpoint=self._paths.root,
                    ),
                ),
                admin_service(
                    AdminService(images=parts.images, describe=lambda: self._describe(parts))
                ),
            ],
            gate=gate,
            socket=self._config.socket,
            tls=self._config.tls,
            max_message_bytes=self._config.limits.grpc_message_bytes,
        )

    async def _describe(self, parts: Parts) -> DaemonInfo:
        versions = []
        for runtime in parts.handlers.runtimes:
            try:
                version = (await runtime.version()).version
            except CriShimError:
                version = ""
            versions.append((runtime.settings.name, version))
        return DaemonInfo(
            root=str(self._paths.root),
            state=str(self._paths.state),
            config_json=msgspec.json.encode(to_tree(self._config)).decode(),
            cgroup_driver="systemd" if parts.systemd else "cgroupfs",
            handlers=versions,
        )

    async def _start_metrics(self, parts: Parts, gate: Gate, stack: AsyncExitStack) -> None:
        metrics.watch_objects(
            sandboxes=lambda: _count(SandboxState, (s.state for s in parts.sandboxes)),
            containers=lambda: _count(ContainerState, (c.state for c in parts.containers)),
            images=lambda: len(parts.images.images()),
        )
        if self._config.metrics.address is not None:
            server = MetricsServer(
                self._config.metrics.address,
                not_ready=lambda: "" if gate.phase is Phase.OPEN else str(gate.phase),
            )
            await server.start()
            stack.push_async_callback(server.stop)

    # --- signals -------------------------------------------------------------------------------------------------

    def _handle_signals(self, parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: parts.background.start("reload", self._reload(parts))
        )

    async def _reload(self, parts: Parts) -> None:
        """Apply what can be applied; what is wrong leaves everything as it is."""
        try:
            plan = reloadable_changes(self._config, self._reread())
            parts.handlers.replace(plan.config.runtime)
        except CriShimError as error:
            log.error("configuration not reloaded, the old one stays", error=str(error))
            return
        self._config = plan.config
        parts.puller.reconfigure(plan.config.images)
        logging_setup.set_level(plan.config.log.level)
        parts.cni.load()
        await parts.handlers.discover()
        log.info("reloaded", applied=plan.applied, needs_restart=plan.needs_restart)


def _count(
    states: type[SandboxState] | type[ContainerState],
    objects: Iterable[SandboxState | ContainerState],
) -> dict[str, int]:
    counts = {str(state): 0 for state in states}
    for state in objects:
        counts[str(state)] += 1
    return counts
