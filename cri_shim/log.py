"""Configures logging: structlog events as key=value on a terminal, as JSON lines elsewhere.

Rules:
- All events go to one stream, standard error, one on a line. If the stream cannot be written to, events are dropped.
- The level can be changed at run time, also for existing loggers.
- Records of the standard library's `logging` (asyncio, grpc, libraries) are written in the same form.
- IDs are in context variables (`log_context`), so that no logger has to be passed down.
- This module does not redact. Code that logs a request redacts it.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from structlog.typing import EventDict, Processor

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_threshold = logging.INFO


class LevelLogger(structlog.BoundLoggerBase):
    """A logger with the module's level. structlog's own filtering would be fixed when a logger is bound."""

    def debug(self, event: str, **values: object) -> None:
        """Log details for debugging: commands, decisions."""
        if _threshold <= logging.DEBUG:
            self._proxy_to_logger("debug", event, **values)

    def info(self, event: str, **values: object) -> None:
        """Log events of normal operation: one line per call, starts and stops."""
        if _threshold <= logging.INFO:
            self._proxy_to_logger("info", event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Log a problem that was handled."""
        if _threshold <= logging.WARNING:
            self._proxy_to_logger("warning", event, **values)

    def error(self, event: str, **values: object) -> None:
        """Log a problem that was not handled."""
        self._proxy_to_logger("error", event, **values)

    def exception(self, event: str, **values: object) -> None:
        """Log an error with the traceback of the present exception, for bugs."""
        self._proxy_to_logger("error", event, **{"exc_info": True, **values})

    critical = error


class _Sink:
    """Writes lines to a stream. structlog's methods all do the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The reader is gone, or the stream is closed at exit. There is no place to report it.
            pass

    debug = info = warning = error = critical = exception = msg


class _StdlibHandler(logging.Handler):
    """Passes records of the standard library's `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        method = logger.error if record.levelno >= logging.ERROR else logger.warning
        if record.levelno < logging.WARNING:
            method = logger.info if record.levelno >= logging.INFO else logger.debug
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            # A library's wrong format string must not raise in our code.
            text = str(record.msg)
        method(text, logger=record.name, exc_info=record.exc_info or False)


def configure(*, level: str, format: str = "auto", stream: TextIO | None = None) -> None:
    """Configure logging; may be called again.

    `level` is a key of `LEVELS`. `format` is `console`, `json`, or `auto`: console on a terminal, else JSON.
    """
    stream = stream or sys.stderr
    console = format == "console" or (format == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            merge_contextvars,
            structlog.processors.add_log_level,
            *(_console_processors(stream) if console else _json_processors()),
        ],
        wrapper_class=LevelLogger,
        logger_factory=lambda *_: _Sink(stream),
        # A cached logger would keep the stream and the format of its first use. Without the cache each call costs some
        # µs, also for an event that is not written: see `is_shown`.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StdlibHandler)]:
        root.removeHandler(handler)
    root.addHandler(_StdlibHandler())
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of all loggers."""
    global _threshold
    _threshold = LEVELS[level]
    # "debug" does not include the debug output of libraries, a line per socket event.
    logging.getLogger().setLevel(max(_threshold, logging.INFO))


def is_shown(level: str) -> bool:
    """Whether events of that level are written now. It saves computing the values of an event that is not."""
    return LEVELS[level] >= _threshold


def log_context(
    *, request_id: str | None = None, sandbox_id: str | None = None, container_id: str | None = None
) -> AbstractContextManager[None]:
    """Add these IDs to the events of this task, and of tasks it starts, while the block runs. None keeps an ID."""
    given = {"request_id": request_id, "sandbox_id": sandbox_id, "container_id": container_id}
    return bound_contextvars(**{name: value for name, value in given.items() if value is not None})


def _console_processors(stream: TextIO) -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _json_processors() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _render_json,
    ]


def _render_json(_logger: object, _method: str, event: EventDict) -> str:
    """An event as one line of JSON: time, level, event, then the values."""
    return encode_line({"time": None, "level": None, "event": None, **event})


def encode_line(values: Mapping[str, Any]) -> str:
    """Encode values as JSON; values without a JSON type as text."""
    try:
        return msgspec.json.encode(values, enc_hook=str).decode()
    except (UnicodeEncodeError, TypeError, ValueError):
        # File names that are not UTF-8 (surrogates), or keys that are not text. `json` is slower, but encodes both.
        return json.dumps({str(name): value for name, value in values.items()}, default=str)
