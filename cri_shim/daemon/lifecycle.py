"""The daemon's lifecycle: start, readiness, reload, and a stop that leaves every container running.

Start: locks -> directories -> reaper -> objects -> sockets (answering "recovering") -> CNI -> recovery -> ready. Exits
are watched before recovery reads exit files, so that none is missed.

Stop: refuse calls and wait for running ones, close the sockets, stop streaming, then wait for work whose callers are
gone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog

import cri_shim
from cri_shim import event_loop, metrics
from cri_shim import log as logging_setup
from cri_shim.background import side_by_side
from cri_shim.cni.pod_cidr import PodCidr
from cri_shim.config import reloadable_changes, without_effect
from cri_shim.config.render import to_tree
from cri_shim.daemon.build import Parts, build
from cri_shim.daemon.directories import prepare_directories
from cri_shim.daemon.images import pinned
from cri_shim.daemon.locks import daemon_locks
from cri_shim.daemon.node_status import NodeState
from cri_shim.daemon.watchdog import ask_for_patience, feed_watchdog
from cri_shim.errors import CriShimError
from cri_shim.host.heap import gather_in_large_pages, limit_arenas, unmap_large_blocks
from cri_shim.host.notify import READY, STOPPING, notify, reloading, status
from cri_shim.host.process import Reaper
from cri_shim.image.pins import Pins
from cri_shim.paths import Paths
from cri_shim.rpc.admin_service import AdminService, DaemonInfo
from cri_shim.rpc.gate import Gate, Phase
from cri_shim.rpc.handlers import admin_service, cri_services
from cri_shim.rpc.image_service import ImageService
from cri_shim.rpc.listen import Listeners
from cri_shim.rpc.request_budget import RequestBudget, tenant_of_request
from cri_shim.rpc.runtime_service import RuntimeService
from cri_shim.sandbox.store.model import ContainerState, SandboxState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from cri_shim.config import Config

log = structlog.get_logger()
CALLS_GRACE_S = 20.0
"""Time for calls under way at a stop, such as a CNI ADD or an image import."""
STREAMS_GRACE_S = 3.0
"""Time for clients of streams to read what is still sent to them."""
WORK_GRACE_S = 5.0
"""Time for work whose callers are gone. Then it is cancelled and undone."""
START_PATIENCE_S = 3.0
"""How long readiness waits for tasks other than recovery. Until a handler is probed, it counts as without features."""
MALLOC_ARENAS = 2
"""One arena for the event loop's thread, which allocates most, and one for all other threads."""
TIDY_INTERVAL_S = 5.0
"""How often writing of status files that failed is retried."""


