"""The verbs for a whole network, STATUS, GC and VERSION, sent to each plugin of its list.

Rules:
- Only lists of version 1.1.0 and later get STATUS and GC. An older list counts as ready, with nothing to collect.
- A plugin that doesn't know such a verb, although its list says 1.1.0, counts as ready with nothing to collect too,
  unless its VERSION says that it could not do an ADD for this list either.
- GC goes to every plugin of the list, even after one has failed.
- The deadlines are short: STATUS is asked again soon, and a GC delays the pods of its network.

CNI spec 1.1 §2 "STATUS", "VERSION", "GC", §3 "Garbage-collecting a network".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cri_shim.cni.conf import build_plugin_config, is_version_at_least
from cri_shim.cni.invoke import PluginRunner, Verb
from cri_shim.errors import UNREADABLE_DOCUMENT, CniPluginError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.cni.conf import NetworkList, PluginConf

STATUS_TIMEOUT_S = 10.0
GC_TIMEOUT_S = 10.0
VERSION_TIMEOUT_S = 10.0

LIMITED_CONNECTIVITY = 51
"""STATUS code 51: pods that are attached have limited connectivity as well. Code 50: no pod can be attached."""

_UNKNOWN_VERB = (3, 4)
"""The codes of plugins with older libraries: an ADD parameter is missing, or the command is unknown."""


class _Versions(msgspec.Struct, rename="camel"):
    supported_versions: list[str] = []


def knows_network_verbs(network: NetworkList) -> bool:
    """Whether the list's version has STATUS and GC."""
    return is_version_at_least(network.cni_version, "1.1.0")


async def ask_status(runner: PluginRunner, network: NetworkList) -> None:
    """Ask each plugin for its STATUS, in order. Raises the CniPluginError of the first that is not ready."""
    if not knows_network_verbs(network):
        return
    for plugin in network.plugins:
        config = build_plugin_config(network, plugin)
        try:
            await runner.run(Verb.STATUS, plugin.type, config, timeout_s=STATUS_TIMEOUT_S)
        except CniPluginError as error:
            if error.code not in _UNKNOWN_VERB:
                raise
            await _require_version(runner, network, plugin)


async def collect_garbage(
    runner: PluginRunner, network: NetworkList, valid: Sequence[tuple[str, str]]
) -> None:
    """Send GC to each plugin. `valid` are container ID and interface of each attachment that must stay.

    Raises the first CniPluginError after all plugins were called.
    """
    if network.disable_gc or not knows_network_verbs(network):
        return
    kept = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
    failures: list[CniPluginError] = []
    for plugin in network.plugins:
        config = build_plugin_config(network, plugin, valid_attachments=kept)
        try:
            await runner.run(Verb.GC, plugin.type, config, timeout_s=GC_TIMEOUT_S)
        except CniPluginError as error:
            if error.code not in _UNKNOWN_VERB:
                failures.append(error)
    if failures:
        raise failures[0]


async def supported_versions(
    runner: PluginRunner, network: NetworkList, plugin: PluginConf
) -> tuple[str, ...]:
    """The plugin's answer to VERSION; empty if it is unusable. Raises CniPluginError."""
    question = msgspec.json.encode({"cniVersion": network.cni_version})
    answer = await runner.run(Verb.VERSION, plugin.type, question, timeout_s=VERSION_TIMEOUT_S)
    try:
        return tuple(msgspec.json.decode(answer, type=_Versions).supported_versions)
    except UNREADABLE_DOCUMENT:
        return ()


async def _require_version(runner: PluginRunner, network: NetworkList, plugin: PluginConf) -> None:
    try:
        versions = await supported_versions(runner, network, plugin)
    except CniPluginError:
        return  # the version is unknown: the next ADD will tell
    if versions and network.cni_version not in versions:
        raise CniPluginError(
            plugin.type,
            Verb.VERSION,
            f"the plugin supports {', '.join(versions)}, but network {quoted(network.name)} has cniVersion "
            f"{network.cni_version}: set an older cniVersion, or install newer plugins",
        )
