from __future__ import annotations

import io
import os
import re

import pytest

from cri_shim._pb.admin.v1 import admin_pb2 as admin
from cri_shim.cli.layer_bars import LayerBars, layer_line, plain_layer_line

WAITING, DOWNLOADING, UNPACKING, HERE, DONE = admin.LayerProgress.State.values()


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool = True) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Scene:
    """Bars on a terminal of our size, at our time, and what stands on it."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.now = 100.0
        self.size = os.terminal_size((columns, lines))
        self.stream = Stream()
        self.bars = LayerBars(self.stream, clock=lambda: self.now, size=lambda: self.size)

    def show(self, digest: str, state: int, done: int = 0, total: int = 100) -> None:
        self.now += 1
        self.bars.show(layer(digest, state, done, total))

    def screen(self) -> list[str]:
        """The lines that stand there, as a terminal of unlimited width obeys what was written."""
        rows: list[str] = []
        cursor = 0
        for move, erase, text in re.findall(
            r"(?:\x1b\[(\d+)A)|(\r\x1b\[J)|([^\x1b\r\n]*)\n", self.stream.getvalue()
        ):
            if move:
                cursor -= int(move)
                assert cursor >= 0
            elif erase:
                del rows[cursor:]
            else:
                rows[cursor:] = [text]
                cursor += 1
        return rows


def layer(digest: str, state: int, done: int = 0, total: int = 100) -> admin.LayerProgress:
    return admin.LayerProgress(
        digest=f"sha256:{digest * 64}",
        state=state,  # type: ignore[arg-type]
        done_bytes=done,
        total_bytes=total,
    )


def test_each_layer_has_a_line_which_is_redrawn_in_its_place() -> None:
    scene = Scene()
    scene.show("a", WAITING)
    scene.show("b", DOWNLOADING, 50)
    scene.show("a", HERE)
    scene.show("b", DONE, 100)
    scene.bars.say("pulled it")
    assert scene.screen() == [
        "aaaaaaaaaaaa  already here  100 B",
        "bbbbbbbbbbbb  done  100 B",
        "pulled it",
    ]


def test_progress_is_not_drawn_faster_than_an_eye_can_follow_but_news_are() -> None:
    scene = Scene()
    for done in range(1000):
        scene.bars.show(layer("a", DOWNLOADING, done, 1000))
        scene.now += 0.001
    drawn = scene.stream.getvalue().count("aaaaaaaaaaaa")
    assert drawn < 15
    scene.bars.show(layer("a", DONE, 1000, 1000))
    assert scene.stream.getvalue().count("aaaaaaaaaaaa") == drawn + 1


@pytest.mark.parametrize("columns", [1, 2, 10, 30, 45, 60, 79, 80, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    scene = Scene(columns=columns)
    for state in (WAITING, DOWNLOADING, UNPACKING, DONE):
        scene.show("a", state, 45 << 20, 90 << 20)
        scene.show("b", state, 45 << 20, 90 << 20)
    assert all(len(line) < max(columns, 2) for line in scene.screen())


def test_a_narrow_terminal_goes_without_the_bar_before_it_goes_without_words() -> None:
    progress = layer("a", DOWNLOADING, 50)
    assert layer_line(progress, 79) == (
        "aaaaaaaaaaaa  [############------------]  50%  downloading   50 B of 100 B"
    )
    assert "[#####-----]" in layer_line(progress, 60)
    assert layer_line(progress, 45) == "aaaaaaaaaaaa   50%  downloading   50 B of 100 B"


def test_a_terminal_that_became_narrower_has_its_wrapped_lines_replaced() -> None:
    scene = Scene(columns=80)
    scene.show("a", DOWNLOADING, 50)
    length = len(scene.screen()[0])
    scene.stream.truncate(0)
    scene.size = os.terminal_size((30, 24))
    scene.show("a", DOWNLOADING, 60)
    assert f"\x1b[{-(-length // 30)}A" in scene.stream.getvalue()


def test_more_layers_than_lines_are_counted_and_those_under_way_are_shown() -> None:
    scene = Scene(lines=5)
    for digest in "abcdef":
        scene.show(digest, WAITING)
    for digest in "ab":
        scene.show(digest, DONE)
    assert [line.split()[0][0] for line in scene.screen()[:-1]] == ["c", "d", "e"]
    assert scene.screen()[-1] == "and 3 layers more, 2 of them done"
    for digest in "cdef":
        scene.show(digest, DONE)
    assert len(scene.screen()) == 4


def test_elsewhere_layers_are_told_in_lines_that_stay() -> None:
    stream = Stream(is_terminal=False)
    now = 0.0
    bars = LayerBars(stream, clock=lambda: now)
    bars.show(layer("a", WAITING))
    bars.show(layer("a", DOWNLOADING, 1))
    for done in range(1, 100):
        now += 0.125
        bars.show(layer("a", DOWNLOADING, done))
    bars.show(layer("a", DONE, 100))
    bars.close()
    bars.say("evil\x1b[2J")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "layer aaaaaaaaaaaa: downloading, 100 B"
    assert [line.partition(", ")[2] for line in lines[1:-2]] == ["40%", "80%"]
    assert lines[-2:] == ["layer aaaaaaaaaaaa: done, 100 B", "evil�[2J"]


def test_a_layer_of_unknown_size_has_no_share() -> None:
    assert "0%" in layer_line(layer("a", DOWNLOADING, 5, 0), 79)
    assert plain_layer_line(layer("a", DOWNLOADING, 5, 0), is_news=False).endswith(", 0%")
