"""What confines containers, and what this process may do."""

from __future__ import annotations

import resource
import shutil
from typing import TYPE_CHECKING

from cri_shim.cli.checks.row import Node, Row, failed, ok, warning
from cri_shim.config.values import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def apparmor(node: Node) -> Row:
    """AppArmor: where the kernel has it, profiles must be loadable."""
    enabled = node.read("/sys/module/apparmor/parameters/enabled")
    if enabled != "Y":
        return ok("apparmor", "not enabled in this kernel, no profile is applied")
    parser = shutil.which("apparmor_parser")
    if parser is None:
        return warning(
            "apparmor",
            "enabled, but apparmor_parser is not found: the default profile can't be loaded",
            node.install("apparmor", "apparmor-parser"),
        )
    return ok("apparmor", f"enabled, {parser}")


def selinux(node: Node) -> Row:
    """SELinux: where it enforces, containers need the labels of a container policy."""
    enforce = node.read("/sys/fs/selinux/enforce")
    if enforce is None:
        return ok("selinux", "not enabled, no label is applied")
    mode = "enforcing" if enforce == "1" else "permissive"
    if enforce == "1" and not node.exists("/etc/selinux/targeted/contexts/lxc_contexts"):
        return warning(
            "selinux",
            "enforcing without a container policy: containers run with the daemon's label",
            "dnf install container-selinux",
        )
    return ok("selinux", mode)


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
