"""Runs one target: python tests/fuzz/run.py TARGET [--seconds N] [--runs N] [--seed N] [--input FILE] [--place DIR]

Inputs are made from the target's seeds, guided by the coverage of cri_shim's own code. What breaks the target is
written to the file `found` below --place, and the exit status is not 0. See `tests/fuzz/__init__.py`.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import atheris

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_TARGETS = Path(__file__).parent / "targets"
_MAX_BYTES = 4096
_INPUT_TIMEOUT_S = 10
_MEMORY_MB = 1024


def targets() -> list[str]:
    """Every target's name."""
    return sorted(path.stem for path in _TARGETS.glob("*.py") if path.stem != "__init__")


def load(name: str) -> ModuleType:
    """The target, with the code that it drives made to tell its coverage. Only once in a process."""
    with atheris.instrument_imports(include=["cri_shim"], enable_loader_override=False):
        return importlib.import_module(f"tests.fuzz.targets.{name}")


def main(argv: list[str]) -> int:
    """Run until something breaks, or the bounds are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=targets())
    parser.add_argument("--seconds", type=int, default=0, help="at most so long; 0: no end")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of chance; 0: another each time")
    parser.add_argument("--input", type=Path, help="only this one input")
    parser.add_argument("--place", type=Path, help="an empty directory, for what breaks the target")
    options = parser.parse_args(argv)
    target = load(options.target)
    only = options.input.read_bytes() if options.input else None
    place = options.place or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    with (place / "found").open("wb", buffering=0) as found:
        run = _Run(target, place, found)
        if only is not None:
            run(only)
            return 0
        print(f"what breaks it will be in {place / 'found'}", flush=True)
        arguments = [
            *("-verbosity=0", f"-runs={options.runs}", f"-max_total_time={options.seconds}"),
            *(f"-seed={options.seed}", f"-max_len={getattr(target, 'MAX_BYTES', _MAX_BYTES)}"),
            *(f"-timeout={_INPUT_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}"),
            *("-exact_artifact_path=/dev/null", "-print_final_stats=1"),
        ]
        atheris.Setup([sys.argv[0], *arguments], run, custom_mutator=_mutator(target))
        atheris.Fuzz()  # ends the process
    return 0


class _Run:
    """The target, one input after the other."""

    def __init__(self, target: ModuleType, place: Path, found: BinaryIO) -> None:
        self._target = target
        self._place = place
        self._found = found
        self._prepared = False

    def __call__(self, data: bytes) -> None:
        inputs = [data]
        if not self._prepared:
            # Not earlier: afterwards there may be no files to load libFuzzer from.
            self._prepared = True
            getattr(self._target, "prepare", _nothing)(self._place)
            inputs = [*self._target.SEEDS, data]
        for each in inputs:
            self._one(each)

    def _one(self, data: bytes) -> None:
        try:
            self._target.fuzz(data)
        except BaseException as error:
            self._found.write(data)
            print(
                f"{type(error).__name__}: {error}\nthe input, {len(data)} bytes: {data[:2000]!r}",
                flush=True,
            )
            raise


def _nothing(_: Path) -> None:
    """There is nothing to prepare."""


def _mutator(target: ModuleType) -> Callable[[bytes, int, int], bytes]:
    """Begins with a seed now and then, puts a word in sometimes, and leaves the rest to libFuzzer."""
    seeds: list[bytes] = target.SEEDS
    words: list[bytes] = getattr(target, "WORDS", [])
    own: Callable[[bytes, int, random.Random], bytes] | None = getattr(target, "mutate", None)

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if len(data) < 2 or chance.random() < 0.1:
            data = chance.choice(seeds)
        if own is not None and chance.random() < 0.9:
            return own(data, max_bytes, chance)[:max_bytes]
        if words and chance.random() < 0.3:
            at = chance.randrange(len(data) + 1)
            until = at + chance.choice([0, 0, 1, 4, 16])
            return (data[:at] + chance.choice(words) + data[until:])[:max_bytes]
        mutated: bytes = atheris.Mutate(data, max_bytes)
        return mutated

    return mutate


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
