"""OCI hooks: files that say which containers get which hook (oci-hooks(5), format 1.0.0), and the node's own list.

Rules:
- A hook applies to a container if every condition of its file holds. Of `commands`, and of the annotations for one
  pattern, one match is enough. `always: false` and `hasBindMounts: false` never hold, as in other implementations.
- Patterns may match anywhere in the text. The format's syntax is Go's; forms with another meaning in Python are
  refused.
- An unknown condition must not be ignored, so unknown keys are refused.
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
"""The stage whose hooks are programs in the container. All others are programs of the node."""
VERSION = "1.0.0"
_GO_ONLY = re.compile(r"\[\[:|\\[zQEpPC]|\(\?[a-z]*U")
"""Forms of Go's syntax that have another meaning, or none, in Python."""
MAX_MATCHED_CHARS = 1024
"""The limit for a text by a pod's author. An operator's pattern may take quadratic time or worse, and blocks everything
else meanwhile. To skip the hook for a long text would be a way around it, so the container is refused."""
_T = TypeVar("_T")


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A program of the node, in the runtime-spec's form."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Seconds until the runtime kills it."""


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
    """A hook with its stages and conditions."""

    hook: Hook
    stages: tuple[str, ...]
    always: bool | None = None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()
    has_bind_mounts: bool | None = None

    def is_for(
        self, *, annotations: Mapping[str, str], command: str, has_bind_mounts: bool
    ) -> bool:
        """Whether every condition holds. Raises InvalidArgumentError for a text that is too long to match."""
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
    """Parse a file of a hooks directory. Raises ConfigError for one that can't be used."""
    version = _decode(document, _Version, source).version
    if version != VERSION:
        raise ConfigError(f"{source}: version {quoted(version)}: must be {VERSION}")
    file = _decode(document, _HookFile, source)
    check_hook(file.hook, f"{source}: hook")
    when = file.when
    if when == _When():
        raise ConfigError(f"{source}: when: has no condition, so the hook would never run")
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
    """Parse the node's list for every container: prestart, poststart and poststop in the runtime-spec's form.

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
    """Add the hooks that apply to this container to its spec, in their order."""
    command: str = spec["process"]["args"][0]
    for candidate in hooks:
        if candidate.is_for(
            annotations=annotations, command=command, has_bind_mounts=has_bind_mounts
        ):
            for stage in candidate.stages:
                add_hook(spec, stage, candidate.hook)


def add_hook(spec: Spec, stage: str, hook: Hook) -> None:
    """Add a hook after those that the stage has."""
    spec.setdefault("hooks", {}).setdefault(stage, []).append(plain(hook))


def plain(part: msgspec.Struct) -> Spec:
    """Convert a part of the spec to plain dictionaries and lists."""
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
    """Check that a runtime can run the hook. Raises ConfigError."""
    if not hook.path.startswith("/") or "\0" in hook.path:
        raise ConfigError(f"{source}: path {quoted(hook.path)}: must be absolute")
    for entry in hook.env:
        if not entry.partition("=")[0] or "=" not in entry or "\0" in entry:
            raise ConfigError(f"{source}: env {quoted(entry)}: must be NAME=VALUE")
    if any("\0" in arg for arg in hook.args):
        raise ConfigError(f"{source}: args: contain a NUL byte")


def _finds(pattern: re.Pattern[str], text: str, what: str) -> bool:
    """Whether an operator's pattern matches somewhere in a pod's text."""
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
        raise ConfigError(f"{source}: pattern {quoted(text)}: uses a form that is not supported")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{source}: pattern {quoted(text)}: {error}") from error
