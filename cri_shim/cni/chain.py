"""Run one attachment's chain of plugins: ADD in order, DEL in reverse, CHECK.

Rules:
- `add` stores the attachment in the result cache before the first plugin runs, and again after each success. It undoes
  nothing itself. `delete` undoes an ADD that failed, hung, was cancelled, or ended with this process's death.
- `delete` and `check` use the configuration, arguments and result of the ADD, not today's. `delete` may be called any
  number of times, with or without the namespace. Plugins that leave rules behind without a namespace get a stand-in
  with the addresses of the result. The attachment is forgotten only when every plugin has succeeded.
- An attachment that a former daemon made is left alone while one of its plugins still works on it.
- A plugin is never pointed at the host's own network namespace.

CNI spec 1.1 §3 "Execution of Network Configurations".
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cri_shim import paths
from cri_shim.cni.cache import CacheEntry, ResultCache
from cri_shim.cni.conf import (
    NetworkList,
    build_plugin_config,
    is_version_at_least,
    parse_conflist,
)
from cri_shim.cni.false_alarms import (
    LOOK_INSIDE,
    is_about_a_missing_family,
    is_about_missing_rules,
    without_bridge_address,
)
from cri_shim.cni.invoke import PluginRunner, Verb
from cri_shim.cni.result import (
    Result,
    ResultError,
    build_result_document,
    parse_result,
    parse_result_document,
)
from cri_shim.errors import (
    AlreadyExistsError,
    CniPluginError,
    ConfigError,
    InvalidArgumentError,
)
from cri_shim.host.namespaces import is_netns, remove_netns
from cri_shim.host.standin import make_standin
from cri_shim.kernel_call import in_time
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import Any

    from cri_shim.cni.attachment import Attachment
    from cri_shim.cni.conf import PluginConf
    from cri_shim.cni.leftover import LeftoverPlugins

log = structlog.get_logger()

CHECK_TIMEOUT_S = 10.0
"""Per plugin. Short, since a pod's stop waits for a CHECK that holds its lock, and nobody waits for the result."""


