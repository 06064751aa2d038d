"""Every regular expression of the package takes time in proportion to what it reads, whoever wrote that.

They are found, not listed: compiled ones in the modules' variables, and those given to `re` where they are used. Each
is run as the code runs it, over texts made of its own pieces: what it nearly matches, many times over.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

import pytest

import cri_shim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Found = dict[str, tuple[re.Pattern[Any], set[str]]]

METHODS = {"search", "match", "fullmatch", "sub", "split", "findall", "finditer"}
LOOK_CHARS = 4096
SUSPICIOUS_S = 0.002
"""For that many characters; what is linear takes a tenth of it, what is quadratic ten times as much."""
MAX_GROWTH = 8.0
"""Of the time for four times the text: 4 is linear, 16 quadratic."""


def package_modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(cri_shim.__path__, "cri_shim."):
        if "._pb" not in info.name and not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def patterns_in(value: object) -> Iterator[re.Pattern[Any]]:
    """Those of a variable, also inside of tuples, lists and the values of mappings."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from patterns_in(each)
    elif isinstance(value, dict):
        yield from patterns_in(list(value.values()))


def found_patterns() -> Found:
    """By a name for people: each pattern, and the methods by which it is used; all, where that can't be told."""
    found: Found = {}
    used: dict[re.Pattern[Any], set[str]] = {}
    for module in package_modules():
        for name, value in vars(module).items():
            for number, pattern in enumerate(patterns_in(value)):
                methods = used.setdefault(pattern, set())
                if value is not pattern:
                    methods |= METHODS
                found.setdefault(f"{module.__name__}.{name}[{number}]", (pattern, methods))
        with open(module.__file__) as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            method, owner = node.func.attr, node.func.value
            if method not in METHODS or not isinstance(owner, ast.Name):
                continue
            holder = vars(module).get(owner.id)
            if isinstance(holder, re.Pattern):
                used[holder].add(method)
            elif holder is re and isinstance(node.args[0], ast.Constant):
                pattern = re.compile(node.args[0].value)
                found[f"{module.__name__}:{node.lineno}"] = (pattern, {method})
    return found


def characters_of(choice: Any) -> list[str]:
    """Some ASCII characters that a set of a pattern matches."""
    matches = re.compile(_class_of(choice))
    alphabet = [chr(code) for code in (*range(9, 14), *range(32, 127))]
    found = [each for each in alphabet if matches.match(each)] or ["a"]
    return [*dict.fromkeys((found[0], found[-1], *(each for each in "a0 ./-" if each in found)))]


def _class_of(choice: Any) -> str:
    text = ""
    for kind, value in choice:
        if kind is sre.NEGATE:
            text += "^"
        elif kind is sre.LITERAL:
            text += re.escape(chr(value))
        elif kind is sre.RANGE:
            text += f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
        elif kind is sre.CATEGORY:
            letter = str(value).rpartition("_")[2][0].lower()
            text += "\\" + (letter.upper() if "NOT" in str(value) else letter)
    return f"[{text}]"


def sample(tree: Iterable[Any], *, repeats: int, pick: int) -> str:
    """A text that a part of a pattern matches."""
    text = ""
    for kind, value in tree:
        if kind is sre.LITERAL:
            text += chr(value)
        elif kind is sre.NOT_LITERAL:
            text += next(each for each in "a1 /" if ord(each) != value)
        elif kind is sre.ANY:
            text += "a"
        elif kind is sre.IN:
            text += characters_of(value)[pick]
        elif kind is sre.BRANCH:
            text += sample(value[1][pick], repeats=repeats, pick=pick)
        elif kind is sre.SUBPATTERN:
            text += sample(value[3], repeats=repeats, pick=pick)
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            least, most, inner = value
            text += sample(inner, repeats=repeats, pick=pick) * max(least, min(repeats, int(most)))
    return text


