"""One form of log lines for the driver and its actors: text, or one JSON object per line with what the line is about.

The fields ``pipeline``, ``attempt``, ``task`` and ``epoch`` (the last one committed; in a task: acknowledged) are set by those
who run a pipeline and added to every line, also of other libraries; who logs need not know them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["FORMATS", "LogFormat", "about_process", "about_thread", "formatter", "log_format"]

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
