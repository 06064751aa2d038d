"""The log: structlog events as key=value on a terminal, as JSON lines elsewhere.

Rules of the file:
- Everything goes to one stream (standard error), one event a line; a stream that can't be written to is no
  reason to stop, so such an event is dropped.
- The level can change while running, for loggers that exist already too.
- What the standard library's `logging` is given (asyncio, grpc, libraries) comes out the same way.
- IDs travel in context variables (`log_context`), so that code deep below needs no logger passed down.

Nothing here redacts: who logs a request redacts it.
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
    """A logger whose level is the module's, not its class's: structlog's own filtering is fixed when it is bound."""

    def debug(self, event: str, **values: object) -> None:
        """Commands, decisions: what one needs to find a fault."""
        if _threshold <= logging.DEBUG:
            self._proxy_to_logger("debug", event, **values)

    def info(self, event: str, **values: object) -> None:
        """What an operator wants to have read later: one line per call, starts and stops."""
        if _threshold <= logging.INFO:
            self._proxy_to_logger("info", event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Something is wrong and was coped with."""
        if _threshold <= logging.WARNING:
            self._proxy_to_logger("warning", event, **values)

    def error(self, event: str, **values: object) -> None:
        """Something is wrong and was not coped with."""
        self._proxy_to_logger("error", event, **values)

    def exception(self, event: str, **values: object) -> None:
        """An error with the traceback of the exception being handled: a bug."""
        self._proxy_to_logger("error", event, **{"exc_info": True, **values})

    critical = error


class _Sink:
    """Writes whole lines to a stream; all of structlog's method names are one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The reader is gone, or the stream was closed at exit: there is nowhere left to tell it.
            pass

    debug = info = warning = error = critical = exception = msg


class _StdlibHandler(logging.Handler):
    """Hands records of the standard library's `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        method = logger.error if record.levelno >= logging.ERROR else logger.warning
        if record.levelno < logging.WARNING:
            method = logger.info if record.levelno >= logging.INFO else logger.debug
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            # A library that formats its own message wrongly must not take us down with it.
            text = str(record.msg)
        method(text, logger=record.name, exc_info=record.exc_info or False)


def configure(*, level: str, format: str = "auto", stream: TextIO | None = None) -> None:
    """Set logging up; may be called again.

    `level` is a key of `LEVELS`; `format` is `console`, `json`, or `auto`: console on a terminal, else JSON.
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
        # A cached logger would keep the stream and the form of its first use; this costs it some µs a call, also of an
        # event that is not written: see `is_shown`.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _StdlibHandler)]:
        root.removeHandler(handler)
    root.addHandler(_StdlibHandler())
    set_level(level)


def set_level(level: str) -> None:
    """Change the level of every logger from now on."""
    global _threshold
    _threshold = LEVELS[level]
    # Libraries' debug output (a line per socket event) is never asked for by "debug" here.
    logging.getLogger().setLevel(max(_threshold, logging.INFO))


def is_shown(level: str) -> bool:
    """Whether events of that level are written now; for callers to whom making an event's values is a cost."""
    return LEVELS[level] >= _threshold


def log_context(
    *, request_id: str | None = None, sandbox_id: str | None = None, container_id: str | None = None
) -> AbstractContextManager[None]:
    """While open, events of this task and of those it starts carry these IDs; None leaves one as it is."""
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
    """One line of JSON: when, how bad, what, then the values."""
    return encode_line({"time": None, "level": None, "event": None, **event})


def encode_line(values: Mapping[str, Any]) -> str:
    """Encode values of any type: what JSON has no form for is written as text."""
    try:
        return msgspec.json.encode(values, enc_hook=str).decode()
    except (UnicodeEncodeError, TypeError, ValueError):
        # Names of files that are not UTF-8 (surrogates), keys that are not text: slower, and always possible.
        return json.dumps({str(name): value for name, value in values.items()}, default=str)
