"""Loads the configuration from files and `--set`.

Rules:
- Layers, each over the one before: built-in defaults, the file, its drop-ins (`config.d/*.yaml` beside `config.yaml`,
  by name), `--set`.
- Mappings are merged, all other values are replaced.
- All mistakes of all layers are reported at once, each with its file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import inspect as types

from cri_shim.config.decode import Place, Problem, decode, raw_type
from cri_shim.config.document import MAX_BYTES, parse_document
from cri_shim.config.model import Config
from cri_shim.config.render import to_tree
from cri_shim.config.rules import find_problems
from cri_shim.config.values import describe_kind
from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_FILE = Path("/etc/cri-shim/config.yaml")
MAX_DROP_INS = 100

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """The keys of one source."""

    name: str
    """The source, as messages name it."""
    tree: Tree


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    default_file: Path = DEFAULT_FILE,
) -> Config:
    """Load the effective configuration. Blocks while it reads the files.

    A given `file` must exist. Without it `default_file` is read, if it exists. `overrides` are the `key=value` of
    `--set`; later ones win.

    Raises:
        ConfigError: one line `SOURCE: path.to.key: what is wrong (value), allowed: ...` for each mistake.
    """
    if file is not None and not file.exists():
        raise ConfigError(f"{file}: no such file")
    layers = [Layer("built-in defaults", to_tree(Config())), *read_layers(file or default_file)]
    layers.extend(Layer("--set", parse_override(override)) for override in overrides)
    tree: Tree = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
    config, problems = decode(tree)
    problems += find_problems(config, problems)
    if problems:
        raise ConfigError("\n".join(_line(problem, layers) for problem in problems))
    return config


def read_layers(file: Path) -> list[Layer]:
    """The file and its drop-ins, as far as they exist, in the order in which they apply.

    Raises:
        ConfigError: with a line for each file that is unreadable, not YAML or not a mapping.
    """
    layers, errors = [], []
    for path in (file, *_drop_ins(file)):
        try:
            tree = _read(path)
        except FileNotFoundError:
            continue
        except ConfigError as error:
            errors.append(str(error))
        else:
            layers.append(Layer(str(path), tree))
    if errors:
        raise ConfigError("\n".join(errors))
    return layers


def _drop_ins(file: Path) -> list[Path]:
    directory = file.with_suffix(".d")
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be listed: {error.strerror}") from error
    names = [name for name in names if name.endswith(".yaml") and not name.startswith(".")]
    if len(names) > MAX_DROP_INS:
        raise ConfigError(f"{directory}: has more than {MAX_DROP_INS} files")
    return [directory / name for name in names]


def _read(path: Path) -> Tree:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}") from None
    tree = parse_document(text, name=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: {describe_kind(tree)}, allowed: a mapping of keys")
    return tree


def parse_override(text: str) -> Tree:
    """Parse `a.b=value` into a tree.

    If the key takes text, the value is used as it is. Otherwise it is YAML (`[a, b]`, `{a: 1}`).

    Raises:
        ConfigError: no `=`, or the value is not YAML.
    """
    path, equals, raw = text.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {text}: is not key=value, like log.level=debug")
    place, kind = raw_type(Config, path.split("."))
    value: object = raw
    quoted = raw[:1] in ('"', "'")
    if quoted or not _takes_text(kind):
        value = parse_document(raw, name=f"--set {path}")
    tree: Tree = {}
    inner = tree
    for name in place[:-1]:
        inner = inner.setdefault(str(name), {})
    inner[str(place[-1])] = value
    return tree


def _takes_text(kind: types.Type | None) -> bool:
    if isinstance(kind, types.UnionType):
        return True
    return isinstance(kind, types.StrType | types.CustomType | types.EnumType)


def merge(under: Tree, over: Tree) -> Tree:
    """Merge `over` into `under`: mappings key by key, other values are replaced."""
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, dict) and isinstance(below, dict):
            result[name] = merge(below, value)
        else:
            result[name] = value
    return result


def _line(problem: Problem, layers: Sequence[Layer]) -> str:
    return f"{_source(problem.place, layers)}: {problem.path}: {problem.message}"


def _source(place: Place, layers: Sequence[Layer]) -> str:
    """The last layer that sets this place, or else the nearest place around it."""
    for length in range(len(place), 0, -1):
        for layer in reversed(layers[1:]):
            if _has(layer.tree, place[:length]):
                return layer.name
    return layers[0].name


def _has(tree: object, place: Place) -> bool:
    for part in place:
        match tree:
            case dict() if part in tree:
                tree = tree[part]
            case list() if isinstance(part, int) and part < len(tree):
                tree = tree[part]
            case _:
                return False
    return True