def pieces(tree: Any) -> set[str]:
    """Single characters that matter to a pattern, and beginnings of what it matches."""
    found = {
        sample(tree[:end], repeats=repeats, pick=pick)[:80]
        for end in range(1, len(tree) + 1)
        for repeats in (1, 2)
        for pick in (0, -1)
    }
    for kind, value in tree:
        if kind is sre.LITERAL:
            found.add(chr(value))
        elif kind is sre.IN:
            found.update(characters_of(value))
        elif kind is sre.BRANCH:
            for branch in value[1]:
                found |= pieces(branch)
        elif kind is sre.SUBPATTERN:
            found |= pieces(value[3])
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            found |= pieces(value[2])
    return found - {""}


def hostile_texts(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    """Beginning, what is repeated, and end: a match that comes almost to its end, over and over."""
    kept = ~re.UNICODE if isinstance(pattern.pattern, bytes) else ~0
    tree = sre_parser.parse(pattern.pattern, pattern.flags & kept)
    units = sorted(pieces(tree), key=lambda each: (len(each), each))
    begins = {sample(tree[:end], repeats=1, pick=0)[:80] for end in range(min(6, len(tree)) + 1)}
    pairs = (f"{one}{other}" for one in units[:8] for other in units[:8])
    for unit in dict.fromkeys((*units, *pairs)):
        for begin in begins:
            for end in ("\n", "\0!"):
                yield begin, unit, end


def text_of(parts: tuple[str, str, str], length: int) -> str:
    begin, unit, end = parts
    return begin + unit * (length // len(unit)) + end


def cpu_s(pattern: re.Pattern[Any], method: str, text: str, tries: int = 1) -> float:
    given = text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text
    run = getattr(pattern, method)
    best = 3600.0
    for _ in range(tries):
        began = time.process_time()
        if method == "sub":
            run(given[:0], given)
        elif method == "finditer":
            list(run(given))
        else:
            run(given)
        best = min(best, time.process_time() - began)
    return best


def grows_too_fast(pattern: re.Pattern[Any], method: str, parts: tuple[str, str, str]) -> bool:
    """Whether four times the text takes much more than four times the time.

    The texts stay short: what a pattern may have to go back to fits into the processor's caches then. Where it does not
    (from some 100,000 characters on), memory alone makes a linear pattern take ten times as long.
    """
    # What else the machine does can make one measurement long, but not each of several.
    if cpu_s(pattern, method, text_of(parts, LOOK_CHARS), 5) < SUSPICIOUS_S:
        return False
    return all(
        cpu_s(pattern, method, text_of(parts, 4 * LOOK_CHARS), 2)
        > MAX_GROWTH * cpu_s(pattern, method, text_of(parts, LOOK_CHARS), 3)
        for _ in range(4)
    )


def first_hostile(pattern: re.Pattern[Any], methods: set[str]) -> str:
    for parts in hostile_texts(pattern):
        text = text_of(parts, LOOK_CHARS)
        for method in methods:
            if cpu_s(pattern, method, text) < SUSPICIOUS_S:
                continue
            if grows_too_fast(pattern, method, parts):
                return f"{method} of {pattern.pattern!r} on {parts}"
    return ""


FOUND = found_patterns()


def test_the_patterns_are_found() -> None:
    assert len(FOUND) > 60
    assert {"fullmatch"} in [methods for _, methods in FOUND.values()]
    assert any("Bearer" in str(pattern.pattern) for pattern, _ in FOUND.values())


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (r"(://[^\s?\"']+\?)[^\s\"']+", "sub"),
        (r"\d+\.\d+", "search"),
        (r".*a.*b", "fullmatch"),
    ],
)
def test_one_that_reads_the_same_text_again_and_again_is_noticed(text: str, method: str) -> None:
    assert first_hostile(re.compile(text), {method})


@pytest.mark.parametrize("name", sorted(FOUND))
def test_time_grows_with_the_text_and_no_faster(name: str) -> None:
    pattern, methods = FOUND[name]
    assert not first_hostile(pattern, methods)
