"""Asking a running pipeline from outside: find the way, begin to listen, put the question, wait for the answer.

The pipeline runs in another process, or on another machine; only its file is known here. A question is answered once in the
committed rows, whatever happens to the pipeline or to this process in between.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from connectors.errors import ConfigError
from connectors.sources.event_time import parse_start_time
from pipelines.asking.answers import Row, listen
from pipelines.asking.delivery import make_rows, put
from pipelines.asking.route import find_route
from pipelines.spec import PipelineSpec

__all__ = ["Answer", "ask"]

_EPOCHS = 3
_TIMEOUT_S = 60.0

Time = datetime | str | float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one stream."""

    stream_id: str
    id: str
    row: Row | None
    """The operator's row as plain values; None where none came in time."""
    seconds: float
    """From putting the question to the answer, or to giving up."""

    @property
    def ok(self) -> bool:
        """Whether the operator could answer."""
        return self.row is not None and self.row.get("status", "ok") in (None, "ok")

    @property
    def text(self) -> str | None:
        """The column ``answer``, where there is one."""
        return None if self.row is None else self.row.get("answer")


def ask(
    spec: PipelineSpec,
    text: str,
    streams: Sequence[str],
    *,
    column: str = "question",
    at: Time | None = None,
    operator: str | None = None,
    sink: str | None = None,
    values: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
) -> list[Answer]:
    """Put a question about each of ``streams`` and wait for the answers; return them in the order of ``streams``.

    ``column`` is the control column that takes the text (``question``, ``prompt``). ``at`` is the event time that it is about,
    an ISO 8601 time or seconds since 1970; None: now. ``values`` fill other control columns. ``timeout_s`` is the longest wait
    (default: a minute, or 3 epochs where these are longer). A question that is not answered in time stays where it was put,
    and the pipeline will still answer it.

    Raise ``ConfigError`` where the pipeline file has no way for it, another ``StreambankError`` where it cannot be put or the
    sink cannot be reached.
    """
    if not streams or not all(streams):
        raise ConfigError("--stream: is missing; name the stream that the question is about")
    if timeout_s is not None and not timeout_s > 0:
        raise ConfigError(f"--timeout: must be above 0 seconds, got {timeout_s:g}")
    route = find_route(spec, column, operator=operator, sink=sink)
    given = dict(values or {})
    if at is not None:
        given["at"] = _moment(at)
    streams = list(dict.fromkeys(streams))
    rows = make_rows(route, text, streams, given)
    waiting = {row[route.id_column]: row["stream_id"] for row in rows}
    answers: dict[str, Answer] = {}
    listener = listen(route, streams)
    try:
        put(route, rows)
        began_s = time.monotonic()
        ends_s = began_s + (max(_TIMEOUT_S, _EPOCHS * spec.epoch_s) if timeout_s is None else timeout_s)
        while waiting and (left_s := ends_s - time.monotonic()) > 0:
            for row in listener.take(waiting.keys(), left_s):
                id = row[route.id_column]
                if (stream := waiting.pop(id, None)) is not None:
                    answers[stream] = Answer(stream, id, row, time.monotonic() - began_s)
        missing = {stream: Answer(stream, id, None, time.monotonic() - began_s) for id, stream in waiting.items()}
    finally:
        listener.close()
    return [answers.get(stream) or missing[stream] for stream in streams]


def _moment(at: Time) -> datetime:
    if isinstance(at, datetime):
        return at
    try:
        microseconds = round(float(at) * 1e6)
    except (ValueError, OverflowError):
        try:
            microseconds = parse_start_time(str(at))
        except ConfigError:
            raise ConfigError(
                f"--at: {at!r} is no time; write ISO 8601 such as '2026-03-01T08:00:00Z', or seconds since 1970 such as 754.2"
            ) from None
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        raise ConfigError(f"--at: {at!r} is beyond the year 9999; write a time such as '2026-03-01T08:00:00Z'") from None
