"""Putting control rows into a running pipeline from outside, and waiting for what its operator says to each.

The pipeline runs in another process, or on another machine; only its file is known here. A row is answered once in the
committed rows, whatever happens to the pipeline or to this process in between. What sources and sinks there are, and how they
are reached, is their own concern: this asks ``Source.put`` and ``Sink.tail``.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pyarrow as pa

from connectors.base import Row
from connectors.errors import ConfigError, SinkError, nearest
from connectors.records import KEY_FIELDS
from pipelines.asking.route import Route
from pipelines.runtime.keys import shard_of
from pipelines.spec import PipelineSpec

__all__ = ["GOOD", "Answer", "Time", "make_rows", "moment", "offset_s", "put_rows", "require_streams", "time_values"]

_EPOCHS = 3
_QUIET_S = 2.0
_TIMEOUT_S = 60.0
_LOOK_S = 0.25
"""How often is looked whether anybody still waits."""

GOOD = (None, "ok", "standing", "withdrawn")
"""Statuses of rows by which nothing is wrong."""

_OFFSET = "at_offset_s"
_FILM_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)")
_BEFORE_NOW = re.compile(r"-(\d+(?:\.\d+)?)\s*(s|min|m|h)")
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600}

Time = datetime | str | float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one stream."""

    stream_id: str
    id: str
    row: Row | None
    """The operator's row as plain values; None where none came in time."""
    seconds: float
    """From putting the row to the answer, or to giving up."""

    @property
    def ok(self) -> bool:
        """Whether the operator could answer."""
        return self.row is not None and self.row.get("status", "ok") in GOOD

    @property
    def text(self) -> str | None:
        """The column ``answer``, where there is one."""
        return None if self.row is None else self.row.get("answer")


def require_streams(streams: Sequence[str], word: str) -> list[str]:
    """Return different streams in order. Raise ``ConfigError`` where there is none."""
    if not streams or not all(streams):
        raise ConfigError(f"--stream: is missing; name the stream that the {word} is about")
    return list(dict.fromkeys(streams))


def time_values(route: Route, at: Time | None) -> dict[str, Any]:
    """Return the column that says what time a row is about: ``at``, or ``at_offset_s`` for times relative to the stream.

    Raise ``ConfigError`` where the source does not deliver that column.
    """
    if at is None:
        return {}
    seconds = offset_s(at)
    if seconds is None:
        return {"at": moment(at)}
    if _OFFSET not in route.inlet.schema.names:
        raise ConfigError(
            f"--at {at}: sources.{route.source.name}.columns lacks {_OFFSET}, which takes times of this form; add "
            f"'{_OFFSET}: double' there, or give an ISO 8601 time"
        )
    return {_OFFSET: seconds}


def make_rows(
    route: Route,
    streams: Sequence[str],
    given: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    id: str | None = None,
) -> list[Row]:
    """Return one control row per stream, as JSON values with ``id``, or an id of its own each.

    ``given`` fills columns; ``names`` is what messages call them where that is not ``--column NAME``. Raise ``ConfigError`` for
    a column that is not there, or a value that is not of its type.
    """
    id_column, names = route.request.id_column, names or {}
    keys = {field.name for field in KEY_FIELDS}
    # An operator may take columns that it does not ask for; then the source delivers them.
    delivered = {field.name: field.type for field in route.inlet.schema if field.name not in keys}
    kinds = delivered | {field.name: field.type for field in route.values}
    for name in given:
        if name not in kinds or name == "error":
            taken = (route.request.column, id_column, "error")
            allowed = [column for column in kinds if column not in taken]
            raise ConfigError(
                f"{names.get(name, f'--column {name}')}: operator {route.operator.name!r} takes no such column"
                f"{nearest(name, allowed)}; allowed: {', '.join(allowed) or 'none'}"
            )
    missing = [name for name in (id_column, *given) if name not in delivered]
    if missing:
        raise ConfigError(
            f"sources.{route.source.name}.columns: lacks {', '.join(missing)}, so it would be left out; add it there"
        )
    row = {name: _json_value(names.get(name, f"--column {name}"), value, kinds[name]) for name, value in given.items()}
    return [{"stream_id": stream, id_column: id or uuid4().hex, **row} for stream in streams]


