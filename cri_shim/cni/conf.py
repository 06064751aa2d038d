"""Parse network configuration, the files of the CNI configuration directory. Pure.

Rules:
- Bytes in, a frozen `NetworkList` out. A file with a single plugin becomes a list of one.
- A plugin's configuration is the plugin's: beyond the fields that the spec names, it is passed on unchanged. The spec's
  own fields are checked here, so that a mistake shows when the file is dropped in, not when the first pod starts.
- Every error is a ConfigError with the file, the plugin's index, and the field.
- A plugin type is a bare file name: with a path in it, a configuration could run any executable.
- A list may be completed by files of a folder beside it with the network's name. The reader of the list passes them in.
  The result contains every plugin, so that the result cache needs no folder.

CNI spec 1.1 §1 "Network configuration format" and §3 "Deriving request configuration from plugin configuration".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cri_shim.cni.attachment import MAX_NETWORK_NAME, is_network_name
from cri_shim.errors import UNREADABLE_DOCUMENT, ConfigError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_CONF_BYTES = 1 << 20
"""The largest configuration file that is read."""

KNOWN_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The spec's versions, oldest first."""

_UNVERSIONED = "0.1.0"  # the version of a document without cniVersion
_PLUGIN_TYPE = re.compile(r"[A-Za-z0-9_.-]+")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")

