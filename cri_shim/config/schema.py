"""The keys of a configuration section, from its annotations: a typed view of `msgspec.inspect`.

It deals with types, annotations and defaults only. Reader, writer, documentation and reload plan all use `keys_of`, so
they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect as types

from cri_shim.config.values import CODECS, Codec

if TYPE_CHECKING:
    from enum import StrEnum


NOT_IN_EFFECT = "Not in effect in this version."


@dataclass(frozen=True, slots=True)
class Bounds:
    """Inclusive bounds of a number, and of the number of items of a list or mapping."""

    minimum: float | None = None
    maximum: float | None = None
    min_items: int | None = None
    max_items: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section."""

    name: str
    """The name in the file."""
    attribute: str
    """The name of the Python attribute."""
    kind: types.Type
    """The type without its annotation."""
    description: str
    reload: bool
    """Whether SIGHUP applies a change."""
    in_effect: bool
    """Whether this version uses the key."""
    bounds: Bounds
    required: bool
    default: Any
    """The default value; `msgspec.NODEFAULT` for a required key."""

    @property
    def section(self) -> type[msgspec.Struct] | None:
        """The class of the section, if this key is a section."""
        return self.kind.cls if isinstance(self.kind, types.StructType) else None

    @property
    def entry_section(self) -> type[msgspec.Struct] | None:
        """The class of the entries, if this key is a mapping of sections."""
        if isinstance(self.kind, types.DictType) and isinstance(
            self.kind.value_type, types.StructType
        ):
            return self.kind.value_type.cls
        return None


@lru_cache
def keys_of(section: type[msgspec.Struct]) -> tuple[Key, ...]:
    """The keys of a section in the order of their definition."""
    described = types.type_info(section)
    if not isinstance(described, types.StructType):
        raise TypeError(section)
    return tuple(_key(field) for field in described.fields)


def _key(field: types.Field) -> Key:
    kind, description, extra = field.type, "", {}
    if isinstance(kind, types.Metadata):
        description = str((kind.extra_json_schema or {}).get("description", ""))
        extra = kind.extra or {}
        kind = kind.type
    if isinstance(kind, types.StructType) and not description:
        description = " ".join((kind.cls.__doc__ or "").split())
    in_effect = extra.get("in_effect", True)
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Key(
        name=field.encode_name,
        attribute=field.name,
        kind=kind,
        description=description if in_effect else f"{description} {NOT_IN_EFFECT}",
        in_effect=in_effect,
        reload=extra.get("reload", False),
        bounds=Bounds(*(extra.get(name) for name in Bounds.__slots__)),
        required=field.required,
        default=default,
    )


def codec_of(kind: types.Type) -> Codec | None:
    """The codec of a type with its own grammar; None for plain types."""
    return CODECS[kind.cls] if isinstance(kind, types.CustomType) else None


def some_of(kind: types.UnionType) -> types.Type:
    """The type X of `X | None`. The file has X or ""."""
    return next(part for part in kind.types if not isinstance(part, types.NoneType))


def choices_of(kind: types.EnumType) -> list[str]:
    """The values of an enumeration."""
    words: list[StrEnum] = list(kind.cls)
    return [str(word) for word in words]


def allowed(kind: types.Type, bounds: Bounds) -> str:
    """The allowed values of a type, for error messages and the documentation."""
    match kind:
        case types.UnionType():
            return f'{allowed(some_of(kind), bounds)}, or ""'
        case types.CustomType():
            codec = CODECS[kind.cls]
            limits = range_text(bounds, codec)
            return f"{codec.allowed}, {limits}" if limits else codec.allowed
        case types.EnumType():
            *most, last = choices_of(kind)
            return f"{', '.join(most)} or {last}"
        case types.BoolType():
            return "true or false"
        case types.IntType():
            return f"a whole number {range_text(bounds, None)}".rstrip()
        case types.StrType():
            return "text on one line (quote what looks like a number)"
        case types.VarTupleType():
            return f"a list{_count(bounds)} of: {allowed(kind.item_type, Bounds())}"
        case types.DictType():
            return f"a mapping whose keys are {allowed(kind.key_type, Bounds())}"
        case types.StructType():
            return "a mapping with the keys " + ", ".join(key.name for key in keys_of(kind.cls))
        case _:
            raise AssertionError(f"no configuration key has the type {kind}")


def range_text(bounds: Bounds, codec: Codec | None) -> str:
    """The bounds of a number as text: "from 1 to 5", "at least 1s"; "" without bounds."""

    def show(number: float) -> object:
        return codec.render(number) if codec else number

    if bounds.minimum is not None and bounds.maximum is not None:
        return f"from {show(bounds.minimum)} to {show(bounds.maximum)}"
    if bounds.minimum is not None:
        return f"at least {show(bounds.minimum)}"
    if bounds.maximum is not None:
        return f"at most {show(bounds.maximum)}"
    return ""


def _count(bounds: Bounds) -> str:
    if bounds.min_items is not None and bounds.max_items is not None:
        return f" of {bounds.min_items} to {bounds.max_items} items, each"
    return " of at least one item, each" if bounds.min_items else ""
