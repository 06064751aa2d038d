"""SELinux: the labels of a pod's and a container's processes and files, and what may be relabelled.

Rules of the file:
- A label is `user:role:type:level`. Processes get the policy's label for containers, files its label for their
  files, both with the same level: a pair of categories of the pod's own, which is what keeps pods apart.
- A container takes from its pod what it doesn't ask for itself, the level above all: their volumes are shared.
- Privileged means no process label (the policy then lets the process do everything), as does a pod with the node's
  PIDs or IPC, which could not use them otherwise. A label asked for counts in such a pod, never when privileged.
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
"""c0 to c1023, as every targeted policy has them."""
_PAIRS = CATEGORIES * (CATEGORIES - 1) // 2
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_CATEGORY = r"c\d{1,4}(?:\.c\d{1,4})?"
_SENSITIVITY = rf"s\d{{1,2}}(?::{_CATEGORY}(?:,{_CATEGORY})*)?"
_LEVEL = re.compile(rf"{_SENSITIVITY}(?:-{_SENSITIVITY})?")
_CONTEXT_LINE = re.compile(r'\s*(\w+)\s*=\s*"?([^"\s]+)"?\s*(?:#.*)?')

UNTOUCHABLE = ("/", "/usr", "/etc", "/tmp", "/home", "/run", "/var", "/root")  # noqa: S108 - names only
"""Relabelling one of these would take the node apart: other programs' files are below them."""


class Labels(msgspec.Struct, frozen=True):
    """What a pod or container carries; part of its record, so that a restart keeps the level. "": none."""

    process: str = ""
    files: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A label in its parts."""

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
    """A label from its text. Raises ConfigError."""
    parts = text.split(":", 3)
    if len(parts) < 3 or not all(_NAME.fullmatch(part) for part in parts[:3]):
        raise ConfigError(f"{source}: {quoted(text)} is no SELinux label (user:role:type:level)")
    level = parts[3] if len(parts) == 4 else ""
    if level and not _LEVEL.fullmatch(level):
        raise ConfigError(f"{source}: {quoted(level)} is no level of an SELinux label")
    return Label(parts[0], parts[1], parts[2], level)


def parse_contexts(text: str, source: str) -> Contexts:
    """The policy's `lxc_contexts` file: lines `process = "LABEL"`, `file = "LABEL"` and others. Raises ConfigError."""
    values = {m[1]: m[2] for line in text.splitlines() if (m := _CONTEXT_LINE.fullmatch(line))}
    for key in ("process", "file"):
        if key not in values:
            raise ConfigError(f"{source}: has no line for {quoted(key)}: no policy for containers?")
    return Contexts(parse_label(values["process"], source), parse_label(values["file"], source))


def check_options(options: SELinuxOption) -> None:
    """Refuse what can't be part of a label. Raises InvalidArgumentError naming the field."""
    for field, value, grammar in (
        ("user", options.user, _NAME),
        ("role", options.role, _NAME),
        ("type", options.type, _NAME),
        ("level", options.level, _LEVEL),
    ):
        if value and not grammar.fullmatch(value):
            refuse(f"selinux_options.{field}", value, "can't be part of an SELinux label")


def pod_labels(
    options: SELinuxOption, contexts: Contexts, *, free_level: str, shares_with_node: bool
) -> Labels:
    """A pod's labels; `free_level` counts unless the request names one.

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
    """The level that these labels take up; "" for none."""
    return labels.files.split(":", 3)[3] if labels.files.count(":") >= 3 else ""


def free_level(taken: Iterable[str], start: int) -> str:
    """A level with two categories that is not among `taken`; the search begins at number `start`, best a random one.

    Raises ResourceExhaustedError when all half a million are taken.
    """
    used = set(taken)
    for step in range(_PAIRS):
        level = _pair_level((start + step) % _PAIRS)
        if level not in used:
            return level
    raise ResourceExhaustedError("SELinux: every pair of categories is taken by a pod")


def _pair_level(number: int) -> str:
    """The pairs c1 < c2 in a row: c0,c1; c0,c2; ..."""
    low = 0
    while number >= CATEGORIES - 1 - low:
        number -= CATEGORIES - 1 - low
        low += 1
    return f"s0:c{low},c{low + 1 + number}"


def check_relabel(host_path: str, field: str) -> None:
    """Refuse to relabel a directory that is the node's own. By its letters only: see who relabels for links.

    Raises InvalidArgumentError.
    """
    path = "/" + "/".join(
        part for part in absolute_path(host_path, field).split("/") if part not in ("", ".")
    )
    if path in UNTOUCHABLE:
        refuse(field, host_path, "is a directory of the node, which is never relabelled")
