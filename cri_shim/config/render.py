"""Renders the configuration as text: the effective file, the commented default file, the reference page. Pure.

Everything derives from the definitions in `model`. The rendered files decode to the configuration they came from.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import yaml
from msgspec import inspect as types

from cri_shim.config.model import Config
from cri_shim.config.schema import Key, allowed, codec_of, keys_of, range_text, some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import msgspec

WIDTH = 100


def to_tree(section: msgspec.Struct) -> dict[str, Any]:
    """A section as the plain values of a file."""
    return {
        key.name: _plain(getattr(section, key.attribute), key.kind)
        for key in keys_of(type(section))
    }


def _plain(value: Any, kind: types.Type) -> object:  # noqa: ANN401 - the type is in `kind`
    codec = codec_of(kind)
    if codec is not None:
        return codec.render(value)
    match kind:
        case types.UnionType():
            return "" if value is None else _plain(value, some_of(kind))
        case types.StructType():
            return to_tree(value)
        case types.DictType():
            return {str(name): _plain(entry, kind.value_type) for name, entry in value.items()}
        case types.VarTupleType():
            return [_plain(item, kind.item_type) for item in value]
        case types.EnumType():
            return str(value)
        case _:
            return value


def effective_yaml(config: Config) -> str:
    """The configuration as one YAML file without comments."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, width=WIDTH, allow_unicode=True)


def default_yaml() -> str:
    """The default file, with a comment above each key."""
    head = [
        "# Configuration of cri-shim. Every key is optional; the values below are the defaults.",
        "# An unknown key or an invalid value stops the start: `cri-shim config check` lists all of them.",
        "# Durations are 500ms, 30s, 1m30s, 4h; sizes 64KiB, 16MiB; permissions octal.",
        "# [reload]: SIGHUP applies the key; the others need a restart, which leaves containers running.",
    ]
    return "\n".join(head + list(_default_lines(Config(), ""))) + "\n"


def _default_lines(section: msgspec.Struct, indent: str) -> Iterator[str]:
    for key in keys_of(type(section)):
        value = getattr(section, key.attribute)
        if not indent:
            yield ""
        yield from _comment(_meaning(key), indent)
        if key.section is not None:
            yield f"{indent}{key.name}:"
            yield from _default_lines(value, indent + "  ")
        elif key.entry_section is not None:
            yield from _entry_lines(key, key.entry_section, value, indent)
        else:
            yield f"{indent}{key.name}: {_flow(_plain(value, key.kind))}"


def _entry_lines(
    key: Key, cls: type[msgspec.Struct], value: Mapping[str, msgspec.Struct], indent: str
) -> Iterator[str]:
    """A mapping of sections: the keys of an entry once, as comments, then the entries' keys that differ from those."""
    for inner in keys_of(cls):
        default = "required" if inner.required else _flow(_plain(inner.default, inner.kind))
        yield from _comment(f"  {inner.name} ({default}): {inner.description}", indent)
    if not value:
        yield f"{indent}{key.name}: {{}}"
        return
    yield f"{indent}{key.name}:"
    for name, entry in value.items():
        told = {
            inner.name: _plain(getattr(entry, inner.attribute), inner.kind)
            for inner in keys_of(cls)
            if inner.required or getattr(entry, inner.attribute) != inner.default
        }
        yield f"{indent}  {name}:"
        for inner_name, inner_value in told.items():
            yield f"{indent}    {inner_name}: {_flow(inner_value)}"


def _meaning(key: Key) -> str:
    """The comment above a key: its description, and the allowed values unless the default shows them."""
    may = ""
    if isinstance(key.kind, types.EnumType | types.IntType):
        may = f" ({allowed(key.kind, key.bounds)})"
    elif bounds := range_text(key.bounds, codec_of(key.kind)):
        may = f" ({bounds})"
    return f"{key.description}{may}{' [reload]' if key.reload else ''}"


def _comment(text: str, indent: str) -> Iterator[str]:
    hang = "    " if text.startswith(" ") else ""
    for number, line in enumerate(textwrap.wrap(text, WIDTH - len(indent) - 6)):
        yield f"{indent}# {hang if number else ''}{'  ' if hang and not number else ''}{line.strip()}"


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    # PyYAML uses single quotes. Use double quotes throughout, as the examples do.
    return json.dumps(value, ensure_ascii=False) if text.startswith("'") else text


def reference_markdown() -> str:
    """The page `docs/configuration.md`."""
    intro = """\
# Configuration

<!-- Generated from cri_shim/config/model.py by `python -m cri_shim.config`; a test keeps it fresh. -->

Every key is optional, and no file has to exist. The daemon reads in this order:

1. `/etc/cri-shim/config.yaml`, or `--config FILE`;
2. the drop-ins `config.d/*.yaml` beside it, in the order of their names;
3. `--set key=value`.

A later source overrides an earlier one: mappings are merged key by key, lists and values are replaced, and `NAME: null`
removes an entry from a mapping by name (for example a built-in handler).

| command | prints |
| --- | --- |
| `cri-shim config default` | the default file with comments |
| `cri-shim config show` | the effective configuration |
| `cri-shim config check FILE` | every mistake in a file |

A mistake stops the start:

    /etc/cri-shim/config.yaml: streaming.port: is too large (99999), allowed: a whole number from 0 to 65535

Values:

- Durations are `500ms`, `30s`, `1m30s`, `4h`; sizes `64KiB`, `16MiB`; permissions octal, `"0660"`.
- Only `true` and `false` are booleans (YAML 1.2), so `off` is a word, with or without quotes.
- `""` means "none". A mapping may have each key only once. Anchors, aliases and tags are not supported.

**Reload.** On SIGHUP the daemon reads the files again. Keys marked *yes* below take effect at once. The log reports a
changed key that is marked *restart*; it takes effect when the daemon restarts, which leaves containers running. If the
new configuration has a mistake, the old one stays in effect. CNI network files and `hosts.toml` files need no reload.
"""
    return intro + "\n".join(_sections(Config, "")) + "\n"


def _sections(cls: type[msgspec.Struct], path: str) -> Iterator[str]:
    keys = keys_of(cls)
    plain = [key for key in keys if key.section is None]
    yield ""
    yield f"## {path or 'Top level'}"
    if path:
        yield ""
        yield _description_of(cls, path)
    yield ""
    yield "| key | default | meaning | allowed | SIGHUP |"
    yield "| --- | --- | --- | --- | --- |"
    for key in plain:
        cells = (
            f"`{path}.{key.name}`" if path else f"`{key.name}`",
            _default_cell(key),
            key.description,
            allowed(key.kind, key.bounds),
            "yes" if key.reload else "restart",
        )
        yield "| " + " | ".join(_escape(cell) for cell in cells) + " |"
    for key in keys:
        inner = key.section or key.entry_section
        if inner is not None:
            name = key.name if key.section else f"{key.name}.NAME"
            yield from _sections(inner, f"{path}.{name}" if path else name)


def _description_of(cls: type[msgspec.Struct], path: str) -> str:
    """The description of the section's key, or else of the section's class."""
    described = {key.name: key.description for key in keys_of(Config)}
    return described.get(path) or " ".join((cls.__doc__ or "").split())


def _default_cell(key: Key) -> str:
    if key.required:
        return "required"
    if key.entry_section is not None and key.default:
        return ", ".join(f"`{name}`" for name in key.default)
    return f"`{_flow(_plain(key.default, key.kind))}`"


def _escape(text: str) -> str:
    return (
        text.replace("|", "\\|").replace("*", "\\*")
        if "`" not in text
        else text.replace("|", "\\|")
    )
