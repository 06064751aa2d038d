"""Parses command lines: usage errors on one line, and the options that several commands share."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that accepts no abbreviated options and reports errors on one line."""

    def __init__(
        self,
        prog: str | None = None,
        *,
        description: str | None = None,
        epilog: str | None = None,
        add_help: bool = True,
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            add_help=add_help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line, without argparse's usage text."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def suggest(word: str, words: Sequence[str]) -> str:
    """`did you mean X?` if a similar word exists, else the list of known words."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(words)}"


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and `--set`, to be used as `load_config(args.config, args.set)`."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file (default: /etc/cri-shim/config.yaml, if it exists)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        help="override a key, like streaming.port=10400; may be repeated",
    )


def _assignment(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or not all(key.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, like log.level=debug")
    return text
