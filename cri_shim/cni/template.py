"""Render a network configuration from a template and the node's pod addresses. Pure.

The template language is the subset of Go's text/template that such templates use with other runtimes, so that theirs
work here unchanged:

    {{.PodCIDR}}                                      the first range
    {{range $i, $r := .PodCIDRRanges}} … {{end}}      all of them; also `range .PodCIDRRanges`, `range $r := …`
    {{range .Routes}}{"dst": "{{.}}"}{{end}}          the default route of each address family
    {{if $i}}, {{end}}                                unless it is 0 or empty; {{- and -}} drop white space

Rules: anything else between braces is a ConfigError with its line, and never copied through. Inserted values consist of
digits, letters and `.:/` only, so nothing needs quoting in JSON.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_RANGES = 16

# An unclosed action matches up to the end of the text. Otherwise each `{{` would scan the rest in vain: quadratic time.
_ACTION = re.compile(r"\{\{(- )?(.*?)(?:( -)?\}\}|\Z)", re.DOTALL)
_VALUE = re.compile(r"\.[A-Za-z]*|\$[A-Za-z_]\w*")
_RANGE = re.compile(r"range\s+(?:(?:(\$\w+)\s*,\s*)?(\$\w+)\s*:=\s*)?(\.[A-Za-z]+)")

_MAX_SHOWN = 80  # characters of an action in an error message

_Value = str | int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    is_action: bool
    line: int


def parse_pod_cidrs(text: str) -> tuple[str, ...]:
    """The ranges of a comma-separated list, in canonical form; none for empty text. Raises InvalidArgumentError."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > MAX_RANGES:
        raise InvalidArgumentError(f"pod_cidr: {len(parts)} ranges; the limit is {MAX_RANGES}")
    try:
        return tuple(str(ipaddress.ip_network(part)) for part in parts)
    except ValueError as error:
        raise InvalidArgumentError(f"pod_cidr: {error}") from error


def render_template(template: str, pod_cidrs: Sequence[str], *, source: str) -> str:
    """Render the template; `source` names it in errors. Raises ConfigError."""
    families = [ipaddress.ip_network(cidr).version for cidr in pod_cidrs]
    values: dict[str, _Value] = {
        ".PodCIDR": pod_cidrs[0],
        ".PodCIDRRanges": tuple(pod_cidrs),
        ".Routes": tuple(
            route for family, route in ((4, "0.0.0.0/0"), (6, "::/0")) if family in families
        ),
    }
    tokens = _tokens(template, source)
    text, rest = _render(tokens, 0, values, source)
    if rest < len(tokens):
        raise _error(tokens[rest], source, "there is no block for it to end")
    return text


def _tokens(template: str, source: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    for match in _ACTION.finditer(template):
        trim_left, action, trim_right = match.groups()
        line = template.count("\n", 0, match.start()) + 1
        text = template[at : match.start()]
        tokens.append(_Token(text.rstrip() if trim_left else text, is_action=False, line=line))
        token = _Token(action.strip(), is_action=True, line=line)
        if not match[0].endswith("}}"):
            raise _error(token, source, "its closing }} is missing")
        tokens.append(token)
        at = match.end()
        while trim_right and template[at : at + 1].isspace():
            at += 1
    tokens.append(_Token(template[at:], is_action=False, line=0))
    return tokens


def _render(
    tokens: Sequence[_Token], at: int, values: Mapping[str, _Value], source: str
) -> tuple[str, int]:
    """The text up to the end of this block, and the index of its `end`."""
    written: list[str] = []
    while at < len(tokens):
        token = tokens[at]
        if not token.is_action:
            written.append(token.text)
        elif token.text == "end":
            break
        elif _VALUE.fullmatch(token.text):
            value = _look_up(token, token.text, values, source)
            if isinstance(value, tuple):
                raise _error(token, source, "it is a list: iterate over it with range")
            written.append(str(value))
        elif token.text.startswith("range"):
            text, at = _render_range(tokens, at, values, source)
            written.append(text)
        elif token.text.startswith("if "):
            condition = _look_up(token, token.text.removeprefix("if ").strip(), values, source)
            text, end = _render(tokens, at + 1, values, source)
            at = _require_end(tokens, end, token, source)
            written.append(text if condition else "")
        elif not token.text.startswith("/*"):
            raise _error(token, source, "not supported; use values, range, if and end")
        at += 1
    return "".join(written), at


def _render_range(
    tokens: Sequence[_Token], at: int, values: Mapping[str, _Value], source: str
) -> tuple[str, int]:
    token = tokens[at]
    match = _RANGE.fullmatch(token.text)
    if match is None:
        raise _error(token, source, "not supported; write {{range $i, $value := .Name}}")
    index, name, listed = match.groups()
    items = _look_up(token, listed, values, source)
    if not isinstance(items, tuple):
        raise _error(token, source, f"{listed} is not a list")
    written = []
    end = len(tokens)
    # No list is ever empty: there is at least one range, hence one route. So `end` and the block are always set.
    for number, item in enumerate(items):
        inner: dict[str, _Value] = {**values, ".": item}
        if name is not None:
            inner[name] = item
        if index is not None:
            inner[index] = number
        text, end = _render(tokens, at + 1, inner, source)
        written.append(text)
    return "".join(written), _require_end(tokens, end, token, source)


def _require_end(tokens: Sequence[_Token], at: int, opened: _Token, source: str) -> int:
    if at >= len(tokens):
        raise _error(opened, source, "its {{end}} is missing")
    return at


def _look_up(token: _Token, name: str, values: Mapping[str, _Value], source: str) -> _Value:
    if name not in values:
        known = ", ".join(sorted(values))
        raise _error(token, source, f"no such value here; the values are {known}")
    return values[name]


def _error(token: _Token, source: str, problem: str) -> ConfigError:
    shown = "".join(c if c.isprintable() else "?" for c in token.text[:_MAX_SHOWN])
    return ConfigError(f"{source}: line {token.line}: {{{{{shown}}}}}: {problem}")
