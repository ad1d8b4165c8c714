"""Logging of the command line: one line per event on standard error, as text or as JSON."""

from __future__ import annotations

import logging
import os

import click

from pipelines.runtime.logs import LogFormat, Repeats, formatter

__all__ = ["LEVELS", "set_up_logging"]

LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Send the log of this process to standard error, replacing what an earlier call has set up."""
    if log_format == "json":
        # Else Ray leaves out lines of actors that resemble each other. Ray reads this when it is imported, later.
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    handler = _StandardError()
    handler.setFormatter(formatter(log_format))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known, _StandardError)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


class _StandardError(logging.Handler):
    """Writes to the standard error of the moment, so that a progress display can take the lines over."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except Exception:
            self.handleError(record)
