"""CDI devices of a container: find them, collect their edits, and apply these to the spec.

Rules:
- A device's name is `vendor/class=name`. Of two files that describe it, that of the later directory counts. Two in the
  same directory make it ambiguous, and it is refused.
- A device brings its own edits and, once per file, those that the file has for all of its devices.
- Edits apply after everything else in the spec: they replace what has the same path or name.

CDI specification, "OCI Edits".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidArgumentError, UnsupportedError
from cri_shim.oci.spec.cdi import is_qualified_name
from cri_shim.oci.spec.checks import refuse
from cri_shim.oci.spec.hooks import add_hook, plain
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cri_shim._pb.cri.v1.api_pb2 import ContainerConfig
    from cri_shim.oci.spec.cdi import CdiDevice, CdiDeviceNode, CdiMount, CdiSpec, ContainerEdits
    from cri_shim.oci.spec.inputs import DeviceNode, Spec

ANNOTATION_PREFIX = "cdi.k8s.io/"
_FIELDS = "CDI_devices or annotations"
MAX_NAMED = 20
"""How many devices an error lists."""


@dataclass(frozen=True, slots=True)
class PlacedSpec:
    """A file with its path and its directory's priority."""

    spec: CdiSpec
    source: str
    priority: int


def requested_devices(config: ContainerConfig) -> tuple[str, ...]:
    """The devices that a request names, in the field and in annotations, without duplicates.

    Raises InvalidArgumentError for an invalid name.
    """
    names: dict[str, None] = {}
    for index, device in enumerate(config.CDI_devices):
        names[_qualified(device.name, f"CDI_devices[{index}].name")] = None
    for key in sorted(config.annotations):
        if key.startswith(ANNOTATION_PREFIX):
            for name in config.annotations[key].split(","):
                names[_qualified(name, f"annotations[{quoted(key)}]")] = None
    return tuple(names)


def _qualified(name: str, field: str) -> str:
    if not is_qualified_name(name):
        refuse(field, name, "is not a CDI device name (VENDOR/CLASS=NAME)")
    return name


def edits_for(
    names: Iterable[str], specs: Sequence[PlacedSpec], problems: Sequence[str] = ()
) -> tuple[ContainerEdits, ...]:
    """The edits of these devices, in order. If a device is missing, the error includes the `problems` of other files.

    Raises InvalidArgumentError for a device that no file describes, or that several of one directory describe.
    """
    found: list[ContainerEdits] = []
    used: set[str] = set()
    for name in names:
        placed, device = _find(name, specs, problems)
        if placed.source not in used:
            used.add(placed.source)
            found.append(placed.spec.container_edits)
        found.append(device.container_edits)
    return tuple(found)


def _find(
    name: str, specs: Sequence[PlacedSpec], problems: Sequence[str]
) -> tuple[PlacedSpec, CdiDevice]:
    kind, _, wanted = name.partition("=")
    of_kind = [placed for placed in specs if placed.spec.kind == kind]
    matches = [(p, d) for p in of_kind for d in p.spec.devices if d.name == wanted]
    if not matches:
        known = [f"{kind}={d.name}" for p in of_kind for d in p.spec.devices]
        listed = ", ".join(known[:MAX_NAMED]) + (", …" if len(known) > MAX_NAMED else "")
        why = f"; unusable files: {'; '.join(problems)}" if problems else ""
        raise InvalidArgumentError(
            f"{_FIELDS}: {quoted(name)}: no such device on this node (devices of this kind: {listed or 'none'}){why}"
        )
    highest = max(placed.priority for placed, _ in matches)
    best = [match for match in matches if match[0].priority == highest]
    if len(best) > 1:
        sources = " and ".join(placed.source for placed, _ in best)
        raise InvalidArgumentError(
            f"{_FIELDS}: {quoted(name)}: {sources} both describe it: remove one of the files"
        )
    return best[0]


def device_paths(edits: Sequence[ContainerEdits]) -> list[str]:
    """The device paths on the node that the caller must look up before it applies the edits."""
    return [node.source for edit in edits for node in edit.device_nodes if node.needs_lookup]


# --- edits -------------------------------------------------------------------------------------------------------


def apply_edits(
    spec: Spec, edits: Sequence[ContainerEdits], nodes: Mapping[str, tuple[DeviceNode, ...]]
) -> None:
    """Apply edits to the spec. `nodes` are the looked-up devices, by path on the node.

    Raises InvalidArgumentError for a device that does not exist or has another type, UnsupportedError for network
    devices, which runtimes of runtime-spec 1.0 would ignore silently.
    """
    for edit in edits:
        if edit.net_devices:
            raise UnsupportedError("CDI_devices: netDevices of a CDI file are not supported")
        _set_env(spec["process"], edit.env)
        for node in edit.device_nodes:
            _add_device(spec, node, nodes)
        for mount in edit.mounts:
            _add_mount(spec["mounts"], mount)
        for hook in edit.hooks:
            add_hook(spec, hook.hook_name, hook.hook)
        if edit.intel_rdt is not None:
            spec["linux"]["intelRdt"] = plain(edit.intel_rdt)
        gids = spec["process"]["user"]["additionalGids"]
        gids += [gid for gid in dict.fromkeys(edit.additional_gids) if gid and gid not in gids]
    # Shallow paths first, as for all mounts, so that no mount hides a deeper one.
    spec["mounts"].sort(key=lambda mount: mount["destination"].count("/"))


def _set_env(process: Spec, entries: Sequence[str]) -> None:
    env = {entry.partition("=")[0]: entry for entry in process["env"]}
    env.update({entry.partition("=")[0]: entry for entry in entries})
    process["env"] = list(env.values())


def _add_device(
    spec: Spec, node: CdiDeviceNode, nodes: Mapping[str, tuple[DeviceNode, ...]]
) -> None:
    type_, major, minor = node.type, node.major, node.minor
    if node.needs_lookup:
        found = nodes.get(node.source, ())
        if len(found) != 1:
            refuse("CDI_devices", node.source, "there is no such device on this node")
        if type_ not in ("", found[0].type) and not (type_ == "u" and found[0].type == "c"):
            refuse("CDI_devices", node.source, f"is of type {found[0].type}, not {type_}")
        type_, major, minor = found[0].type, found[0].major, found[0].minor
    user = spec["process"]["user"]
    entry: Spec = {"path": node.path, "type": type_}
    if type_ != "p":
        entry |= {"major": major, "minor": minor}
    if node.file_mode is not None:
        entry["fileMode"] = node.file_mode
    # Owned by the container's user, unless the file states an owner.
    for key, given, own in (("uid", node.uid, user["uid"]), ("gid", node.gid, user["gid"])):
        if given is not None or own:
            entry[key] = own if given is None else given
    linux = spec["linux"]
    others = [device for device in linux.get("devices", ()) if device["path"] != node.path]
    linux["devices"] = [*others, entry]
    if type_ != "p" and node.permissions != "none":
        linux["resources"]["devices"].append(
            {
                "allow": True,
                "type": "c" if type_ == "u" else type_,
                "major": major,
                "minor": minor,
                "access": "".join(
                    letter for letter in "rwm" if letter in (node.permissions or "rwm")
                ),
            }
        )


def _add_mount(mounts: list[Spec], mount: CdiMount) -> None:
    options = list(mount.options)
    if not mount.type and not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    mounts[:] = [known for known in mounts if known["destination"] != mount.container_path]
    mounts.append(
        {
            "destination": mount.container_path,
            "type": mount.type or "bind",
            "source": mount.host_path,
            "options": options,
        }
    )
