"""One form of log lines for the driver and its actors: text, or one JSON object per line with what the line is about.

The fields ``pipeline``, ``attempt``, ``task`` and ``epoch`` (the last one committed; in a task: acknowledged) are set by those
who run a pipeline and added to every line, also of other libraries; who logs need not know them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["FORMATS", "LogFormat", "Repeats", "about_process", "about_thread", "formatter", "log_format"]

LogFormat = Literal["text", "json"]
FORMATS: tuple[LogFormat, ...] = ("text", "json")

_process: dict[str, Any] = {}
_thread: ContextVar[Callable[[], Mapping[str, Any]] | None] = ContextVar("streambank_log_fields", default=None)
_format: LogFormat = "text"


def about_process(**fields: Any) -> None:
    """Set fields of all lines of this process; None takes one away."""
    _process.update(fields)
    for name in [name for name, value in _process.items() if value is None]:
        del _process[name]


def about_thread(fields: Callable[[], Mapping[str, Any]]) -> None:
    """Set fields of the lines of this thread; they are asked for when a line is written, and win over the process's."""
    _thread.set(fields)


def formatter(form: LogFormat) -> logging.Formatter:
    """Return a formatter and take its form for that of this process and of the actors it makes."""
    global _format
    _format = form
    return _Json() if form == "json" else _Text("%(asctime)s %(levelname)s %(name)s %(message)s")


def log_format() -> LogFormat:
    """Return the form of this process's log lines."""
    return _format


class Repeats(logging.Filter):
    """Lets a line of a client library through once a minute, however often the library says it.

    A client that finds no broker says so four times a second for as long as there is none. Our own lines all pass.
    """

    def __init__(self, libraries: Collection[str] = ("kafka",), every_s: float = 60.0) -> None:
        super().__init__()
        self._libraries = frozenset(libraries)
        self._every_s = every_s
        self._said: dict[tuple[str, int], float] = {}
        """Logger and line of the library's source → when it was last let through."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written."""
        if record.name.partition(".")[0] not in self._libraries:
            return True
        line = (record.name, record.lineno)
        if record.created - self._said.get(line, -self._every_s) < self._every_s:
            return False
        self._said[line] = record.created
        return True


def _fields() -> dict[str, Any]:
    own = _thread.get()
    return {**_process, **(own() if own is not None else {})}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        task = _fields().get("task")
        return line if task is None or "task=" in line else f"{line} task={task}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_fields(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
