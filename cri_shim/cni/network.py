"""Attaching containers to networks and detaching them: chains of plugins, in order, with a memory.

Rules:
- `add` notes the attachment in the result cache before the first plugin runs and after each one that succeeded. It
  undoes nothing itself: whoever calls it pushes `delete` on a Rollback first, and `delete` undoes an ADD that
  failed, hung, was cancelled, or was cut short by the death of this process.
- `delete` works with the configuration, arguments and result of the ADD, not with today's. It may be called any
  number of times, with or without the namespace. It forgets the attachment only when every plugin has succeeded.
- Operations on one container run one after the other, those on different containers side by side.
- An attachment that an earlier process made is left alone while a plugin of that process still works on it.
- A plugin must never be pointed at the host's own network namespace.

CNI spec 1.1 §3 "Execution of Network Configurations".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim import metrics
from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.cni.conf import (
    NetworkList,
    build_plugin_config,
    is_version_at_least,
    parse_conflist,
)
from cri_shim.cni.invoke import CANCEL_GRACE_S, PluginRunner, Verb
from cri_shim.cni.leftover import wait_for_leftover_plugins
from cri_shim.cni.result import (
    Result,
    ResultError,
    build_result_document,
    parse_result,
    parse_result_document,
)
from cri_shim.cni.watch import CniStatus, NetworkConfigs
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    ConfigError,
    InvalidArgumentError,
    NotReadyError,
)
from cri_shim.host.namespaces import is_netns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from typing import Any

    from cri_shim.cni.attachment import Attachment
    from cri_shim.host.process import Reaper

log = structlog.get_logger()


class Cni:
    """The networks of the node; on the loop's thread only.

    `timeout_s` bounds each call of a plugin, `cancel_grace_s` how long one may go on when its caller is cancelled.
    """

    def __init__(
        self,
        reaper: Reaper,
        *,
        plugin_dirs: Sequence[Path],
        conf_dir: Path,
        cache_dir: Path,
        timeout_s: float,
        cancel_grace_s: float = CANCEL_GRACE_S,
    ) -> None:
        self._runner = PluginRunner(
            reaper, plugin_dirs, timeout_s=timeout_s, cancel_grace_s=cancel_grace_s
        )
        self._begun: set[tuple[str, str, str]] = set()
        self._configs = NetworkConfigs(conf_dir)
        self._cache = ResultCache(cache_dir)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def load(self) -> None:
        """Read the whole configuration again; what is wrong with it stands in `status`."""
        self._configs.load()

    def watch(self) -> None:
        """Report changes of the configuration as they happen; inside the running loop."""
        self._configs.watch()

    def close(self) -> None:
        """Stop following the configuration. Idempotent; running operations are not touched."""
        self._configs.close()

    @property
    def status(self) -> CniStatus:
        """Whether a pod could join the default network now, and else what to do about it."""
        return self._configs.status(self._runner)

    @property
    def networks(self) -> Mapping[str, NetworkList]:
        """The configured networks by name, the default one first."""
        return self._configs.networks

    def default_network(self) -> NetworkList:
        """The network that pods join unless told otherwise. Raises NotReadyError with the remedy."""
        status = self.status
        default = self._configs.default
        if not status.ready or default is None or default.network is None:
            raise NotReadyError(f"pod network is not ready: {status.message}")
        return default.network

    def attachments(self, container_id: str) -> tuple[Attachment, ...]:
        """What the cache knows to be attached, or half attached, of a container: all that `delete` must undo."""
        return self._cache.attachments(container_id)

    def cached_result(self, attachment: Attachment) -> Result | None:
        """The result of the ADD, from the cache; None when there is none or ADD did not get that far."""
        entry = self._cache.load(attachment)
        if entry is None or entry.result is None:
            return None
        return _cached_result(entry, cni_version="1.0.0")

    async def add(self, attachment: Attachment) -> Result:
        """Attach: every plugin of the chain in order, each told what the ones before it made.

        When this raises, call `delete`: parts of the chain may have run.

        Raises:
            NotReadyError: no network of that name is configured.
            AlreadyExistsError: it is attached already, perhaps half.
            CniPluginError: a plugin failed, hung or answered garbage; the chain ended there.
            InvalidArgumentError: the namespace is not there, or is the host's.
        """
        async with self._exclusive(attachment.container_id):
            with _measured(Verb.ADD):
                return await self._add(attachment)

    async def delete(self, attachment: Attachment) -> None:
        """Detach: every plugin of the chain in reverse order. Succeeds on what was never attached.

        Raises CniPluginError when a plugin fails; the plugins before it in the chain have not been called then, the
        attachment stays in the cache, and the next call does the whole chain again.
        """
        async with self._exclusive(attachment.container_id):
            with _measured(Verb.DEL):
                await self._delete(attachment)

    async def _add(self, attachment: Attachment) -> Result:
        network = self.networks.get(attachment.network)
        if network is None:
            raise NotReadyError(
                f"CNI network {attachment.network!r} is not configured in {self._configs.conf_dir}; "
                f"configured: {', '.join(self.networks) or 'none'}"
            )
        if not _is_foreign_netns(attachment.netns):
            raise InvalidArgumentError(
                f"CNI ADD of {attachment}: {attachment.netns!r} is not a network namespace other "
                "than the host's"
            )
        if self._cache.load(attachment) is not None:
            raise AlreadyExistsError(f"CNI ADD of {attachment}: it is attached already; DEL first")
        self._begun.add(_key(attachment))
        self._cache.save(CacheEntry.of(attachment, network.document))
        result: Result | None = None
        document: dict[str, Any] | None = None
        for plugin in network.plugins:
            config = build_plugin_config(
                network,
                plugin,
                prev_result=document,
                capability_args=attachment.capability_args,
            )
            answer = await self._runner.run(
                Verb.ADD, plugin.type, config, attachment, netns=attachment.netns
            )
            try:
                result = parse_result(answer, cni_version=network.cni_version)
            except ResultError as error:
                raise CniPluginError(plugin.type, Verb.ADD, str(error)) from error
            document = build_result_document(result, cni_version=network.cni_version)
            # After each plugin, not only the last: should the next one fail, this one's DEL may need its result
            # to find what it made (the firewall plugin does).
            self._cache.save(CacheEntry.of(attachment, network.document, document))
        assert result is not None  # a list has at least one plugin  # noqa: S101
        log.info(
            "cni attached",
            attachment=str(attachment),
            ips=[str(ip.address) for ip in result.ips],
        )
        return result

    async def _delete(self, attachment: Attachment) -> None:
        entry = self._cache.load(attachment)
        network = self._network_of(entry, attachment)
        if network is None:
            log.info("nothing to detach: neither cached nor configured", attachment=str(attachment))
            self._cache.remove(attachment)
            return
        if _key(attachment) not in self._begun:
            await wait_for_leftover_plugins(
                attachment.container_id,
                self._runner.plugin_dirs,
                timeout_s=self._runner.timeout_s,
            )
        told = entry.attachment() if entry is not None else attachment
        netns = attachment.netns if _is_foreign_netns(attachment.netns) else ""
        prev_result = None
        if entry is not None and is_version_at_least(network.cni_version, "0.4.0"):
            result = _cached_result(entry, cni_version=network.cni_version)
            if result is not None:
                prev_result = build_result_document(result, cni_version=network.cni_version)
        for plugin in reversed(network.plugins):
            config = build_plugin_config(
                network, plugin, prev_result=prev_result, capability_args=told.capability_args
            )
            await self._runner.run(Verb.DEL, plugin.type, config, told, netns=netns)
        self._cache.remove(attachment)
        self._begun.discard(_key(attachment))
        log.info("cni detached", attachment=str(attachment), netns_gone=not netns)

    def _network_of(self, entry: CacheEntry | None, attachment: Attachment) -> NetworkList | None:
        configured = self.networks.get(attachment.network)
        if entry is not None and entry.result is None and configured is not None:
            # Its ADD never succeeded, perhaps for a mistake in the configuration that DEL would stumble over for ever:
            # what the operator has corrected since counts.
            return configured
        if entry is not None:
            try:
                return parse_conflist(
                    entry.config, source=f"the cached configuration of {attachment}"
                )
            except ConfigError as error:
                log.warning(
                    "cached cni configuration is bad; using the configured one", error=str(error)
                )
        return configured

    @contextlib.asynccontextmanager
    async def _exclusive(self, container_id: str) -> AsyncIterator[None]:
        # The dictionary forgets a lock when nobody holds or awaits it any more.
        lock = self._locks.get(container_id)
        if lock is None:
            lock = self._locks[container_id] = asyncio.Lock()
        async with lock:
            yield


def _key(attachment: Attachment) -> tuple[str, str, str]:
    return attachment.network, attachment.container_id, attachment.ifname


def _cached_result(entry: CacheEntry, *, cni_version: str) -> Result | None:
    if entry.result is None:
        return None
    try:
        return parse_result_document(entry.result, cni_version=cni_version)
    except ResultError as error:
        log.warning("cached cni result is bad", network=entry.network_name, error=str(error))
        return None


def _is_foreign_netns(path: str) -> bool:
    """Whether a live network namespace that isn't the host's is at `path`; the bare file of a dead one is none."""
    try:
        return is_netns(Path(path)) and not os.path.samefile(path, "/proc/self/ns/net")
    except OSError:
        return False


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
