"""Which column of a table is what: keys, values and their types, and records made of them, column by column.

Knows nothing of how files are read. A row whose keys cannot be used keeps its place and gets an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, SourceError, nearest
from connectors.records import KEY_FIELDS, TIME_TYPE, sample_schema
from connectors.sources.casting import convert, is_text, plain_type
from connectors.sources.channels import Channels, channel_columns, pack
from connectors.sources.event_time import times_us

__all__ = ["Layout", "parse_type", "type_name"]

_LIST = re.compile(r"list<(.+)>")
_DECIMAL = re.compile(r"decimal(128|256)?\((\d{1,2}), *(\d{1,2})\)")
_ZONED = re.compile(r"timestamp\[(s|ms|us|ns), *(?:tz=)?UTC\]")


def parse_type(name: str) -> pa.DataType:
    """Return the Arrow type called ``name``: ``double``, ``int64``, ``string``, ``timestamp[us]``, ``list<float>`` …"""
    inner = _LIST.fullmatch(name.strip())
    if inner:
        return pa.list_(parse_type(inner[1]))
    decimal = _DECIMAL.fullmatch(name.strip())
    if decimal and 1 <= int(decimal[2]) <= (38 if decimal[1] == "128" else 76) and int(decimal[3]) <= int(decimal[2]):
        wide = decimal[1] == "256" or int(decimal[2]) > 38
        return (pa.decimal256 if wide else pa.decimal128)(int(decimal[2]), int(decimal[3]))
    zoned = _ZONED.fullmatch(name.strip())
    if zoned:
        return pa.timestamp(zoned[1], "UTC")
    try:
        return pa.type_for_alias(name.strip())
    except ValueError as error:
        raise ConfigError(
            f"columns: {name!r} is no type; allowed: bool, int8 … int64, uint8 … uint64, float, double, string, binary, "
            "decimal(DIGITS, DIGITS BEHIND THE POINT), date32, timestamp[s|ms|us|ns], timestamp[s|ms|us|ns, UTC], list<TYPE>"
        ) from error


def type_name(kind: pa.DataType) -> str:
    """Return the name by which ``parse_type`` knows a type."""
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    return str(kind).replace("tz=", "")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which column of a file is what. ``raw`` is what to read, ``schema`` what comes out."""

    stream_id: str | None
    event_time: str | None
    sequence: str | None
    unit: str
    row_rate: float
    raw: pa.Schema
    schema: pa.Schema
    channels: tuple[str, ...] = ()
    """Columns that become one column ``values``, in this order."""

    @classmethod
    def of(
        cls,
        file: pa.Schema,
        where: str,
        *,
        stream_id: str | None,
        event_time: str | None,
        sequence: str | None,
        unit: str,
        row_rate: float,
        columns: Sequence[str] | None,
        channels: Channels = None,
        read_as: Callable[[str, pa.DataType], pa.DataType] = lambda _, kind: plain_type(kind),
    ) -> Layout:
        """Resolve the options against the columns of a file; a column called like a key is that key by default.

        ``read_as`` tells the type to read a column with, by its name and the type that it is meant to be; ``apply`` casts it.
        ``channels``: columns that are packed into ``values`` of a sample (``records.SAMPLE``); ``all``: those of numbers. Then
        only ``columns`` stand beside it.

        Raise ``SourceError`` for a column that does not exist or cannot be what it is meant to be.
        """
        file = pa.schema([field.with_type(plain_type(field.type)) for field in file], metadata=file.metadata)
        keys = {
            key: _find(file, name if name is not None else key, key, where, required=name is not None)
            for key, name in (("stream_id", stream_id), ("event_time", event_time), ("sequence", sequence))
        }
        if unit == "rows":
            keys["event_time"] = None
        elif keys["event_time"] is None:
            raise SourceError(
                f"{where}: no column says when a row happened; name one by event_time: …, of {file.names}, "
                "or set event_time_unit: rows (and row_rate) if rows are evenly spaced in time"
            )
        else:
            unit = _resolve_unit(file.field(keys["event_time"]), unit, where)
        used = {name for name in keys.values() if name is not None}
        packed = channel_columns(file, channels, used | set(columns or ()), where) if channels is not None else ()
        for name in packed:
            _find(file, name, "channels", where, required=True)
        if columns is not None:
            chosen = list(columns)
        else:
            chosen = [name for name in file.names if name not in used] if channels is None else []
        for name in chosen:
            _find(file, name, "columns", where, required=True)
        values = [file.field(name).with_nullable(True) for name in dict.fromkeys(chosen) if keys.get(name) != name]
        for value in values:
            if value.name in keys:
                source = repr(keys[value.name]) if keys[value.name] is not None else "the number of the row"
                raise SourceError(
                    f"{where}: column {value.name!r} would be in the way of the key {value.name!r}, which is {source}; "
                    "leave it out by listing the columns you want in columns: […]"
                )
            if value.name == "error" and value.type != pa.string():
                raise SourceError(f"{where}: column 'error' is {value.type}; it must be string, or be left out by columns: […]")
        if channels is not None and "values" in (value.name for value in values):
            raise SourceError(f"{where}: columns: 'values' is the column of all channels; rename the column of that name")
        fields = [*KEY_FIELDS, *values]
        if "error" not in (value.name for value in values):
            fields.append(pa.field("error", pa.string()))
        schema = pa.schema(fields, metadata=_kept_metadata(file)) if channels is None else sample_schema(packed, values)
        return cls(
            stream_id=keys["stream_id"],
            event_time=keys["event_time"],
            sequence=keys["sequence"],
            unit=unit,
            row_rate=row_rate,
            raw=pa.schema(
                [
                    (name, read_as(name, pa.float64() if name in packed else file.field(name).type))
                    for name in file.names
                    if name in used or name in chosen or name in packed
                ]
            ),
            schema=schema,
            channels=packed,
        )

    def apply(
        self, raw: pa.RecordBatch, errors: pa.Array | None, *, stream: str, first_row: int, time_us: int
    ) -> tuple[pa.RecordBatch, int]:
        """Make records of rows of a file, and return them with the last event time (µs).

        ``stream`` names the rows that name no stream, ``first_row`` numbers them, ``time_us`` is the event time of the row
        before. A row whose keys cannot be used keeps its place and gets an ``error``.
        """
        rows = raw.num_rows
        numbers = pa.array(np.arange(first_row, first_row + rows))
        problems = [] if errors is None else [errors]
        if self.stream_id is None:
            streams = pa.repeat(pa.scalar(stream, pa.string()), rows)  # untyped, it takes Arrow ten times as long
        else:
            streams = _strings(raw.column(self.stream_id))
            if streams.null_count:
                problems.append(_complain(streams.is_null(), f"column {self.stream_id!r} names no stream", None))
                streams = streams.fill_null(stream)
        if self.event_time is None:
            times = pa.array(np.rint(numbers.to_numpy() * (1e6 / self.row_rate)).astype(np.int64))
        else:
            source = raw.column(self.event_time)
            times = times_us(source, self.unit)
            if times.null_count:
                problems.append(_complain(times.is_null(), f"column {self.event_time!r} is no time in {self.unit!r}", source))
                times = pc.fill_null_forward(pa.concat_arrays([pa.array([time_us]), times])).slice(1)
        sequence = numbers
        if self.sequence is not None:
            source = raw.column(self.sequence)
            sequence = convert(source, pa.int64())
            if sequence.null_count:
                problems.append(_complain(sequence.is_null(), f"column {self.sequence!r} is no whole number", source))
                sequence = pc.if_else(sequence.is_null(), numbers, sequence)
        columns = {"stream_id": streams, "sequence": sequence, "event_time": times.view(TIME_TYPE)}
        if self.channels:
            columns["values"], wrong = pack(raw, self.channels)
            problems += [_complain(bad, f"channel {name!r} is no number", raw.column(name)) for name, bad in wrong]
        for field in self.schema:
            if field.name not in columns and field.name in self.raw.names:
                values = convert(raw.column(field.name), field.type)
                lost = values.null_count - raw.column(field.name).null_count
                if lost:
                    bad = pc.and_(values.is_null(), raw.column(field.name).is_valid())
                    problems.append(_complain(bad, f"column {field.name!r} is no {field.type}", raw.column(field.name)))
                columns[field.name] = values
        if problems:
            if "error" in columns:
                problems.append(columns["error"])
            columns["error"] = pc.coalesce(*problems)
        elif "error" not in columns:
            columns["error"] = pa.nulls(rows, pa.string())
        batch = pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)
        return batch, int(times[rows - 1].as_py()) if rows else time_us