class Daemon:
    """The daemon. `run` returns after SIGTERM or SIGINT."""

    def __init__(
        self, config: Config, *, reread: Callable[[], Config], cni_cache_dir: Path
    ) -> None:
        """`reread` loads the configuration again, at SIGHUP."""
        self._config = config
        self._reread = reread
        self._cni_cache_dir = cni_cache_dir
        self._paths = Paths(config.root, config.state)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CriShimError if the daemon cannot start."""
        started = time.monotonic()
        unmap_large_blocks()
        limit_arenas(MALLOC_ARENAS)
        if unheeded := without_effect(self._config):
            log.warning("configuration keys without effect in this version", keys=unheeded)
        async with AsyncExitStack() as stack:
            for lock in daemon_locks(self._config, self._paths):
                stack.enter_context(lock)
            prepare_directories(self._paths)
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
            parts.exits.open(parts.exit_dispatcher.dispatch)
            stack.callback(parts.exits.close)
            gate = Gate()
            listeners = self._listeners(parts, gate)
            await listeners.start()
            stack.push_async_callback(self._stop, parts, listeners)
            await self._start_metrics(parts, gate, stack)
            self._handle_signals(parts)
            ready = asyncio.Event()
            parts.background.keep("start", ask_for_patience(ready))
            self._follow_node(parts, stack)
            parts.pending_deletes.load()
            await self._for_a_moment(
                parts,
                ("plugins of a former daemon", parts.leftover_plugins.find()),
                ("what handlers support", parts.handlers.discover()),
            )
            await side_by_side(parts.recovery.run(), parts.streaming.start(parts.stream_backend))
            parts.background.keep("network reconciler", parts.reconciler.run())
            parts.background.keep("network checks", parts.reconciler.check_attachments())
            await self._for_a_moment(parts, ("sweeping images", parts.images.sweep()))
            _freeze_heap()
            await listeners.set_ready()
            parts.events.open()
            ready.set()
            notify(READY, status("serving"))
            event_loop.tell_of_stalls(partial(metrics.count_stall, "daemon"))
            unix = [url.socket_path for url in self._config.listen if url.socket_path is not None]
            parts.background.keep("watchdog", feed_watchdog(unix[0] if unix else None))
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
            notify(STOPPING, status("stopping; containers keep running"))

    def _follow_node(self, parts: Parts, stack: AsyncExitStack) -> None:
        """Load the CNI configurations, and watch them and the files of devices and hooks."""
        parts.cni.load()
        parts.cni.watch()
        stack.callback(parts.cni.close)
        parts.background.keep("cni status", parts.cni.follow_status())
        parts.node_resources.watch(parts.background)
        stack.callback(parts.node_resources.close)

    async def _for_a_moment(
        self, parts: Parts, *works: tuple[str, Coroutine[object, object, object]]
    ) -> None:
        """Start tasks, and wait `START_PATIENCE_S` for them. A hanging program or disk must not delay readiness."""

        async def done(work: Coroutine[object, object, object]) -> None:
            await work

        tasks = [parts.background.start(name, done(work)) for name, work in works]
        _, late = await asyncio.wait(tasks, timeout=START_PATIENCE_S)
        for task in late:
            log.warning("a task of the start takes long; not waiting for it", work=task.get_name())

    async def _serve(self, parts: Parts) -> None:
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(TIDY_INTERVAL_S):
                    await self._stopping.wait()
            except TimeoutError:
                parts.sandboxes.save_unsaved()
                parts.containers.save_unsaved()

    async def _stop(self, parts: Parts, listeners: Listeners) -> None:
        log.info("stopping; containers keep running")
        parts.events.close()
        await listeners.stop(CALLS_GRACE_S)
        await parts.streaming.stop(STREAMS_GRACE_S)
        await parts.puller.close(WORK_GRACE_S)
        await parts.pods.close(WORK_GRACE_S)
        await parts.container_service.close(WORK_GRACE_S)
        await parts.background.close(WORK_GRACE_S)
        parts.handlers.close()
        parts.sandboxes.save_unsaved()
        parts.containers.save_unsaved()
        log.info("stopped")

    # --- start ---------------------------------------------------------------------------------------------------

    def _listeners(self, parts: Parts, gate: Gate) -> Listeners:
        node = NodeState(
            cni=parts.cni,
            pending_deletes=parts.pending_deletes,
            pod_cidr=PodCidr(
                parts.cni,
                conf_dir=self._config.cni.conf_dir,
                template=self._config.cni.conf_template,
            ),
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
                        containers=parts.container_service,
                        stats=parts.stats,
                        pod_stats=parts.pod_stats,
                        pod_metrics=parts.pod_metrics,
                        streams=parts.streams,
                        events=parts.events,
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
                    AdminService(
                        images=parts.images,
                        pulls=parts.puller,
                        describe=lambda: self._describe(parts),
                        running=parts.operations,
                        everything=parts.wipe,
                        gate=gate,
                    )
                ),
            ],
            gate=gate,
            budget=RequestBudget(
                partial(
                    tenant_of_request, sandbox=parts.sandboxes.get, container=parts.containers.get
                )
            ),
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
            cni_pending_deletes=lambda: len(parts.pending_deletes),
            slow_operations=parts.operations.slow_by_step,
        )
        if self._config.metrics.address is not None:
            # Imported only if metrics are served: the HTTP parser takes 50 ms of a start and 400 KiB.
            from cri_shim.rpc.metrics_server import MetricsServer

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
        """Load the configuration again, and apply its reloadable changes. With a mistake nothing changes."""
        notify(reloading())
        try:
            await self._apply(parts)
        finally:
            notify(READY)

    async def _apply(self, parts: Parts) -> None:
        try:
            plan = reloadable_changes(self._config, self._reread())
            pins = Pins(pinned(plan.config))
            parts.handlers.replace(plan.config.runtime)
        except CriShimError as error:
            log.error("configuration not reloaded, the old one stays in effect", error=str(error))
            return
        self._config = plan.config
        parts.puller.reconfigure(plan.config.images)
        parts.streaming.reconfigure(plan.config.streaming, plan.config.log)
        parts.images.pin(pins)
        logging_setup.set_level(plan.config.log.level)
        parts.cni.load()
        parts.reconciler.wake()
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


def _freeze_heap() -> None:
    """Exempt the present objects, which are permanent, from garbage collection: it would stop all calls for 20 ms."""
    gc.collect()
    gc.freeze()
    # Reset the collector's count of old objects: a full collection comes after growth by a quarter of it.
    gc.collect()
    gather_in_large_pages()
