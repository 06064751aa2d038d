"""SELinux: the labels of a pod's and a container's processes and files, and which directories may be relabelled.

Rules:
- A label is `user:role:type:level`. Processes get the policy's label for container processes, files its label for
  container files, both with the same level: a pair of categories that belongs to the pod, which keeps pods apart.
- A container inherits from its pod what it doesn't request itself, above all the level, since they share volumes.
- A privileged container has no process label, so that the policy allows it everything. Neither has a pod with the
  node's PIDs or IPC, which it could not use otherwise, unless it requests one. A privileged container's request is
  ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import ConfigError, ResourceExhaustedError
from cri_shim.oci.spec.checks import absolute_path, refuse
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim._pb.cri.v1.api_pb2 import SELinuxOption

CATEGORIES = 1024
"""c0 to c1023, as in every targeted policy."""
PAIRS = CATEGORIES * (CATEGORIES - 1) // 2
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_CATEGORY = r"c\d{1,4}(?:\.c\d{1,4})?"
_SENSITIVITY = rf"s\d{{1,2}}(?::{_CATEGORY}(?:,{_CATEGORY})*)?"
_LEVEL = re.compile(rf"{_SENSITIVITY}(?:-{_SENSITIVITY})?")
_CONTEXT_LINE = re.compile(r'\s*(\w+)\s*=\s*"?([^"\s]+)"?\s*(?:#.*)?')

UNTOUCHABLE = ("/", "/usr", "/etc", "/tmp", "/home", "/run", "/var", "/root")  # noqa: S108 - names only
"""Directories with other programs' files below them: relabelling one would break the node."""


class Labels(msgspec.Struct, frozen=True):
    """The labels of a pod or container, "" for none. They are part of its record, so that a restart keeps the level."""

    process: str = ""
    files: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """The parts of a label."""

    user: str
    role: str
    type: str
    level: str

    def __str__(self) -> str:
        return ":".join(part for part in (self.user, self.role, self.type, self.level) if part)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The policy's labels for containers (lxc_contexts)."""

    process: Label
    files: Label


def parse_label(text: str, source: str) -> Label:
    """Parse a label. Raises ConfigError."""
    parts = text.split(":", 3)
    if len(parts) < 3 or not all(_NAME.fullmatch(part) for part in parts[:3]):
        raise ConfigError(
            f"{source}: {quoted(text)} is not an SELinux label (user:role:type:level)"
        )
    level = parts[3] if len(parts) == 4 else ""
    if level and not _LEVEL.fullmatch(level):
        raise ConfigError(f"{source}: {quoted(level)} is not an SELinux level")
    return Label(parts[0], parts[1], parts[2], level)


def parse_contexts(text: str, source: str) -> Contexts:
    """Parse the policy's `lxc_contexts` file, with lines such as `process = "LABEL"`. Raises ConfigError."""
    values = {m[1]: m[2] for line in text.splitlines() if (m := _CONTEXT_LINE.fullmatch(line))}
    for key in ("process", "file"):
        if key not in values:
            raise ConfigError(
                f"{source}: it has no line for {quoted(key)}: is a policy for containers installed?"
            )
    return Contexts(parse_label(values["process"], source), parse_label(values["file"], source))


def check_options(options: SELinuxOption) -> None:
    """Check the parts of a label. Raises InvalidArgumentError with the field."""
    for field, value, grammar in (
        ("user", options.user, _NAME),
        ("role", options.role, _NAME),
        ("type", options.type, _NAME),
        ("level", options.level, _LEVEL),
    ):
        if value and not grammar.fullmatch(value):
            refuse(f"selinux_options.{field}", value, "is not valid in an SELinux label")


def pod_labels(
    options: SELinuxOption, contexts: Contexts, *, free_level: str, shares_with_node: bool
) -> Labels:
    """A pod's labels. `free_level` is used unless the request names a level.

    Raises InvalidArgumentError for malformed options.
    """
    check_options(options)
    level = options.level or free_level
    files = replace(contexts.files, level=level)
    if shares_with_node and not _asks(options):
        return Labels(files=str(files))
    return _labels(options, replace(contexts.process, level=level), files)


def container_labels(
    options: SELinuxOption, pod: Labels, contexts: Contexts, *, privileged: bool
) -> Labels:
    """A container's labels. Raises InvalidArgumentError for malformed options."""
    check_options(options)
    if privileged:
        return Labels(files=pod.files)
    if not _asks(options):
        return pod
    files = parse_label(pod.files, "the pod's label")
    process = (
        parse_label(pod.process, "the pod's label")
        if pod.process
        else replace(contexts.process, level=files.level)
    )
    return _labels(options, process, files)


def _asks(options: SELinuxOption) -> bool:
    return bool(options.user or options.role or options.type or options.level)


def _labels(options: SELinuxOption, process: Label, files: Label) -> Labels:
    process = Label(
        options.user or process.user,
        options.role or process.role,
        options.type or process.type,
        options.level or process.level,
    )
    files = replace(files, user=options.user or files.user, level=options.level or files.level)
    return Labels(str(process), str(files))


def level_of(labels: Labels) -> str:
    """The level of these labels; "" for none."""
    return labels.files.split(":", 3)[3] if labels.files.count(":") >= 3 else ""


def free_level(taken: Iterable[str], start: int) -> str:
    """A level with two categories that is not in `taken`. The search begins at number `start`, best a random one.

    Raises ResourceExhaustedError if all half a million are taken.
    """
    used = set(taken)
    for step in range(PAIRS):
        level = _pair_level((start + step) % PAIRS)
        if level not in used:
            return level
    raise ResourceExhaustedError("SELinux: pods use every pair of categories; remove some pods")


def _pair_level(number: int) -> str:
    """The pair with this number in the order c0,c1; c0,c2; ...; c1,c2; ..."""
    low = 0
    while number >= CATEGORIES - 1 - low:
        number -= CATEGORIES - 1 - low
        low += 1
    return f"s0:c{low},c{low + 1 + number}"


def check_relabel(host_path: str, field: str) -> None:
    """Refuse to relabel a directory of the node's. This compares the text only; `host/selinux.relabel` checks links.

    Raises InvalidArgumentError.
    """
    path = "/" + "/".join(
        part for part in absolute_path(host_path, field).split("/") if part not in ("", ".")
    )
    if path in UNTOUCHABLE:
        refuse(field, host_path, "is a system directory, which is never relabelled")
