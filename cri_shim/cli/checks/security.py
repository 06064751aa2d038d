"""What confines containers, and what this process may do."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, ok, warning
from cri_shim.config.model import Switch
from cri_shim.config.values import CAPABILITIES
from cri_shim.errors import ConfigError
from cri_shim.host.apparmor import PARSER, enabled, loaded_profiles, parser
from cri_shim.host.selinux import container_contexts, enforcing
from cri_shim.oci.cdi_registry import CdiRegistry
from cri_shim.oci.hook_files import HookFiles, untrusted_programs
from cri_shim.oci.spec.apparmor import DEFAULT_PROFILE, UNCONFINED
from cri_shim.oci.spec.selinux import parse_contexts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIN_NOFILE = 16_384
"""Each container costs the daemon a handful of descriptors; systemd's unit asks for more."""

NEEDED_CAPABILITIES = {
    "CHOWN": "image layers can't be unpacked",
    "DAC_OVERRIDE": "files of containers can't be reached",
    "FOWNER": "image layers can't be unpacked",
    "KILL": "containers can't be stopped",
    "MKNOD": "containers get no devices",
    "NET_ADMIN": "pods get no network",
    "SETGID": "containers can't change their group",
    "SETPCAP": "capabilities of containers can't be dropped",
    "SETUID": "containers can't change their user",
    "SYS_ADMIN": "nothing can be mounted and no namespace made",
    "SYS_CHROOT": "containers can't enter their root file system",
}
"""Without one of these no container starts."""

WANTED_CAPABILITIES = {
    "DAC_READ_SEARCH": "files of other users' directories may be out of reach",
    "SYS_PTRACE": "processes of other users can't be looked at: statistics and exec suffer",
    "SYS_RESOURCE": "oom_score_adj can't be lowered (guaranteed pods lose their protection) and limits "
    "can't be raised above this process's own",
    "SETFCAP": "file capabilities in image layers are lost",
    "AUDIT_WRITE": "processes of containers with it can't write to the audit log",
}


def seccomp(node: Node) -> Row:
    """Filters by system call: RuntimeDefault and Localhost profiles."""
    actions = node.read("/proc/sys/kernel/seccomp/actions_avail")
    if actions is None:
        return warning(
            "seccomp",
            "this kernel has no filters: pods with a seccomp profile are refused",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    return ok("seccomp", f"actions {actions}")


def apparmor(node: Node, profile: str = DEFAULT_PROFILE) -> Row:
    """AppArmor: where the kernel has it, the default profile must be there or loadable."""
    name = "apparmor"
    loaded = loaded_profiles(node.root)
    if loaded is None and enabled(node.root):
        return warning(
            name,
            "enabled, but its list of profiles can't be read: no profile is applied",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
    if loaded is None:
        return ok(name, "not enabled in this kernel, no profile is applied")
    if profile == UNCONFINED:
        return ok(name, "enabled, security.apparmor_profile says unconfined")
    if profile in loaded:
        return ok(name, f"enabled, {profile} is loaded")
    if profile != DEFAULT_PROFILE:
        return failed(
            name,
            f"enabled, but the profile {profile} of security.apparmor_profile is not loaded: the daemon won't start",
            f"load it with {PARSER}",
        )
    if parser() is None:
        return warning(
            name,
            f"enabled, but {PARSER} is not found: the default profile can't be loaded",
            node.install("apparmor", "apparmor-parser"),
        )
    return ok(name, f"enabled, the daemon will load {profile} with {parser()}")


def selinux(node: Node, switch: Switch = Switch.AUTO) -> Row:
    """SELinux: where it enforces, containers need the labels of a container policy."""
    name = "selinux"
    mode = enforcing(node.root)
    if mode is None:
        detail = "not enabled, no label is applied"
        if switch is Switch.ON:
            return failed(
                name, f"security.selinux is on, but SELinux is {detail}", "set it to auto"
            )
        return ok(name, detail)
    told = "enforcing" if mode else "permissive"
    if switch is Switch.OFF or (switch is Switch.AUTO and not mode):
        return ok(name, f"{told}, no label is applied")
    try:
        parse_contexts(*container_contexts(node.root))
    except ConfigError as error:
        return failed(
            name,
            f"{told} without a policy for containers, the daemon won't start: {error}",
            node.install("selinux-policy-default", "container-selinux"),
        )
    return ok(name, f"{told}, containers are labelled")


def oci_hooks(directories: Sequence[Path], hook_list: Path | None) -> Row:
    """The node's OCI hooks: each file must be usable, each program root's own."""
    name = "oci hooks"
    try:
        hooks = HookFiles(directories, hook_list)
    except ConfigError as error:
        return failed(name, f"{error}: the daemon won't start", "correct the file")
    found = hooks.current()
    problems = [*hooks.files.problems(), *untrusted_programs(found)]
    if problems:
        return warning(name, "; ".join(problems), "correct or remove what is named")
    return ok(name, f"{len(found)} found" if found else "none")


def cdi_devices(directories: Sequence[Path]) -> Row:
    """CDI: each device file must be usable."""
    name = "cdi"
    registry = CdiRegistry(directories)
    devices = [
        device.name
        for file in registry.files.current()
        if file.value
        for device in file.value.devices
    ]
    if problems := registry.files.problems():
        return warning(name, "; ".join(problems), "correct or remove what is named")
    return ok(name, f"{len(devices)} devices" if devices else "no devices")


def capabilities(node: Node, defaults: Sequence[str]) -> Row:
    """What this process may do; a service started otherwise may have more or less than this shell."""
    name = "capabilities"
    try:
        effective = int(node.status_field("CapEff"), 16)
        bounding = int(node.status_field("CapBnd"), 16)
    except ValueError:
        return failed(name, "/proc/self/status can't be read", "mount /proc")
    have = _names(effective & bounding)
    missing = [(n, cost) for n, cost in NEEDED_CAPABILITIES.items() if n not in have]
    if missing:
        told = "; ".join(f"{n}: {cost}" for n, cost in missing)
        return failed(
            name, f"missing {told}", "run this as root, in a container as a privileged one"
        )
    wanted = [f"{n}: {cost}" for n, cost in WANTED_CAPABILITIES.items() if n not in have]
    wanted += [
        f"{n}: it is in security.default_capabilities, and no container can have it"
        for n in defaults
        if n not in have and n not in WANTED_CAPABILITIES
    ]
    if wanted:
        return warning(
            name,
            f"missing {'; '.join(wanted)}",
            "start the daemon with all capabilities (in systemd: no CapabilityBoundingSet)",
        )
    return ok(name, "all that are needed")


def _names(mask: int) -> set[str]:
    return {name for number, name in enumerate(CAPABILITIES) if mask >> number & 1}


def open_files() -> Row:
    """The limit on descriptors of this process; the daemon's unit sets its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or hard >= MIN_NOFILE:
        return ok("open files", f"limit {soft}, can be raised to {hard}")
    return warning(
        "open files",
        f"limit {soft}, at most {hard}: enough for some hundred containers",
        f"ulimit -Hn {MIN_NOFILE} as root, or LimitNOFILE= in the daemon's unit",
    )