class Chains:
    """Runs chains. The caller serialises the operations of one attachment."""

    def __init__(
        self,
        runner: PluginRunner,
        cache: ResultCache,
        configured: Callable[[str], NetworkList | None],
        leftovers: LeftoverPlugins,
    ) -> None:
        """`configured` returns a network by name, as it is configured now."""
        self._runner = runner
        self._cache = cache
        self._configured = configured
        self._leftovers = leftovers

    def cached_result(self, attachment: Attachment) -> Result | None:
        """The result of the ADD, from the cache; None if there is no entry, or ADD has not got that far."""
        entry = self._cache.load(attachment)
        if entry is None or entry.result is None:
            return None
        return _cached_result(entry, cni_version="1.0.0")

    async def add(self, attachment: Attachment, network: NetworkList) -> Result:
        """Run ADD of every plugin in order, each with the result of those before it. Raises as `Cni.add`."""
        if not _is_foreign_netns(attachment.netns):
            raise InvalidArgumentError(
                f"CNI ADD of {attachment}: {quoted(attachment.netns)} is not a network namespace other "
                "than the host's"
            )
        if self._cache.load(attachment) is not None:
            raise AlreadyExistsError(
                f"CNI ADD of {attachment}: it is attached already; DEL it first"
            )
        # Write ahead: from here on a DEL finds the attachment, whatever becomes of this process.
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
            before, document = (
                document,
                build_result_document(result, cni_version=network.cni_version),
            )
            # After each plugin, not only the last. If the next one fails, this one's DEL may need the result to find
            # what it made (the firewall plugin does). Most later plugins pass the result on, so few writes follow.
            if document != before:
                self._cache.save(CacheEntry.of(attachment, network.document, document))
        assert result is not None  # a list has at least one plugin  # noqa: S101
        log.info(
            "cni attached",
            attachment=str(attachment),
            ips=[str(ip.address) for ip in result.ips],
        )
        return result

    async def delete(self, attachment: Attachment) -> None:
        """Run DEL of every plugin in reverse order. Raises CniPluginError."""
        entry = self._cache.load(attachment)
        network = self._network_of(entry, attachment)
        if network is None:
            log.info(
                "cni attachment is neither cached nor configured: no DEL",
                attachment=str(attachment),
            )
            self._cache.remove(attachment)
            return
        await self._leftovers.wait(attachment.container_id, timeout_s=self._runner.timeout_s)
        told = entry.attachment() if entry is not None else attachment
        alive = _is_foreign_netns(attachment.netns)
        result = None if entry is None else _cached_result(entry, cni_version=network.cni_version)
        prev_result = None
        if result is not None and is_version_at_least(network.cni_version, "0.4.0"):
            prev_result = build_result_document(result, cni_version=network.cni_version)
        for plugin in reversed(network.plugins):
            config = build_plugin_config(
                network, plugin, prev_result=prev_result, capability_args=told.capability_args
            )
            if alive:
                await self._delete_of(plugin, config, told, netns=attachment.netns)
            # Most plugins need no namespace for a DEL: the spec lets CNI_NETNS be empty.
            elif result is None or plugin.type not in LOOK_INSIDE:
                await self._delete_of(plugin, config, told, netns="")
            else:
                async with _standin(told, result) as netns:
                    await self._delete_of(plugin, config, told, netns=netns)
        self._cache.remove(attachment)
        log.info("cni detached", attachment=str(attachment), netns_gone=not alive)

    async def _delete_of(
        self, plugin: PluginConf, config: bytes, told: Attachment, *, netns: str
    ) -> None:
        try:
            await self._runner.run(Verb.DEL, plugin.type, config, told, netns=netns)
        except CniPluginError as error:
            if not netns or not is_about_missing_rules(error):
                raise
            # Somebody flushed the node's rules, or it was rebooted. Without a namespace the plugin doesn't look for
            # its rules, and does everything else.
            await self._runner.run(Verb.DEL, plugin.type, config, told, netns="")

    async def check(self, attachment: Attachment) -> None:
        """Run CHECK of every plugin in order, unless the list disables it. Raises as `Cni.check`."""
        entry = self._cache.load(attachment)
        network = self._network_of(entry, attachment)
        if entry is None or network is None or network.disable_check:
            return
        result = _cached_result(entry, cni_version=network.cni_version)
        if result is None or not is_version_at_least(network.cni_version, "0.4.0"):
            return
        if not _is_foreign_netns(attachment.netns):
            raise InvalidArgumentError(
                f"CNI CHECK of {attachment}: there is no network namespace at {quoted(attachment.netns)}"
            )
        prev_result = build_result_document(result, cni_version=network.cni_version)
        told = entry.attachment()

        async def ask(plugin: PluginConf, made: dict[str, Any]) -> None:
            config = build_plugin_config(
                network, plugin, prev_result=made, capability_args=told.capability_args
            )
            await self._runner.run(
                Verb.CHECK,
                plugin.type,
                config,
                told,
                netns=attachment.netns,
                timeout_s=CHECK_TIMEOUT_S,
            )

        for plugin in network.plugins:
            try:
                await ask(plugin, prev_result)
            except CniPluginError as error:
                if (less := without_bridge_address(error, prev_result)) is not None:
                    await ask(plugin, less)
                elif not is_about_a_missing_family(error, result):
                    raise

    def _network_of(self, entry: CacheEntry | None, attachment: Attachment) -> NetworkList | None:
        configured = self._configured(attachment.network)
        if entry is not None and entry.result is None and configured is not None:
            # The ADD never succeeded, perhaps because of a mistake in the configuration, at which each DEL would fail
            # as well. Use what the operator has corrected since.
            return configured
        if entry is not None and configured is not None and entry.config == configured.document:
            return configured
        if entry is not None:
            try:
                return parse_conflist(
                    entry.config, source=f"the cached configuration of {attachment}"
                )
            except ConfigError as error:
                log.warning(
                    "cached cni configuration is invalid; using the configured one",
                    error=str(error),
                )
        return configured


def _cached_result(entry: CacheEntry, *, cni_version: str) -> Result | None:
    if entry.result is None:
        return None
    try:
        return parse_result_document(entry.result, cni_version=cni_version)
    except ResultError as error:
        log.warning("cached cni result is invalid", network=entry.network_name, error=str(error))
        return None


@asynccontextmanager
async def _standin(attachment: Attachment, result: Result) -> AsyncIterator[str]:
    """A stand-in for a namespace that vanished, with the interface of the ADD; "" if there can be none."""
    path = Path(attachment.netns)
    # Not a path of ours: create nothing at a place that somebody else chose.
    if path != paths.netns_file(attachment.container_id):
        yield ""
        return
    addresses = [ip.address for ip in result.ips]
    try:
        await in_time(
            "making a stand-in for a network namespace",
            make_standin,
            path,
            attachment.ifname,
            addresses,
        )
    except OSError as error:
        log.warning(
            "no stand-in for a vanished network namespace; its packet rules may stay on the node",
            attachment=str(attachment),
            error=str(error),
        )
        yield ""
        return
    try:
        yield str(path)
    finally:
        await in_time("removing the stand-in for a network namespace", remove_netns, path)


def _is_foreign_netns(path: str) -> bool:
    """Whether `path` is a live network namespace other than the host's; the empty file of a dead one is not."""
    try:
        return is_netns(Path(path)) and not os.path.samefile(path, "/proc/self/ns/net")
    except OSError:
        return False
