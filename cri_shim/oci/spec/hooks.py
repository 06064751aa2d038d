"""OCI hooks: files that say which containers get which hook (oci-hooks(5), format 1.0.0), and the node's own list.

Rules of the file:
- A hook is for a container if every condition of its file holds; of `commands`, and of the annotations for one pattern,
  one that fits is enough. `always: false` and `hasBindMounts: false` never hold, as everywhere that knows the format.
- Patterns are searched for, not matched whole. They are Go's in the format; those of its forms that mean something else
  here are refused rather than misread.
- A condition that isn't known must not be passed over: unknown keys are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args

import msgspec

from cri_shim.errors import ConfigError, InvalidArgumentError
from cri_shim.quoting import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.oci.spec.inputs import Spec

Stage = Literal[
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"
]
STAGES: tuple[str, ...] = get_args(Stage)
IN_CONTAINER = "startContainer"
"""The stage whose hooks are programs of the container, not of the node."""
VERSION = "1.0.0"
_GO_ONLY = re.compile(r"\[\[:|\\[zQEpPC]|\(\?[a-z]*U")
"""Forms that mean something else here, or nothing."""
MAX_MATCHED_CHARS = 1024
"""Of a text that a pod's author wrote. A pattern of the operator's can take time that grows with the square of the text
or worse, and nothing else runs meanwhile. Not to run a hook for a long text would be a way around it."""
_T = TypeVar("_T")


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A program of the node, as the runtime-spec has it."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Seconds, after which the runtime kills it."""


class _When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    always: bool | None = None
    annotations: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    has_bind_mounts: bool | None = None


class _Version(msgspec.Struct, frozen=True):
    version: str


class _HookFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: str
    hook: Hook
    when: _When
    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1)]


class _HookList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prestart: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True)
class ConditionalHook:
    """A hook, its stages, and whom it is for."""

    hook: Hook
    stages: tuple[str, ...]
    always: bool | None = None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()
    has_bind_mounts: bool | None = None

    def is_for(
        self, *, annotations: Mapping[str, str], command: str, has_bind_mounts: bool
    ) -> bool:
        """Whether every condition holds. Raises InvalidArgumentError for a text too long to be looked through."""
        if self.always is False or self.has_bind_mounts is False:
            return False
        if self.has_bind_mounts and not has_bind_mounts:
            return False
        if self.commands and not any(
            _finds(pattern, command, "the first word of the command") for pattern in self.commands
        ):
            return False
        return all(
            any(
                _finds(key, name, "the name of an annotation")
                and _finds(value, text, f"annotations[{quoted(name)}]")
                for name, text in annotations.items()
            )
            for key, value in self.annotations
        )


def parse_hook_file(document: bytes, source: str) -> ConditionalHook:
    """One file of a hooks directory. Raises ConfigError for what can't be used."""
    version = _decode(document, _Version, source).version
    if version != VERSION:
        raise ConfigError(f"{source}: version {quoted(version)}: must be {VERSION}")
    file = _decode(document, _HookFile, source)
    check_hook(file.hook, f"{source}: hook")
    when = file.when
    if when == _When():
        raise ConfigError(f"{source}: when: no condition: the hook would never run")
    return ConditionalHook(
        hook=file.hook,
        stages=tuple(dict.fromkeys(file.stages)),
        always=when.always,
        annotations=tuple(
            (
                _pattern(key, f"{source}: when.annotations"),
                _pattern(value, f"{source}: when.annotations"),
            )
            for key, value in when.annotations.items()
        ),
        commands=tuple(_pattern(text, f"{source}: when.commands") for text in when.commands),
        has_bind_mounts=when.has_bind_mounts,
    )


def parse_hook_list(document: bytes, source: str) -> tuple[ConditionalHook, ...]:
    """The node's own list for every container: prestart, poststart and poststop as the runtime-spec has them.

    Raises ConfigError.
    """
    lists = _decode(document, _HookList, source)
    found = []
    for stage in ("prestart", "poststart", "poststop"):
        for hook in getattr(lists, stage):
            check_hook(hook, f"{source}: {stage}")
            found.append(ConditionalHook(hook, (stage,), always=True))
    return tuple(found)


def add_matching_hooks(
    spec: Spec,
    hooks: Sequence[ConditionalHook],
    *,
    annotations: Mapping[str, str],
    has_bind_mounts: bool,
) -> None:
    """Put those hooks that are for this container into its spec, in their order."""
    command: str = spec["process"]["args"][0]
    for candidate in hooks:
        if candidate.is_for(
            annotations=annotations, command=command, has_bind_mounts=has_bind_mounts
        ):
            for stage in candidate.stages:
                add_hook(spec, stage, candidate.hook)


def add_hook(spec: Spec, stage: str, hook: Hook) -> None:
    """Put a hook behind those that the stage has already."""
    spec.setdefault("hooks", {}).setdefault(stage, []).append(plain(hook))


def plain(part: msgspec.Struct) -> Spec:
    """A part of the spec as the mappings and lists that the rest of it is made of."""
    entry: Spec = msgspec.json.decode(msgspec.json.encode(part))
    return entry


def node_programs(spec: Spec) -> list[str]:
    """The programs of the node that the spec's hooks run."""
    return [
        hook["path"]
        for stage, hooks in spec.get("hooks", {}).items()
        if stage != IN_CONTAINER
        for hook in hooks
    ]


def check_hook(hook: Hook, source: str) -> None:
    """Refuse a hook that no runtime could run. Raises ConfigError."""
    if not hook.path.startswith("/") or "\0" in hook.path:
        raise ConfigError(f"{source}: path {quoted(hook.path)}: must be absolute")
    for entry in hook.env:
        if not entry.partition("=")[0] or "=" not in entry or "\0" in entry:
            raise ConfigError(f"{source}: env {quoted(entry)}: must be NAME=VALUE")
    if any("\0" in arg for arg in hook.args):
        raise ConfigError(f"{source}: args: contain a NUL byte")


def _finds(pattern: re.Pattern[str], text: str, what: str) -> bool:
    """Whether an operator's pattern finds something in a pod's text."""
    if len(text) > MAX_MATCHED_CHARS:
        raise InvalidArgumentError(
            f"{what}: {len(text)} characters: at most {MAX_MATCHED_CHARS} are compared with the pattern of an OCI hook"
        )
    return pattern.search(text) is not None


def _decode(document: bytes, kind: type[_T], source: str) -> _T:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source}: {error}") from error


def _pattern(text: str, source: str) -> re.Pattern[str]:
    if _GO_ONLY.search(text):
        raise ConfigError(f"{source}: pattern {quoted(text)}: this form is not supported")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{source}: pattern {quoted(text)}: {error}") from error
