"""Seccomp profiles: parse a file, and resolve a profile for one container.

Rules: a profile, from a file or from our table, has rules that may depend on capabilities, architecture and kernel.
Resolving drops the rules that don't apply, and leaves what the runtime-spec has. Files are in the runtime-spec's form
or in Docker's (archMap, includes, excludes). Profiles compare by identity, so resolving the same one again for the same
container is a cache hit. The result is shared and must not be modified.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from cri_shim.errors import InvalidArgumentError
from cri_shim.oci.spec.checks import refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from cri_shim.oci.spec.inputs import Spec

_GO_ARCH = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
"""The names of architectures in Docker's files, which are Go's."""

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "i386": ("SCMP_ARCH_X86",),
    "i686": ("SCMP_ARCH_X86",),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "armv6l": ("SCMP_ARCH_ARM",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}
"""The architectures that a machine executes: its own, then its 32-bit form. x32 is left out: no distribution's kernel
runs it by default, and its part of the filter would cost some milliseconds to compile at each creation."""


_Action = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
]
_Comparison = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]
_Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_MAX_VALUE = 2**64 - 1


class Argument(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A comparison of one system call argument."""

    index: Annotated[int, msgspec.Meta(ge=0, le=5)]
    value: int
    op: _Comparison
    value_two: int = 0


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """The condition of a rule. Every part that is set must hold."""

    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str = ""

    def names_any(self, *, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
        """Whether any part that is set holds. For `excludes`, where one is enough."""
        return (
            any(cap in caps for cap in self.caps)
            or arch in self.arches
            or (self.min_kernel != "" and kernel >= parse_kernel(self.min_kernel))
        )

    def holds(self, *, caps: frozenset[str], arch: str, kernel: tuple[int, int]) -> bool:
        """Whether every part that is set holds. For `includes`."""
        return (
            all(cap in caps for cap in self.caps)
            and (not self.arches or arch in self.arches)
            and (self.min_kernel == "" or kernel >= parse_kernel(self.min_kernel))
        )


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    """The action for some system calls."""

    action: _Action
    names: tuple[str, ...] = ()
    name: str = ""
    errno_ret: _Errno | None = None
    args: tuple[Argument, ...] | None = None
    includes: Condition | None = None
    excludes: Condition | None = None


class ArchitectureMap(msgspec.Struct, frozen=True, rename="camel"):
    """An architecture, and the others that it can execute."""

    architecture: str
    sub_architectures: tuple[str, ...] | None = None


class Profile(msgspec.Struct, frozen=True, eq=False, rename="camel"):
    """A complete profile."""

    default_action: _Action
    default_errno_ret: _Errno | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[ArchitectureMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[Rule, ...] | None = None


def parse_profile(document: bytes, *, name: str) -> Profile:
    """Parse a profile; `name` is its name in messages.

    Raises InvalidArgumentError for an invalid profile.
    """
    try:
        profile = msgspec.json.decode(document, type=Profile)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"seccomp profile {name}: {error}") from error
    if profile.architectures and profile.arch_map:
        raise InvalidArgumentError(
            f"seccomp profile {name}: only one of architectures and archMap may be set"
        )
    architectures = (
        *(profile.architectures or ()),
        *(entry.architecture for entry in profile.arch_map or ()),
    )
    for architecture in architectures:
        if not architecture.startswith("SCMP_ARCH_"):
            raise InvalidArgumentError(
                f"seccomp profile {name}: {quoted(architecture)} is not an architecture (SCMP_ARCH_...)"
            )
    for rule in profile.syscalls or ():
        for argument in rule.args or ():
            if not (0 <= argument.value <= _MAX_VALUE and 0 <= argument.value_two <= _MAX_VALUE):
                raise InvalidArgumentError(
                    f"seccomp profile {name}: an argument's value is not an unsigned 64-bit number"
                )
        if bool(rule.name) == bool(rule.names):
            raise InvalidArgumentError(
                f"seccomp profile {name}: a rule ({rule.action}) needs either names or name"
            )
        for condition in (rule.includes, rule.excludes):
            if condition is not None and condition.min_kernel:
                parse_kernel(condition.min_kernel, f"seccomp profile {name}: minKernel")
    return profile


def parse_kernel(version: str, name: str = "seccomp minKernel") -> tuple[int, int]:
    """Parse `4.8` into two numbers; `name` is the field in messages. Raises InvalidArgumentError."""
    major, _, minor = version.partition(".")
    if not (major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        refuse(name, version, "must have the form 4.8")
    return int(major), int(minor)


@lru_cache(maxsize=256)
def resolve_profile(
    profile: Profile, *, arch: str, kernel: tuple[int, int], capabilities: tuple[str, ...]
) -> Spec:
    """The spec's `linux.seccomp` for a container with these capabilities (without `CAP_`).

    The document is shared between callers: never modify it.
    """
    facts: dict[str, Any] = {
        "caps": frozenset(f"CAP_{capability}" for capability in capabilities),
        "arch": _GO_ARCH.get(arch, arch),
        "kernel": kernel,
    }
    seccomp: Spec = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        seccomp["defaultErrnoRet"] = profile.default_errno_ret
    if architectures := _architectures(profile, arch):
        seccomp["architectures"] = architectures
    if profile.flags is not None:
        seccomp["flags"] = list(profile.flags)
    if profile.listener_path:
        seccomp["listenerPath"] = profile.listener_path
        seccomp["listenerMetadata"] = profile.listener_metadata
    seccomp["syscalls"] = [
        _rule(rule)
        for rule in profile.syscalls or ()
        if (rule.includes is None or rule.includes.holds(**facts))
        and not (rule.excludes is not None and rule.excludes.names_any(**facts))
    ]
    return seccomp


def _architectures(profile: Profile, arch: str) -> list[str]:
    if not profile.arch_map:
        return list(profile.architectures or ())
    native = ARCHITECTURES.get(arch, ("",))[0]
    for entry in profile.arch_map:
        if entry.architecture == native:
            return [native, *(entry.sub_architectures or ())]
    return []


def _rule(rule: Rule) -> Spec:
    result: Spec = {"names": list(rule.names) or [rule.name], "action": rule.action}
    if rule.errno_ret is not None:
        result["errnoRet"] = rule.errno_ret
    if rule.args:
        result["args"] = [msgspec.to_builtins(argument) for argument in rule.args]
    return result