def _strings(array: pa.Array) -> pa.Array:
    """Return stream ids as strings; NaN and the empty string become null."""
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    strings = convert(array, pa.string())
    empty = pc.equal(pc.binary_length(strings), 0)
    return pc.if_else(empty, None, strings) if pc.any(empty).as_py() else strings


def _complain(bad: pa.Array, text: str, values: pa.Array | None) -> pa.Array:
    """Return an error column: ``text``, with the value, in the rows that are ``bad``."""
    if values is None:
        return pc.if_else(bad, text, pa.scalar(None, pa.string()))
    messages = [f"{text}: {_show(value)}" if wrong else None for wrong, value in zip(bad.to_pylist(), values, strict=True)]
    return pa.array(messages, pa.string())


def _show(value: pa.Scalar, limit: int = 80) -> str:
    try:
        text = repr(value.as_py())
    except (ValueError, OverflowError):  # no UTF-8, or a time that Python has no object for
        return f"a {value.type} that cannot be shown"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _find(file: pa.Schema, name: str, what: str, where: str, *, required: bool) -> str | None:
    count = len(file.get_all_field_indices(name))
    if count == 1:
        return name
    if count > 1:
        raise SourceError(f"{where}: {what}: there are {count} columns called {name!r}; names must differ")
    if required:
        raise SourceError(f"{where}: {what}: no column {name!r}{nearest(name, file.names)}; there are {file.names}")
    return None


def _resolve_unit(field: pa.Field, unit: str, where: str) -> str:
    kind = field.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "iso"
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    text = is_text(kind)
    if unit == "auto" and text:
        return "iso"
    if number and unit in ("auto", "iso"):
        raise SourceError(
            f"{where}: event_time column {field.name!r} holds numbers ({kind}); "
            "say in which unit since 1970: event_time_unit: s, ms, us or ns"
        )
    if not number and not text:
        raise SourceError(f"{where}: event_time column {field.name!r} is {kind}; it must hold times, numbers or ISO 8601 text")
    return unit


def _kept_metadata(file: pa.Schema) -> dict[bytes, bytes] | None:
    """Keep what Streambank wrote into a file (schema name, class names), not what pandas and others did."""
    kept = {key: value for key, value in (file.metadata or {}).items() if key.startswith(b"streambank.")}
    return kept or None
