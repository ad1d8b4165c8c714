"""Asking a running pipeline: a question about each of some streams, and the answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from connectors.errors import ConfigError
from pipelines.asking.putting import Answer, Time, make_rows, put_rows, require_streams, time_values
from pipelines.asking.route import QUESTION, find_route
from pipelines.spec import PipelineSpec

__all__ = ["ask", "withdraw"]

_NAMES = {"standing": "--standing", "debounce_s": "--debounce"}
"""Control column → what messages call it."""


def ask(
    spec: PipelineSpec,
    text: str,
    streams: Sequence[str],
    *,
    at: Time | None = None,
    operator: str | None = None,
    sink: str | None = None,
    values: Mapping[str, Any] | None = None,
    standing: bool = False,
    debounce_s: float | None = None,
    timeout_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    cancelled: threading.Event | None = None,
) -> list[Answer]:
    """Put a question about each of ``streams`` and wait for the answers; return them in the order of ``streams``.

    ``at`` is the event time that it is about, an ISO 8601 time, seconds since 1970, time since the stream's first row
    (``00:05:00``) or before its newest one (``-30s``); None: now. ``values`` fill other control columns. ``standing``: the
    question stands from now on, and what comes back says so; its answers go where the operator's rows go, one each time that
    what it asks about comes into view after it has been out of view for ``debounce_s``. ``timeout_s``, ``say`` and
    ``cancelled``: see ``put_rows``.

    Raise ``ConfigError`` where the pipeline file has no way for it, another ``StreambankError`` where it cannot be put or the
    sink cannot be reached.
    """
    streams = require_streams(streams, QUESTION.word)
    route = find_route(spec, QUESTION, operator=operator, sink=sink)
    if not text.strip():
        raise ConfigError("the question is empty; say what you want to know")
    given = dict(values or {})
    if taken := {QUESTION.column, QUESTION.id_column} & given.keys():
        raise ConfigError(f"--column {min(taken)}: this column is filled already; leave it out")
    if standing:
        given |= {"standing": True, **({} if debounce_s is None else {"debounce_s": debounce_s})}
    elif debounce_s is not None:
        raise ConfigError("--debounce: has a meaning for standing questions only; give --standing, too")
    rows = make_rows(route, streams, {QUESTION.column: text, **given, **time_values(route, at)}, _NAMES)
    return put_rows(spec, route, rows, at=at, timeout_s=timeout_s, say=say, cancelled=cancelled)


def withdraw(
    spec: PipelineSpec,
    id: str,
    streams: Sequence[str],
    *,
    operator: str | None = None,
    sink: str | None = None,
    timeout_s: float | None = None,
) -> list[Answer]:
    """Let the question ``id`` about each of ``streams`` stand no longer; return what the operator says to that."""
    streams = require_streams(streams, QUESTION.word)
    route = find_route(spec, QUESTION, operator=operator, sink=sink)
    rows = make_rows(route, streams, {"standing": False}, {"standing": "--withdraw"}, id)
    return put_rows(spec, route, rows, timeout_s=timeout_s)
