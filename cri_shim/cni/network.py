"""The networks of this node: attach and detach containers, report readiness, collect garbage.

Rules:
- Callers push `delete` on a Rollback before they call `add` (`chain` has what both remember).
- Operations on one container are serialised; those on different containers run in parallel. Garbage collection of a
  network excludes all of them (`operation_locks`).
- Garbage is collected only on a network that is entirely ours. If the result cache has attachments that the caller does
  not know, another runtime uses the network, and GC would remove that runtime's attachments.
- An attachment that a former daemon made is left alone while one of its plugins still works on it.
- A plugin is never pointed at the host's own network namespace.

CNI spec 1.1 §3 "Execution of Network Configurations".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from cri_shim import metrics
from cri_shim.cni.cache import ResultCache
from cri_shim.cni.chain import Chains
from cri_shim.cni.conf import NetworkList, parse_conflist
from cri_shim.cni.invoke import CANCEL_GRACE_S, PluginRunner, Verb
from cri_shim.cni.network_verbs import collect_garbage, knows_network_verbs
from cri_shim.cni.operation_locks import OperationLocks
from cri_shim.cni.readiness import Readiness
from cri_shim.cni.watch import CniStatus, NetworkConfigs
from cri_shim.errors import NotReadyError, WrongStateError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.leftover import LeftoverPlugins
    from cri_shim.cni.result import Result
    from cri_shim.host.process import Reaper

GC_PATIENCE_S = 30.0
"""How long a garbage collection waits for a gap between the operations of its network."""

LOOPBACK = parse_conflist(
    b'{"cniVersion":"0.4.0","name":"cni-loopback","plugins":[{"type":"loopback"}]}',
    source="the built-in loopback network",
)


class Cni:
    """The networks of the node. Use it on the event loop's thread.

    `timeout_s` bounds each plugin call, `cancel_grace_s` how long a plugin may run on when its caller is cancelled.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        plugin_dirs: Sequence[Path],
        conf_dir: Path,
        cache_dir: Path,
        leftovers: LeftoverPlugins,
        timeout_s: float,
        cancel_grace_s: float = CANCEL_GRACE_S,
        loopback_plugin: bool = False,
    ) -> None:
        """`leftovers` are the plugins that a former daemon called.

        `loopback_plugin`: the plugin of that name brings `lo` up, instead of the daemon itself.
        """
        self._runner = PluginRunner(
            reaper, plugin_dirs, timeout_s=timeout_s, cancel_grace_s=cancel_grace_s
        )
        self.loopback: NetworkList | None = LOOPBACK if loopback_plugin else None
        self._changed: list[Callable[[], None]] = []
        self._configs = NetworkConfigs(conf_dir, changed=self._note_change)
        self._cache = ResultCache(cache_dir)
        self._leftovers = leftovers
        self._chains = Chains(self._runner, self._cache, self._known_network, leftovers)
        self._operation_locks = OperationLocks()
        self._readiness = Readiness(self._runner, self._configured_default)
        self.on_change(self._readiness.wake)

    def load(self) -> None:
        """Read the whole configuration again. `status` reports its problems."""
        self._configs.load()

    def watch(self) -> None:
        """Follow the configuration from now on. Needs the running loop."""
        self._configs.watch()

    def close(self) -> None:
        """Stop following the configuration. Idempotent. Running operations go on."""
        self._configs.close()

    def on_change(self, call: Callable[[], None]) -> None:
        """Call `call` after each change of the configuration. It must not query this object."""
        self._changed.append(call)

    async def follow_status(self) -> None:
        """Ask the default network's plugins for their STATUS periodically, until cancelled."""
        await self._readiness.follow()

    @property
    def status(self) -> CniStatus:
        """Whether a pod can join the default network now; if not, the reason and the remedy.

        The plugins' own answer is the last one that `follow_status` received.
        """
        status = self._configs.status(self._runner)
        network = self._configured_default()
        if not status.ready or network is None:
            return status
        return self._readiness.judge(network) or status

    @property
    def networks(self) -> Mapping[str, NetworkList]:
        """The configured networks by name, the default one first."""
        return self._configs.networks

    def default_network(self) -> NetworkList:
        """The network that pods join by default. Raises NotReadyError with the remedy.

        The plugins' STATUS is not considered: it may be outdated, and the ADD itself will tell.
        """
        default = self._configs.default
        status = self._configs.status_of(default, self._runner)
        if not status.ready or default is None or default.network is None:
            raise NotReadyError(f"the pod network is not ready: {status.message}")
        return default.network

    @property
    def default_file(self) -> Path | None:
        """The file that defines the default network, if there is one."""
        default = self._configs.default
        return default.path if default is not None else None

    def network(self, name: str) -> NetworkList:
        """The network that a pod requests by name. Raises NotReadyError with the remedy."""
        network = self.networks.get(name)
        if network is None:
            raise self._unknown(name)
        missing = sorted({p.type for p in network.plugins if self._runner.find(p.type) is None})
        if missing:
            raise NotReadyError(
                f"CNI network {quoted(name)} needs the plugin {' and '.join(missing)}, not found in "
                f"{self._runner.where()}: install it there, or add its directory to cni.plugin_dirs"
            )
        return network

    def attachments(self, container_id: str) -> tuple[Attachment, ...]:
        """Every attachment of a container in the cache, complete or not: all that `delete` must undo."""
        return self._cache.attachments(container_id)

    def cached_result(self, attachment: Attachment) -> Result | None:
        """The result of the ADD, from the cache; None if there is no entry, or ADD has not got that far."""
        return self._chains.cached_result(attachment)

    async def add(self, attachment: Attachment) -> Result:
        """Attach: run ADD of every plugin of the chain in order, each with the result of those before it.

        After an error, call `delete`: part of the chain may have run.

        Raises:
            NotReadyError: no network of that name is configured.
            AlreadyExistsError: it is attached already, perhaps incompletely.
            CniPluginError: a plugin failed, hung or printed no valid result; the chain ended there.
            InvalidArgumentError: there is no such namespace, or it is the host's.
        """
        async with self._operation_locks.operation(attachment.container_id, attachment.network):
            with _measured(Verb.ADD):
                return await self._chains.add(attachment, self._to_join(attachment))

    async def delete(self, attachment: Attachment) -> None:
        """Detach: run DEL of every plugin of the chain in reverse order. Succeeds for what was never attached.

        Raises CniPluginError when a plugin fails. The plugins before it in the chain were not called then, the
        attachment stays in the cache, and the next call runs the whole chain again.
        """
        async with self._operation_locks.operation(attachment.container_id, attachment.network):
            with _measured(Verb.DEL):
                await self._chains.delete(attachment)

    async def outlast_leftovers(self, container_id: str) -> None:
        """Return when no plugin of a former daemon works for this container. Each may take as long as a call of ours.

        Raises DeadlineError for a plugin that survives SIGKILL.
        """
        await self._leftovers.wait(container_id, timeout_s=self._runner.timeout_s)

    async def check(self, attachment: Attachment) -> None:
        """Run CHECK of each plugin, in the order of ADD: does what it made still exist as it should?

        Skipped for lists older than 0.4.0, lists that disable it, and attachments without a successful ADD.
        Raises the CniPluginError of the first plugin that found a fault, InvalidArgumentError if the namespace is
        gone.
        """
        async with self._operation_locks.operation(attachment.container_id, attachment.network):
            with _measured(Verb.CHECK):
                await self._chains.check(attachment)

    async def collect_garbage(
        self,
        name: str,
        *,
        valid: Callable[[], Collection[tuple[str, str]]],
        known: Callable[[], Collection[tuple[str, str]]],
    ) -> bool:
        """GC of a network: its plugins release what belongs to no attachment of `valid`. False: GC is not possible.

        Both arguments return pairs of container ID and interface. They are called while no operation runs on the
        network. `known` are further attachments of ours, which GC may remove.

        Raises:
            WrongStateError: the result cache has attachments that are neither; nothing was done.
            TimeoutError: operations left no gap.
            CniPluginError: the first plugin's failure, after all were called.
        """
        network = self.networks.get(name)
        if network is None or network.disable_gc or not knows_network_verbs(network):
            return False
        async with self._operation_locks.collection(name, patience_s=GC_PATIENCE_S):
            # Only now, with the network quiet: an attachment made while we waited must stay.
            kept = sorted(valid())
            ours = {*kept, *known()}
            # In a thread: it reads every file of the cache, those of other runtimes included.
            cached = await asyncio.to_thread(self._cache.attached_to, name)
            if foreign := sorted(cached - ours):
                raise WrongStateError(
                    f"network {quoted(name)} is not collected: {self._cache.directory} has attachments of another "
                    f"runtime ({len(foreign)}, the first of container {foreign[0][0]}); set disableGC in the network"
                )
            with _measured(Verb.GC):
                await collect_garbage(self._runner, network, kept)
        return True

    def _to_join(self, attachment: Attachment) -> NetworkList:
        network = self._known_network(attachment.network)
        if network is None:
            raise self._unknown(attachment.network)
        return network

    def _unknown(self, name: str) -> NotReadyError:
        return NotReadyError(
            f"CNI network {quoted(name)} is not configured in {self._configs.conf_dir}; "
            f"configured: {', '.join(self.networks) or 'none'}"
        )

    def _known_network(self, name: str) -> NetworkList | None:
        return LOOPBACK if name == LOOPBACK.name else self.networks.get(name)

    def _configured_default(self) -> NetworkList | None:
        default = self._configs.default
        return default.network if default is not None else None

    def _note_change(self) -> None:
        for call in self._changed:
            call()


@contextlib.contextmanager
def _measured(verb: Verb) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    except Exception:
        metrics.CNI_OPERATION_FAILURES.labels(operation=verb).inc()
        raise
    finally:
        metrics.CNI_OPERATION_SECONDS.labels(operation=verb).observe(time.monotonic() - started)
