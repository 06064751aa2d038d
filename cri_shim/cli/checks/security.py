"""Checks the confinement of containers, and the privileges of this process."""

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
"""Each container takes a few descriptors in the daemon. The systemd unit sets a higher limit."""

NEEDED_CAPABILITIES = {
    "CHOWN": "image layers cannot be unpacked",
    "DAC_OVERRIDE": "files of containers cannot be accessed",
    "FOWNER": "image layers cannot be unpacked",
    "KILL": "containers cannot be stopped",
    "MKNOD": "containers get no devices",
    "NET_ADMIN": "pods get no network",
    "SETGID": "containers cannot change their group",
    "SETPCAP": "capabilities of containers cannot be dropped",
    "SETUID": "containers cannot change their user",
    "SYS_ADMIN": "no mounts and no namespaces can be created",
    "SYS_CHROOT": "containers cannot enter their root file system",
}
"""No container starts unless the daemon has all of these."""

WANTED_CAPABILITIES = {
    "DAC_READ_SEARCH": "files in directories of other users may be inaccessible",
    "SYS_PTRACE": "processes of other users cannot be inspected: statistics and exec suffer",
    "SYS_RESOURCE": "oom_score_adj cannot be lowered (guaranteed pods lose their protection), and limits "
    "cannot exceed this process's own",
    "SETFCAP": "file capabilities in image layers are lost",
    "AUDIT_WRITE": "containers that request it cannot write to the audit log",
}


def seccomp(node: Node) -> Row:
    """Whether the kernel has seccomp filters, for RuntimeDefault and Localhost profiles."""
    actions = node.read("/proc/sys/kernel/seccomp/actions_avail")
    if actions is None:
        return warning(
            "seccomp",
            "no filters in this kernel: pods with a seccomp profile are refused",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    return ok("seccomp", f"actions {actions}")


def apparmor(node: Node, profile: str = DEFAULT_PROFILE) -> Row:
    """With AppArmor, whether the default profile is loaded or can be loaded."""
    name = "apparmor"
    loaded = loaded_profiles(node.root)
    if loaded is None and enabled(node.root):
        return warning(
            name,
            "enabled, but its list of profiles cannot be read: no profile is applied",
            "mount -t securityfs securityfs /sys/kernel/security",
        )
    if loaded is None:
        return ok(name, "not enabled in this kernel, no profile is applied")
    if profile == UNCONFINED:
        return ok(name, "enabled, but security.apparmor_profile is unconfined")
    if profile in loaded:
        return ok(name, f"enabled, {profile} is loaded")
    if profile != DEFAULT_PROFILE:
        return failed(
            name,
            f"enabled, but the profile {profile} of security.apparmor_profile is not loaded: the daemon will not start",
            f"load it with {PARSER}",
        )
    if parser() is None:
        return warning(
            name,
            f"enabled, but {PARSER} is not found: the default profile cannot be loaded",
            node.install("apparmor", "apparmor-parser"),
        )
    return ok(name, f"enabled, the daemon will load {profile} with {parser()}")


def selinux(node: Node, switch: Switch = Switch.AUTO) -> Row:
    """With SELinux enforcing, whether the policy has labels for containers."""
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
            f"{told} without a policy for containers: the daemon will not start: {error}",
            node.install("selinux-policy-default", "container-selinux"),
        )
    return ok(name, f"{told}, containers are labelled")


def oci_hooks(directories: Sequence[Path], hook_list: Path | None) -> Row:
    """Whether each OCI hook file is valid, and each hook program writable by root only."""
    name = "oci hooks"
    try:
        hooks = HookFiles(directories, hook_list)
    except ConfigError as error:
        return failed(name, f"{error}: the daemon will not start", "correct the file")
    found = hooks.current()
    problems = [*hooks.files.problems(), *untrusted_programs(found)]
    if problems:
        return warning(name, "; ".join(problems), "correct or remove these files")
    return ok(name, f"{len(found)} found" if found else "none")


def cdi_devices(directories: Sequence[Path]) -> Row:
    """Whether each CDI device file is valid."""
    name = "cdi"
    registry = CdiRegistry(directories)
    devices = [
        device.name
        for file in registry.files.current()
        if file.value
        for device in file.value.devices
    ]
    if problems := registry.files.problems():
        return warning(name, "; ".join(problems), "correct or remove these files")
    return ok(name, f"{len(devices)} devices" if devices else "no devices")


def capabilities(node: Node, defaults: Sequence[str]) -> Row:
    """Whether this process has the capabilities that the daemon needs. As a service it may have others."""
    name = "capabilities"
    try:
        effective = int(node.status_field("CapEff"), 16)
        bounding = int(node.status_field("CapBnd"), 16)
    except ValueError:
        return failed(name, "cannot read /proc/self/status", "mount /proc")
    have = _names(effective & bounding)
    missing = [(n, cost) for n, cost in NEEDED_CAPABILITIES.items() if n not in have]
    if missing:
        told = "; ".join(f"{n}: {cost}" for n, cost in missing)
        return failed(
            name, f"missing {told}", "run this as root; in a container, make it privileged"
        )
    wanted = [f"{n}: {cost}" for n, cost in WANTED_CAPABILITIES.items() if n not in have]
    wanted += [
        f"{n}: it is in security.default_capabilities, but no container can have it"
        for n in defaults
        if n not in have and n not in WANTED_CAPABILITIES
    ]
    if wanted:
        return warning(
            name,
            f"missing {'; '.join(wanted)}",
            "start the daemon with all capabilities (in systemd: no CapabilityBoundingSet)",
        )
    return ok(name, "all required ones are present")


def _names(mask: int) -> set[str]:
    return {name for number, name in enumerate(CAPABILITIES) if mask >> number & 1}


def open_files() -> Row:
    """The limit of open files of this process. The daemon's systemd unit sets its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or hard >= MIN_NOFILE:
        return ok("open files", f"limit {soft}, can be raised to {hard}")
    return warning(
        "open files",
        f"limit {soft}, at most {hard}: enough for some hundred containers",
        f"ulimit -Hn {MIN_NOFILE} as root, or LimitNOFILE= in the daemon's unit",
    )
