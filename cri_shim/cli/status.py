"""`cri-shim status`: shows pods and containers, their usage, and the step each waits for; once or repeatedly.

With `--watch` the screen of a terminal is redrawn. Elsewhere each output is a whole table, or with `--json` a document
on one line. If the daemon stops, `--watch` goes on and shows the error until the daemon is back.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

from cri_shim.cli import daemon_address
from cri_shim.cli.output import counted, is_screen, json_text, printable, table
from cri_shim.cli.status_reading import Sight, look
from cri_shim.cli.status_rows import document_of, others, rows_of
from cri_shim.errors import CriShimError

if TYPE_CHECKING:
    import argparse

    from cri_shim.rpc.client import Client

INTERVAL_S: Final = 2.0
HEADINGS: Final = ("POD", "ID", "STATE", "CPU", "MEMORY", "RESTARTS", "AGE", "WAITING FOR")
_HOME, _ERASE_TO_END_OF_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--watch", action="store_true", help=f"redraw every {INTERVAL_S:g} seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    daemon_address.add_options(parser)
    parser.description = (
        "Show pods and containers with state, CPU (100% is one core), memory, restarts and age, and the step\n"
        "that each waits for now, and since when."
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the status. Raises UnavailableError without a daemon, and the daemon's errors."""
    with daemon_address.connect(arguments) as client:
        if arguments.watch:
            return _watch(client, as_json=arguments.json)
        sight = look(client)
        print(json_text(document_of(sight)) if arguments.json else "\n".join(lines_of(sight)))
    return 0


def _watch(client: Client, *, as_json: bool) -> int:
    screen = is_screen(sys.stdout) and not as_json
    try:
        while True:
            try:
                sight = look(client)
                lines = [json.dumps(document_of(sight))] if as_json else lines_of(sight)
            except CriShimError as error:
                lines = [json.dumps({"error": str(error)})] if as_json else [str(error)]
            if screen:
                _draw(lines)
            else:
                print("\n".join(lines) + ("" if as_json else "\n"), flush=True)
            time.sleep(INTERVAL_S)
    except KeyboardInterrupt:
        return 0


def _draw(lines: list[str]) -> None:
    """Redraw the screen line by line; clearing it first would flicker."""
    size = shutil.get_terminal_size()
    shown = [line[: size.columns - 1] for line in lines]
    if len(shown) >= size.lines:
        hidden = len(shown) - (size.lines - 2)
        shown = [*shown[: size.lines - 2], f"and {counted(hidden, 'line')} more"]
    text = "".join(f"{line}{_ERASE_TO_END_OF_LINE}\n" for line in shown)
    sys.stdout.write(f"{_HOME}{text}{_ERASE_BELOW}")
    sys.stdout.flush()


def lines_of(sight: Sight) -> list[str]:
    """The lines of the table output."""
    rows = rows_of(sight)
    lines = [sight.trouble] if sight.trouble else []
    if rows:
        lines += table([HEADINGS, *(tuple(map(printable_cell, row.cells())) for row in rows)])
    elif not sight.trouble:
        lines.append("no pods")
    more = others(sight)
    if more:
        lines += ["", "also under way:", *(f"  {printable(each)}" for each in more)]
    return lines


def printable_cell(text: str) -> str:
    """A cell without terminal control sequences. The indentation of containers stays."""
    return text[: len(text) - len(text.lstrip())] + printable(text)