def put_rows(
    spec: PipelineSpec,
    route: Route,
    rows: Sequence[Row],
    *,
    at: Time | None = None,
    timeout_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    cancelled: threading.Event | None = None,
) -> list[Answer]:
    """Put rows where the pipeline takes them and wait for the answers; return them in the order of ``rows``.

    ``timeout_s`` is the longest wait (default: a minute, or 3 epochs where these are longer). A row that is not answered in
    time stays where it was put, and the pipeline will still answer it. ``say`` gets a text when one with a time ``at`` seems to
    wait for a time to come. ``cancelled``: once it is set nobody waits any longer. Raise ``StreambankError`` where rows cannot
    be put or the sink cannot be reached.
    """
    if timeout_s is not None and not timeout_s > 0:
        raise ConfigError(f"--timeout: must be above 0 seconds, got {timeout_s:g}")
    id_column = route.request.id_column
    streams = [row["stream_id"] for row in rows]
    waiting = {(row[id_column], row["stream_id"]) for row in rows}
    answers: dict[str, Answer] = {}
    shards = sorted({shard_of(stream, route.sink.shards) for stream in streams})
    try:
        # Followed before the rows are put, so that no answer is missed.
        tail = route.outlet.tail(route.answers, id_column, streams, shards)
    except SinkError as error:
        raise SinkError(f"sinks.{route.sink.name}: {error}") from error
    try:
        route.inlet.put(rows)
        began_s = time.monotonic()
        ends_s = began_s + (max(_TIMEOUT_S, _EPOCHS * spec.epoch_s) if timeout_s is None else timeout_s)
        quiet_s = None if at is None else began_s + _QUIET_S + _EPOCHS * spec.epoch_s  # until then an answer may be on its way
        while waiting and (left_s := ends_s - time.monotonic()) > 0 and not (cancelled is not None and cancelled.is_set()):
            if quiet_s is not None and time.monotonic() >= quiet_s:
                quiet_s = None
                about = ", ".join(stream for stream in streams if stream not in answers)
                say(f"{about}: no answer yet; a time to come is waited for: {at} ({left_s:.0f} s left)")
            wait_s = left_s if quiet_s is None else min(left_s, max(quiet_s - time.monotonic(), 0.001))
            wait_s = wait_s if cancelled is None else min(wait_s, _LOOK_S)
            for row in tail.take({id for id, _ in waiting}, wait_s):
                own = (row[id_column], row["stream_id"])
                if own in waiting:
                    waiting.discard(own)
                    answers[own[1]] = Answer(own[1], own[0], row, time.monotonic() - began_s)
        missing = {stream: Answer(stream, id, None, time.monotonic() - began_s) for id, stream in waiting}
    finally:
        tail.close()
    return [answers.get(stream) or missing[stream] for stream in streams]


def _json_value(what: str, value: Any, kind: pa.DataType) -> Any:
    """Return ``value`` as JSON after checking it against the column's type."""
    try:
        if pa.types.is_timestamp(kind):
            value = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
            when: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value
            return when.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if pa.types.is_string(kind) and not isinstance(value, str):
            raise ValueError("not a text")
        checked = pa.scalar(value, kind).as_py()
        json.dumps(checked)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{what}: {value!r} is no {kind}: {error}") from error
    return checked


def offset_s(at: Time) -> float | None:
    """Return the seconds that a film time (``00:05:00``) or a time before now (``-30s``) stands for; None for other times."""
    if not isinstance(at, str):
        return None
    if film := _FILM_TIME.fullmatch(at.strip()):
        hours, minutes, seconds = film.groups(default="0")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if before := _BEFORE_NOW.fullmatch(at.strip()):
        return -float(before[1]) * _UNITS_S[before[2]]
    return None


def moment(at: Time, what: str = "--at") -> datetime:
    """Return an absolute time; ``what`` is what messages call it."""
    from connectors.sources.event_time import parse_start_time

    if isinstance(at, datetime):
        return at
    try:
        microseconds = round(float(at) * 1e6)
    except (ValueError, OverflowError):
        try:
            microseconds = parse_start_time(str(at))
        except ConfigError:
            relative = (
                ""
                if what != "--at"
                else (", time since the stream's first row such as 00:05:00, or before its newest one such as -30s")
            )
            raise ConfigError(
                f"{what}: {at!r} is no time; write ISO 8601 such as '2026-03-01T08:00:00Z', seconds since 1970 such as 754.2"
                f"{relative}"
            ) from None
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        raise ConfigError(f"{what}: {at!r} is beyond the year 9999; write a time such as '2026-03-01T08:00:00Z'") from None