_Fields = TypeVar("_Fields", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class PluginConf:
    """One link of a chain: the executable's name and its configuration as written."""

    type: str
    conf: Mapping[str, Any]
    capabilities: frozenset[str]
    """The capabilities that the plugin declares, and so gets in `runtimeConfig`."""


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A named chain of plugins, in the order of ADD."""

    name: str
    cni_version: str
    disable_check: bool
    disable_gc: bool
    plugins: tuple[PluginConf, ...]
    document: bytes
    """The list as JSON, from which `parse_conflist` gives this object again. The result cache stores it."""


class ListHead(msgspec.Struct, rename={"load_only_inlined": "loadOnlyInlinedPlugins"}, frozen=True):
    """The fields of a list that are needed before its folder is read."""

    name: str
    load_only_inlined: bool = False


class _ListFields(msgspec.Struct, rename="camel"):
    name: str
    plugins: list[dict[str, Any]] = []
    cni_version: str = ""
    cni_versions: list[str] = []
    disable_check: bool | str = False
    disable_gc: bool | str = msgspec.field(name="disableGC", default=False)
    load_only_inlined_plugins: bool = False


class _PluginFields(msgspec.Struct, rename="camel"):
    type: str
    name: str = ""
    cni_version: str = ""
    capabilities: dict[str, bool] = {}


def is_version_at_least(version: str, floor: str) -> bool:
    """Whether a known version is `floor` or later."""
    return KNOWN_VERSIONS.index(version) >= KNOWN_VERSIONS.index(floor)


def parse_list_head(data: bytes, *, source: str) -> ListHead:
    """The network's name, and whether the folder of that name counts. Raises ConfigError."""
    head = _convert(_decode_object(data, source=source), ListHead, source=source)
    return ListHead(_checked_name(head.name, source=source), head.load_only_inlined)


def parse_conflist(
    data: bytes, *, source: str, folder: Sequence[tuple[str, bytes]] = ()
) -> NetworkList:
    """Parse a network configuration list (`.conflist`); `source` names the file in errors.

    `folder` has name and content of each file of the network's folder, one plugin each, in order; they come last.
    Raises ConfigError.
    """
    document = _decode_object(data, source=source)
    fields = _convert(document, _ListFields, source=source)
    if fields.load_only_inlined_plugins and folder:
        raise ConfigError(f"{source}: loadOnlyInlinedPlugins: its folder must not be read")
    plugins = [
        _plugin(conf, _convert(conf, _PluginFields, source=source, place=place), source, place)
        for place, conf in ((f"plugins[{i}]", conf) for i, conf in enumerate(fields.plugins))
    ]
    for file, content in folder:
        conf = _decode_object(content, source=file)
        plugins.append(_plugin(conf, _convert(conf, _PluginFields, source=file), file, ""))
    if "plugins" not in document and not plugins:
        raise ConfigError(f"{source}: plugins: is missing")
    if not plugins:
        raise ConfigError(
            f"{source}: plugins: the list is empty; a network needs at least one plugin"
        )
    if folder:
        document["plugins"] = [plugin.conf for plugin in plugins]
        data = msgspec.json.encode({**document, "loadOnlyInlinedPlugins": True})
    return NetworkList(
        name=_checked_name(fields.name, source=source),
        cni_version=_checked_version(fields.cni_version, fields.cni_versions, source=source),
        disable_check=_checked_flag(fields.disable_check, "disableCheck", source=source),
        disable_gc=_checked_flag(fields.disable_gc, "disableGC", source=source),
        plugins=tuple(plugins),
        document=data,
    )


def parse_conf(data: bytes, *, source: str) -> NetworkList:
    """Parse the older form, a file with one plugin (`.conf`, `.json`), as a list of one.

    Raises ConfigError.
    """
    conf = _decode_object(data, source=source)
    if "plugins" in conf and "type" not in conf:
        raise ConfigError(
            f"{source}: plugins: the file is a list of plugins; rename it to end in .conflist"
        )
    fields = _convert(conf, _PluginFields, source=source)
    name = _checked_name(fields.name, source=source)
    version = _checked_version(fields.cni_version, [], source=source)
    document = {"cniVersion": version, "name": name, "plugins": [conf]}
    return NetworkList(
        name=name,
        cni_version=version,
        disable_check=False,
        disable_gc=False,
        plugins=(_plugin(conf, fields, source, ""),),
        document=msgspec.json.encode(document),
    )


def build_plugin_config(
    network: NetworkList,
    plugin: PluginConf,
    *,
    prev_result: Mapping[str, Any] | None = None,
    capability_args: Mapping[str, object] | None = None,
    valid_attachments: Sequence[Mapping[str, str]] | None = None,
) -> bytes:
    """The configuration for one plugin's standard input.

    Every plugin gets the list's name and version, and those of `capability_args` that it declares.
    `valid_attachments` is for GC: what must stay. The spec reserves names that begin with `cni.dev/`.
    """
    conf: dict[str, object] = {
        **{key: value for key, value in plugin.conf.items() if not key.startswith("cni.dev/")},
        "name": network.name,
        "cniVersion": network.cni_version,
    }
    wanted = {
        key: value for key, value in (capability_args or {}).items() if key in plugin.capabilities
    }
    if wanted:
        conf["runtimeConfig"] = wanted
    if prev_result is not None:
        conf["prevResult"] = prev_result
    if valid_attachments is not None:
        conf["cni.dev/valid-attachments"] = valid_attachments
    return msgspec.json.encode(conf)


def _decode_object(data: bytes, *, source: str) -> dict[str, Any]:
    if len(data) > MAX_CONF_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_CONF_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except UNREADABLE_DOCUMENT as error:
        raise ConfigError(f"{source}: not a JSON object: {error}") from error


def _convert(
    document: dict[str, Any], kind: type[_Fields], *, source: str, place: str = ""
) -> _Fields:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        inner = found.group(1) if (found := _PLACE.search(text)) else ""
        text = _PLACE.sub("", text)
        if missing := _MISSING.fullmatch(text):
            inner, text = f"{inner}.{missing.group(1)}".strip("."), "is missing"
        path = ".".join(part for part in (place, inner) if part)
        raise ConfigError(f"{source}: {path}: {text}" if path else f"{source}: {text}") from error


def _plugin(conf: dict[str, Any], fields: _PluginFields, source: str, place: str) -> PluginConf:
    if not _PLUGIN_TYPE.fullmatch(fields.type) or fields.type in (".", ".."):
        path = f"{place}.type".strip(".")
        raise ConfigError(
            f"{source}: {path}: {quoted(fields.type)} is not a plugin name: "
            "only letters, digits, '_', '.', '-', no path"
        )
    return PluginConf(
        type=fields.type,
        conf=conf,
        capabilities=frozenset(key for key, wanted in fields.capabilities.items() if wanted),
    )


def _checked_name(name: str, *, source: str) -> str:
    if not is_network_name(name):
        said = f"{quoted(name)} is not a network name" if name else "is missing"
        raise ConfigError(
            f"{source}: name: {said}: only letters, digits, '_', '.', '-', a letter or digit first, "
            f"at most {MAX_NETWORK_NAME}"
        )
    return name


def _checked_version(version: str, versions: list[str], *, source: str) -> str:
    """The newest version that we know among those that the document allows (`cniVersions` since 1.1.0)."""
    allowed = [*versions, version] if version or versions else [_UNVERSIONED]
    known = [candidate for candidate in allowed if candidate in KNOWN_VERSIONS]
    if not known:
        named = ", ".join(repr(candidate) for candidate in allowed if candidate)
        raise ConfigError(
            f"{source}: cniVersion: {named} is not supported; supported are {', '.join(KNOWN_VERSIONS)}"
        )
    return max(known, key=KNOWN_VERSIONS.index)


def _checked_flag(value: bool | str, field: str, *, source: str) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "false"):  # files of spec 0.4.0 have it as a string
        return value.lower() == "true"
    raise ConfigError(f"{source}: {field}: {quoted(value)} is neither true nor false")
