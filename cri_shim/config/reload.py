"""Splits the changes of a new configuration into those that SIGHUP applies and those that need a restart. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cri_shim.config.model import Config
from cri_shim.config.schema import keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.config.schema import Key


AnySection = TypeVar("AnySection", bound=Struct)


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The difference between two configurations."""

    config: Config
    """The configuration in effect after the reload: the old one with the reloadable changes."""
    applied: tuple[str, ...]
    """Keys whose change applies now."""
    needs_restart: tuple[str, ...]
    """Keys whose change needs a restart."""


def reloadable_changes(old: Config, new: Config) -> ReloadPlan:
    """The changes from `old` to `new`, split by whether a running daemon can apply them."""
    changes = list(_changes(old, new, ""))
    return ReloadPlan(
        config=_apply(old, new),
        applied=tuple(path for path, key in changes if key.reload),
        needs_restart=tuple(path for path, key in changes if not key.reload),
    )


def without_effect(config: Config) -> tuple[str, ...]:
    """The keys that differ from their default and that this version ignores. They are worth a warning."""
    return tuple(_unheeded(Config(), config, "", in_effect=True))


def _unheeded(default: Struct, config: Struct, prefix: str, *, in_effect: bool) -> Iterator[str]:
    for key in keys_of(type(default)):
        before, after = getattr(default, key.attribute), getattr(config, key.attribute)
        heeded = in_effect and key.in_effect
        if key.section is not None:
            yield from _unheeded(before, after, f"{prefix}{key.name}.", in_effect=heeded)
        elif before != after and not heeded:
            yield prefix + key.name


def _changes(old: Struct, new: Struct, prefix: str) -> Iterator[tuple[str, Key]]:
    for key in keys_of(type(old)):
        before, after = getattr(old, key.attribute), getattr(new, key.attribute)
        path = prefix + key.name
        if key.section is not None:
            yield from _changes(before, after, path + ".")
        elif key.entry_section is not None:
            names = [*before, *(name for name in after if name not in before)]
            yield from ((f"{path}.{n}", key) for n in names if before.get(n) != after.get(n))
        elif before != after:
            yield path, key


def _apply(old: AnySection, new: AnySection) -> AnySection:
    """A copy of `old` with the reloadable keys of `new`."""
    taken: dict[str, Any] = {}
    for key in keys_of(type(old)):
        before, after = getattr(old, key.attribute), getattr(new, key.attribute)
        if key.section is not None:
            taken[key.attribute] = _apply(before, after)
        elif key.reload:
            taken[key.attribute] = after
    return replace(old, **taken)
