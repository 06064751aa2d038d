"""Shows the progress of a pull's layers: on a terminal a bar for each, redrawn in place; plain lines elsewhere.

Rules:
- No line is wider than the terminal. If the terminal became narrower, earlier lines wrap, and are counted with the
  number of lines that they occupy now.
- Never more lines than the terminal has. Layers under way come first, and layers that are left out are counted.
- A plain line is written when a layer begins and ends, and every `PLAIN_INTERVAL_S` in between.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Final, TextIO

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli.output import counted, is_screen, printable, short_id
from cri_shim.cli.progress import (
    BAR_COLUMNS,
    PLAIN_INTERVAL_S,
    REDRAW_INTERVAL_S,
    bar,
    size_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import terminal_size

_WORDS: Final = {
    admin.LayerProgress.WAITING: "waiting",
    admin.LayerProgress.DOWNLOADING: "downloading",
    admin.LayerProgress.UNPACKING: "unpacking",
    admin.LayerProgress.HERE: "already here",
    admin.LayerProgress.DONE: "done",
}
_ENDED: Final = frozenset({admin.LayerProgress.HERE, admin.LayerProgress.DONE})
_WORD_COLUMNS: Final = max(map(len, _WORDS.values()))
_LEAST_BAR_COLUMNS: Final = 8
"""A shorter bar would show no more than the percentage."""
_SPARE_LINES: Final = 2
"""Lines of the terminal kept free for the cursor and for the line that counts the rest."""


class LayerBars:
    """Shows layers on `stream`, in the order of their first report."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], terminal_size] = shutil.get_terminal_size,
    ) -> None:
        self._stream = stream
        self._is_screen = is_screen(stream)
        self._clock = clock
        self._size = size
        self._layers: dict[str, admin.LayerProgress] = {}
        self._told_at: dict[str, float] = {}
        self._drawn: list[str] = []
        self._drawn_at = float("-inf")

    def show(self, layer: admin.LayerProgress) -> None:
        """Show the progress of a layer. Cheap to call often."""
        before = self._layers.get(layer.digest)
        self._layers[layer.digest] = layer
        is_news = before is None or before.state != layer.state
        if not self._is_screen:
            self._tell(layer, is_news=is_news)
        elif is_news or self._clock() - self._drawn_at >= REDRAW_INTERVAL_S:
            self._draw()

    def say(self, line: str) -> None:
        """Write a line below the bars, which stays."""
        self.close()
        self._stream.write(printable(line) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the bars as they are, with the cursor below."""
        if self._is_screen and self._layers:
            self._draw()
        self._layers = {}
        self._drawn = []

    # A terminal

    def _draw(self) -> None:
        columns, lines = self._size()
        columns = max(columns, 2)
        # If the terminal became narrower since, an earlier line occupies several lines.
        above = sum(max(1, -(-len(line) // columns)) for line in self._drawn)
        back = f"\x1b[{above}A" if above else ""
        self._drawn = [line[: columns - 1] for line in self._picture(columns, lines)]
        # One write for all, or the screen flickers. The erase removes the rest of an earlier, longer output.
        self._stream.write(f"{back}\r\x1b[J" + "".join(f"{line}\n" for line in self._drawn))
        self._stream.flush()
        self._drawn_at = self._clock()

    def _picture(self, columns: int, lines: int) -> list[str]:
        room = max(1, lines - _SPARE_LINES)
        layers = list(self._layers.values())
        hidden: Sequence[admin.LayerProgress] = ()
        if len(layers) > room:
            # The sort is stable, so the order within each part stays.
            chosen = sorted(layers, key=lambda layer: layer.state in _ENDED)
            shown = {layer.digest for layer in chosen[:room]}
            hidden = [layer for layer in layers if layer.digest not in shown]
            layers = [layer for layer in layers if layer.digest in shown]
        picture = [layer_line(layer, columns - 1) for layer in layers]
        if hidden:
            ended = sum(layer.state in _ENDED for layer in hidden)
            picture.append(f"and {counted(len(hidden), 'layer')} more, {ended} of them done")
        return picture

    # Anything else

    def _tell(self, layer: admin.LayerProgress, *, is_news: bool) -> None:
        if layer.state == admin.LayerProgress.WAITING:
            return
        now = self._clock()
        if not is_news and now - self._told_at.get(layer.digest, now) < PLAIN_INTERVAL_S:
            return
        self._told_at[layer.digest] = now
        self._stream.write(plain_layer_line(layer, is_news=is_news) + "\n")
        self._stream.flush()


def layer_line(layer: admin.LayerProgress, columns: int) -> str:
    """`3c9a1b2f0d4e  [######------]  50%  downloading   1.5 of 3.0 MiB`; without the bar if there is no room."""
    name, word = short_id(layer.digest), _WORDS[layer.state]
    if layer.state in _ENDED:
        return f"{name}  {word}  {size_text(layer.total_bytes)}"
    share = _share(layer)
    amount = f"{size_text(layer.done_bytes)} of {size_text(layer.total_bytes)}"
    rest = f"{share:4.0%}  {word:<{_WORD_COLUMNS}}  {amount}"
    room = min(columns - len(name) - len(rest) - len("  [] "), BAR_COLUMNS)
    drawn = f"{bar(share, room)} " if room >= _LEAST_BAR_COLUMNS else ""
    return f"{name}  {drawn}{rest}"


def plain_layer_line(layer: admin.LayerProgress, *, is_news: bool) -> str:
    """`layer 3c9a1b2f0d4e: downloading, 3.0 MiB`, and later `layer 3c9a1b2f0d4e: downloading, 45%`."""
    what = size_text(layer.total_bytes) if is_news else f"{_share(layer):.0%}"
    return f"layer {short_id(layer.digest)}: {_WORDS[layer.state]}, {what}"


def _share(layer: admin.LayerProgress) -> float:
    return min(layer.done_bytes / layer.total_bytes, 1.0) if layer.total_bytes else 0.0
