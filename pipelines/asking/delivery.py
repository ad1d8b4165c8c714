"""Making control rows of questions, and putting them where the pipeline takes them from: a folder of requests, or a topic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa

from connectors.errors import ConfigError, SourceError, nearest
from connectors.sources.columns import parse_type
from connectors.sources.kafka import KafkaSourceOptions
from connectors.sources.requests import RequestsOptions, put_requests
from pipelines.asking.route import Route

__all__ = ["make_rows", "put"]

_SEND_S = 30.0

Row = dict[str, Any]


def make_rows(route: Route, text: str, streams: Sequence[str], values: Mapping[str, Any]) -> list[Row]:
    """Return one control row per stream, as JSON values with an id of its own.

    ``values`` fill other columns of the control row. Raise ``ConfigError`` for a column that is not there, or a value that is
    not of its type.
    """
    if not text.strip():
        raise ConfigError(f"the {route.column} is empty; say what you want to know")
    given = {route.column: text, **values}
    taken = {route.column, route.id_column} & values.keys()
    if taken:
        raise ConfigError(f"--column {min(taken)}: this column is filled already; leave it out")
    declared: Mapping[str, str] = route.source.options.columns
    # An operator may take columns that it does not ask for; then the source declares them.
    kinds = {name: parse_type(kind) for name, kind in declared.items()} | {field.name: field.type for field in route.values}
    for name in given:
        if name not in kinds:
            allowed = [column for column in kinds if column not in (route.column, route.id_column)]
            raise ConfigError(
                f"--column {name}: operator {route.operator.name!r} takes no such column{nearest(name, allowed)}; allowed: "
                f"{', '.join(allowed) or 'none'}"
            )
    missing = [name for name in (route.id_column, *given) if name not in declared]
    if missing:
        raise ConfigError(
            f"sources.{route.source.name}.columns: lacks {', '.join(missing)}, so it would be left out; add it there"
        )
    row = {name: _json_value(name, value, kinds[name]) for name, value in given.items()}
    return [{"stream_id": stream, route.id_column: uuid4().hex, **row} for stream in streams]


def put(route: Route, rows: Sequence[Row]) -> None:
    """Put the rows where the pipeline takes them from; they are durable there when this returns.

    Raise ``SourceError`` where that is not possible.
    """
    options = route.source.options
    if isinstance(options, RequestsOptions):
        put_requests(options.path, rows)
    else:
        _send(options, rows)


def _send(options: KafkaSourceOptions, rows: Sequence[Row]) -> None:
    from connectors.kafka.client import kafka_errors, producer

    topic = options.topics[0]
    with kafka_errors(options, SourceError, f"cannot write to topic {topic!r}"):
        client = producer(options)
        try:
            sent = [client.send(topic, json.dumps(row).encode(), row["stream_id"].encode()) for row in rows]
            for future in sent:
                future.get(timeout=_SEND_S)
        finally:
            client.close()


def _json_value(name: str, value: Any, kind: pa.DataType) -> Any:
    """Return ``value`` as JSON after checking it against the column's type."""
    try:
        if pa.types.is_timestamp(kind):
            value = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
            moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value
            return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if pa.types.is_string(kind) and not isinstance(value, str):
            raise ValueError("not a text")
        checked = pa.scalar(value, kind).as_py()
        json.dumps(checked)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"--column {name}: {value!r} is no {kind}: {error}") from error
    return checked
