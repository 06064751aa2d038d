from __future__ import annotations

import asyncio
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from cri_shim import log as logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    structlog.reset_defaults()
    logs.set_level("info")
    root.setLevel(level)
    for handler in [h for h in root.handlers if type(h).__module__ == logs.__name__]:
        root.removeHandler(handler)


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level="info", format="json", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_time_level_and_event_first(stream: io.StringIO) -> None:
    structlog.get_logger().info("pod started", sandbox_id="ab", seconds=0.5)
    (line,) = lines(stream)
    assert list(line) == ["time", "level", "event", "sandbox_id", "seconds"]
    assert (line["level"], line["event"], line["seconds"]) == ("info", "pod started", 0.5)
    assert line["time"].endswith("Z")


def test_values_of_any_kind_are_written(stream: io.StringIO) -> None:
    structlog.get_logger().info("x", path=Path("/a"), error=ValueError("bad"), keys={1: "x"})
    structlog.get_logger().info(
        "x", name="caf\udce9", nested={"a": object}, text="line\nbreak\x1b[31m"
    )
    first, second = lines(stream)
    assert (first["path"], first["error"], first["keys"]) == ("/a", "bad", {"1": "x"})
    assert second["text"] == "line\nbreak\x1b[31m"
    assert "\x1b" not in stream.getvalue()


def test_the_level_can_change_for_loggers_that_exist_already(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    bound = log.bind(container_id="x")
    log.debug("no")
    logs.set_level("debug")
    log.debug("yes")
    bound.debug("bound too")
    logs.set_level("error")
    log.warning("no")
    bound.error("still")
    assert [line["event"] for line in lines(stream)] == ["yes", "bound too", "still"]


def test_an_event_below_the_level_is_not_even_built(stream: io.StringIO) -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was rendered")

    structlog.get_logger().debug("x", value=Costly())
    assert stream.getvalue() == ""


def test_an_exception_comes_with_its_traceback(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        structlog.get_logger().exception("a bug")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert "RuntimeError: boom" in line["exception"]


def test_ids_travel_with_the_task_and_its_children(stream: io.StringIO) -> None:
    async def child() -> None:
        structlog.get_logger().info("child")

    async def parent() -> None:
        with logs.log_context(request_id="r1", sandbox_id="s1"):
            await asyncio.gather(child(), child())
            with logs.log_context(container_id="c1", sandbox_id=None):
                structlog.get_logger().info("inner")
        structlog.get_logger().info("outside")

    asyncio.run(parent())
    *children, inner, outside = lines(stream)
    assert [(line["request_id"], line["sandbox_id"]) for line in children] == [("r1", "s1")] * 2
    assert (inner["sandbox_id"], inner["container_id"]) == ("s1", "c1")
    assert "request_id" not in outside


def test_what_libraries_log_comes_out_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("grpc").debug("per packet")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("slow callback", "asyncio", "warning")


def test_a_library_that_formats_wrongly_is_logged_all_the_same(stream: io.StringIO) -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "%d", ("not a number",), None)
    ours = [h for h in logging.getLogger().handlers if type(h).__module__ == logs.__name__]
    ours[0].emit(record)
    assert lines(stream)[0]["event"] == "%d"


def test_libraries_stay_silent_below_info_even_when_debugging(stream: io.StringIO) -> None:
    logs.set_level("debug")
    logging.getLogger("grpc").debug("per packet")
    assert stream.getvalue() == ""


def test_a_stream_that_is_gone_is_no_reason_to_stop(stream: io.StringIO) -> None:
    stream.close()
    structlog.get_logger().error("nobody reads this")


def test_configuring_again_moves_the_log_and_doubles_nothing(stream: io.StringIO) -> None:
    log = structlog.get_logger()
    log.info("first")
    second = io.StringIO()
    logs.configure(level="info", format="json", stream=second)
    log.info("second")
    logging.getLogger("x").warning("third")
    assert [line["event"] for line in lines(stream)] == ["first"]
    assert [line["event"] for line in lines(second)] == ["second", "third"]


def test_auto_is_console_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        logs.configure(level="info", format="auto", stream=stream)
        structlog.get_logger().info("hello", a=1)
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert pipe.getvalue().startswith("{")


def test_console_values_cannot_forge_lines_or_colours() -> None:
    stream = io.StringIO()
    logs.configure(level="info", format="console", stream=stream)
    structlog.get_logger().info("plugin said", text="fine\n12:00 [error] forged \x1b[31m")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_a_level_is_shown_or_not_as_it_is_set(stream: io.StringIO) -> None:
    assert [logs.is_shown(level) for level in ("debug", "info", "error")] == [False, True, True]
    logs.set_level("debug")
    assert logs.is_shown("debug")
