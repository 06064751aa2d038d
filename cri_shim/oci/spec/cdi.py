"""CDI, the Container Device Interface: parse device files.

Rules: unknown keys, and keys newer than the file's version, are refused: what is not understood can't be carried out.
`cdi_edits` applies the edits to a container.

CDI specification 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec

from cri_shim.errors import ConfigError
from cri_shim.oci.spec.hooks import STAGES, Hook, check_hook
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_VENDOR = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_CLASS = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class CdiDeviceNode(_Strict, frozen=True):
    """A device node to create. Unset members are as on the node."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] | None = None
    permissions: str = ""
    uid: _Id | None = None
    gid: _Id | None = None

    @property
    def source(self) -> str:
        """Its path on the node."""
        return self.host_path or self.path

    @property
    def needs_lookup(self) -> bool:
        """Whether its type or number must be looked up on the node."""
        return self.type != "p" and not (self.type and (self.major or self.minor))


class CdiMount(_Strict, frozen=True):
    """A mount to add."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class CdiHook(_Strict, frozen=True):
    """A hook, and when it runs."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    @property
    def hook(self) -> Hook:
        """The hook in the runtime-spec's form."""
        return Hook(self.path, self.args, self.env, self.timeout)


class CdiRdt(_Strict, frozen=True, omit_defaults=True):
    """Cache and memory bandwidth (resctrl), in the runtime-spec's form."""

    clos_id: str = msgspec.field(default="", name="closID")
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False
    enable_cmt: bool = msgspec.field(default=False, name="enableCMT")
    enable_mbm: bool = msgspec.field(default=False, name="enableMBM")


class CdiNetDevice(_Strict, frozen=True):
    """A network interface of the node to move into the container."""

    host_interface_name: str
    name: str


class ContainerEdits(_Strict, frozen=True):
    """Changes of a container's spec."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[CdiDeviceNode, ...] = ()
    net_devices: tuple[CdiNetDevice, ...] = ()
    hooks: tuple[CdiHook, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    intel_rdt: CdiRdt | None = None
    additional_gids: tuple[_Id, ...] = ()


class CdiDevice(_Strict, frozen=True):
    """A device of a file."""

    name: str
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits = ContainerEdits()


class CdiSpec(_Strict, frozen=True):
    """A CDI file."""

    cdi_version: str
    kind: str
    devices: Annotated[tuple[CdiDevice, ...], msgspec.Meta(min_length=1)]
    annotations: dict[str, str] = {}
    container_edits: ContainerEdits = ContainerEdits()


def parse_cdi_spec(document: object, source: str) -> CdiSpec:
    """Parse a device file from its JSON or YAML values. Raises ConfigError for one that can't be used."""
    try:
        spec = msgspec.convert(document, CdiSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        raise ConfigError(
            f"{source}: cdiVersion {quoted(spec.cdi_version)}: must be {VERSIONS[0]} to {VERSIONS[-1]}"
        )
    vendor, _, class_ = spec.kind.partition("/")
    if not (_VENDOR.fullmatch(vendor) and _CLASS.fullmatch(class_)):
        raise ConfigError(f"{source}: kind {quoted(spec.kind)}: must be VENDOR/CLASS")
    names = [device.name for device in spec.devices]
    for name in names:
        if not _DEVICE.fullmatch(name):
            raise ConfigError(f"{source}: devices: {quoted(name)} is not a valid device name")
        if names.count(name) > 1:
            raise ConfigError(f"{source}: devices: {quoted(name)} occurs twice")
    for edits in (spec.container_edits, *(device.container_edits for device in spec.devices)):
        _check_edits(edits, source)
    for since, what in _features(spec):
        if VERSIONS.index(version) < VERSIONS.index(since):
            raise ConfigError(f"{source}: {what} needs cdiVersion {since}, this is {version}")
    return spec


def is_qualified_name(name: str) -> bool:
    """Whether `name` is a device's name, VENDOR/CLASS=NAME."""
    kind, _, device = name.partition("=")
    vendor, _, class_ = kind.partition("/")
    return bool(
        _VENDOR.fullmatch(vendor) and _CLASS.fullmatch(class_) and _DEVICE.fullmatch(device)
    )


def _check_edits(edits: ContainerEdits, source: str) -> None:
    for entry in edits.env:
        if not entry.partition("=")[0] or "=" not in entry or "\0" in entry:
            raise ConfigError(f"{source}: env {quoted(entry)}: must be NAME=VALUE")
    for node in edits.device_nodes:
        for path in (node.path, node.source):
            _check_path(path, f"{source}: deviceNodes")
        if node.type not in ("", "b", "c", "u", "p"):
            raise ConfigError(
                f"{source}: deviceNodes: type {quoted(node.type)}: must be b, c, u or p"
            )
        if node.permissions != "none" and not set(node.permissions) <= set("rwm"):
            raise ConfigError(
                f"{source}: deviceNodes: permissions {quoted(node.permissions)}: must consist of r, w and m, or be none"
            )
    for mount in edits.mounts:
        _check_path(mount.container_path, f"{source}: mounts")
        if not mount.host_path or "\0" in mount.host_path:
            raise ConfigError(
                f"{source}: mounts: hostPath {quoted(mount.host_path)}: must be a path"
            )
    for hook in edits.hooks:
        if hook.hook_name not in STAGES:
            raise ConfigError(
                f"{source}: hooks: hookName {quoted(hook.hook_name)} is not a hook of the runtime-spec"
            )
        if hook.timeout is not None and hook.timeout < 1:
            raise ConfigError(f"{source}: hooks: timeout {hook.timeout}: must be 1 or more")
        check_hook(hook.hook, f"{source}: hooks")
    rdt = edits.intel_rdt
    if rdt is not None and (rdt.clos_id in (".", "..") or "/" in rdt.clos_id):
        raise ConfigError(
            f"{source}: intelRdt.closID {quoted(rdt.clos_id)}: must be a single file name"
        )


def _check_path(path: str, source: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"{source}: path {quoted(path)}: must be absolute")


def _features(spec: CdiSpec) -> Iterator[tuple[str, str]]:
    """The features that a file uses, each with the version that introduced it."""
    for edits in (spec.container_edits, *(device.container_edits for device in spec.devices)):
        if any(mount.type for mount in edits.mounts):
            yield "0.4.0", "the type of a mount"
        if any(node.host_path for node in edits.device_nodes):
            yield "0.5.0", "deviceNodes.hostPath"
        if edits.intel_rdt is not None:
            yield "0.7.0", "intelRdt"
        if edits.additional_gids:
            yield "0.7.0", "additionalGids"
        if edits.net_devices:
            yield "1.1.0", "netDevices"
        if edits.intel_rdt and (edits.intel_rdt.schemata or edits.intel_rdt.enable_monitoring):
            yield "1.1.0", "intelRdt.schemata and enableMonitoring"
    if any(device.name[0].isdigit() for device in spec.devices):
        yield "0.5.0", "the name of a device that begins with a digit"
    if spec.annotations or any(device.annotations for device in spec.devices):
        yield "0.6.0", "annotations"
    if "." in spec.kind.partition("/")[2]:
        yield "0.6.0", "a dot in the class"
