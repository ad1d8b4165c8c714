"""Messages of one partition to records, a whole poll at a time. Knows nothing of consumers and positions.

What is wrong with a message stands in the ``error`` of its row; nothing here raises for the content of a message. Columns that
a message carries besides its value are called ``message key``, ``message timestamp``, ``message offset`` and ``header NAME``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, first_line, nearest
from connectors.kafka.messages import CONTENT_TYPE, encoding_of
from connectors.records import FRAME, TIME_TYPE
from connectors.sources.casting import convert
from connectors.sources.columns import Layout, parse_type
from connectors.sources.image_header import parse_header
from connectors.sources.jsonl import JsonlFormat

__all__ = ["FRAME_MESSAGE", "Decoder", "FrameDecoder", "Messages", "TableDecoder"]

FRAME_MESSAGE = FRAME.append(pa.field("time_source", pa.string()))
"""``frame.v1`` and ``time_source``: ``broker`` where a message lacked its capture time, null where it told it, ``none`` where
it had no timestamp either: the row then has the time of the row before, and an ``error``.

A capture time too far ahead of the message's timestamp counts as missing."""

KEY, TIMESTAMP, OFFSET = "message key", "message timestamp", "message offset"
_HEADER = "header:"
_NO_LIMIT = 1 << 62
_END_MS = 253_402_300_800_000
"""The year 10000."""
_NO_TIME_NS = {-1, -(1 << 63)}
"""What clients and decoders write for a capture time that they do not know."""
_NO_TIMESTAMP = "the message has no timestamp; the time of the row before stands in for it"
_ROWS_BITS = 20
"""An Arrow message numbers its rows ``offset << 20 | row``, unless a column does."""

_CHANNELS = {"raw_rgb8": 3, "raw_bgr8": 3, "raw_gray8": 1, "raw_f32_rgb": 12}
"""Encoding → bytes per pixel."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Consecutive messages of one partition, in columns."""

    where: str
    """``<topic>/<partition>``: the stream of messages without a key."""
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    headers: Sequence[Sequence[tuple[str, bytes]]]

    def __len__(self) -> int:
        return len(self.offsets)

    def header(self, name: str) -> list[bytes | None]:
        """Return one header of every message, the last one where there are two."""
        return [dict(headers).get(name) for headers in self.headers]

    def timestamps(self) -> pa.Array:
        """Return the timestamps in milliseconds; null for those that are none: -1 stands for a message without one."""
        stamps = np.asarray(self.timestamps_ms, np.int64)
        return pa.array(stamps, mask=(stamps < 0) | (stamps >= _END_MS))

    def column(self, name: str) -> pa.Array:
        """Return what messages carry besides their values; bytes that are no UTF-8, and missing timestamps, are null."""
        if name == OFFSET:
            return pa.array(self.offsets, pa.int64())
        if name == TIMESTAMP:
            return self.timestamps()
        if name == KEY:
            keys = pa.array(self.keys, pa.binary())
            return convert(keys.fill_null(self.where.encode()) if keys.null_count else keys, pa.string())
        return convert(pa.array(self.header(name.removeprefix("header ")), pa.binary()), pa.string())


class Decoder(ABC):
    """Makes records of messages."""

    schema: pa.Schema

    @abstractmethod
    def decode(self, messages: Messages, time_us: int) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """Return the records, and per message how many there are up to its end. A message gives at least one row.

        ``time_us`` is the event time of the row before the first, for rows that have none.
        """


class TableDecoder(Decoder):
    """``json`` and ``arrow``: the declared columns, keys by name of a column, ``header:NAME``, or what the message carries."""

    def __init__(
        self,
        format: str,
        columns: Mapping[str, str],
        *,
        topic: str,
        stream_id: str | None,
        event_time: str | None,
        event_time_unit: str,
        sequence: str | None,
        max_ahead_s: float | None = None,
    ) -> None:
        self._max_ahead_us = _limit_us(max_ahead_s)
        fields = [pa.field(name, parse_type(kind)) for name, kind in columns.items()]
        self._values = pa.schema(fields)
        self._carried: dict[str, pa.DataType] = {}
        stream_id = self._resolve("stream_id", stream_id, KEY, pa.string())
        sequence = self._resolve("sequence", sequence, OFFSET, pa.int64())
        event_time = self._resolve("event_time", event_time, TIMESTAMP, pa.int64())
        unit = "ms" if event_time == TIMESTAMP else event_time_unit
        carried = [pa.field(name, kind) for name, kind in self._carried.items()]
        self._layout = Layout.of(
            pa.schema([*fields, *carried]),
            f"topic {topic!r}",
            stream_id=stream_id,
            event_time=event_time,
            sequence=sequence,
            unit=unit,
            row_rate=1.0,
            columns=[name for name in columns if name not in (stream_id, event_time, sequence)],
        )
        if format == "json":
            self._values = pa.schema(
                [(name, JsonlFormat().read_as(kind)) for name, kind in zip(self._values.names, self._values.types, strict=True)]
            )
            JsonlFormat().require(self._values)
        self._parse = _parse_json if format == "json" else _parse_arrow
        self._numbered = format == "arrow"
        self.schema = self._layout.schema

    def _resolve(self, key: str, name: str | None, default: str, kind: pa.DataType) -> str:
        if name is None:
            name = key if key in self._values.names else default
        elif name.startswith(_HEADER):
            name, kind = f"header {name.removeprefix(_HEADER)}", pa.string()
        elif name in self._values.names:
            return name
        else:
            raise ConfigError(
                f"{key}: {name!r} is no column{nearest(name, self._values.names)}; declared by 'columns' are "
                f"{self._values.names}; for a header of the message write header:NAME"
            )
        if name not in self._values.names:
            self._carried[name] = kind
        return name

    def decode(self, messages: Messages, time_us: int) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """See the contract. Messages that cannot be parsed give one row with ``error``."""
        values, errors, counts = self._parse(messages.values, self._values)
        columns = dict(zip(self._values.names, values, strict=True))
        place = None if counts is None else pa.array(np.repeat(np.arange(len(messages)), counts))
        for name in self._carried:
            column = messages.column(name)
            columns[name] = column if place is None else column.take(place)
        ends = np.arange(1, len(messages) + 1) if counts is None else np.cumsum(counts)
        if self._numbered and OFFSET in columns:
            first = np.repeat(ends - np.diff(ends, prepend=0), np.diff(ends, prepend=0))
            rows = (columns[OFFSET].to_numpy() << _ROWS_BITS) | (np.arange(ends[-1]) - first)
            columns[OFFSET] = pa.array(rows)
        if self._layout.event_time == TIMESTAMP and columns[TIMESTAMP].null_count:
            missing = pc.if_else(columns[TIMESTAMP].is_null(), _NO_TIMESTAMP, pa.scalar(None, pa.string()))
            errors = missing if errors is None else pc.coalesce(errors, missing)
        raw = pa.RecordBatch.from_arrays([columns[name] for name in self._layout.raw.names], names=self._layout.raw.names)
        batch, _ = self._layout.apply(raw, errors, stream=messages.where, first_row=messages.offsets[0], time_us=time_us)
        stamps_us = messages.timestamps().fill_null(-1).to_numpy() * 1000
        if counts is not None:
            stamps_us = np.repeat(stamps_us, counts)
        return _without_future(batch, stamps_us, self._max_ahead_us), ends


class FrameDecoder(Decoder):
    """``frame``: the image as it is; time, number and size from the headers ``ts_ns``, ``seq``, ``w``, ``h`` and ``ct``."""

    schema = FRAME_MESSAGE

    def __init__(self, max_ahead_s: float | None = None) -> None:
        self._max_ahead_us = _limit_us(max_ahead_s)

    def decode(self, messages: Messages, time_us: int) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
        """See the contract. The image of a message that holds none is null."""
        rows = len(messages)
        parsed = [_parse_frame(value, headers) for value, headers in zip(messages.values, messages.headers, strict=True)]
        encodings, heights, widths, told, numbers, errors = zip(*parsed, strict=True)
        stamps = messages.timestamps()
        limits = [_NO_LIMIT if stamp is None else stamp * 1000 + self._max_ahead_us for stamp in stamps.to_pylist()]
        captured = pa.array([None if t is None or t > limit else t for t, limit in zip(told, limits, strict=True)], pa.int64())
        times = pc.coalesce(captured, pc.multiply(stamps, 1000))
        timeless = times.is_null()
        times = pc.fill_null_forward(pa.concat_arrays([pa.array([time_us], pa.int64()), times])).slice(1)
        none = pa.scalar(None, pa.string())
        streams = messages.column(KEY)
        bad_keys = streams.is_null()
        columns = {
            "stream_id": streams.fill_null(messages.where),
            "sequence": pc.coalesce(pa.array(numbers, pa.int64()), messages.column(OFFSET)),
            "event_time": times.view(TIME_TYPE),
            "image": pa.array([v if e is None else None for v, e in zip(messages.values, errors, strict=True)], pa.binary()),
            "encoding": pa.array(encodings, pa.string()),
            "height": pa.array(heights, pa.int32()),
            "width": pa.array(widths, pa.int32()),
            "error": pc.coalesce(
                pa.array(errors, pa.string()),
                pc.if_else(bad_keys, "the message's key is no UTF-8", none),
                pc.if_else(timeless, _NO_TIMESTAMP, none),
            ),
            "time_source": pc.if_else(timeless, "none", pc.if_else(captured.is_null(), "broker", none)),
        }
        batch = pa.RecordBatch.from_arrays([columns[name] for name in self.schema.names], schema=self.schema)
        return batch, np.arange(1, rows + 1)


def _limit_us(max_ahead_s: float | None) -> int:
    return _NO_LIMIT // 2 if max_ahead_s is None else round(max_ahead_s * 1e6)


def _without_future(batch: pa.RecordBatch, stamps_us: npt.NDArray[np.int64], max_ahead_us: int) -> pa.RecordBatch:
    """Put the message's timestamp for event times too far ahead of it, and say so in ``error``.

    One such row would carry the watermark with it and make all rows after it late. The clock of this machine is not asked: a
    replay must give the same rows.
    """
    times_us = batch.column("event_time").view(pa.int64()).to_numpy()
    ahead = (times_us - stamps_us > max_ahead_us) & (stamps_us >= 0)  # negative: the message has none
    if not ahead.any():
        return batch
    problem = f"event_time is more than {max_ahead_us / 1e6:g} s ahead of the message's timestamp, which stands in for it"
    errors = pc.coalesce(batch.column("error"), pc.if_else(pa.array(ahead), problem, pa.scalar(None, pa.string())))
    held = pa.array(np.where(ahead, stamps_us, times_us)).view(TIME_TYPE)
    columns = {**dict(zip(batch.schema.names, batch.columns, strict=True)), "event_time": held, "error": errors}
    return pa.RecordBatch.from_arrays([columns[name] for name in batch.schema.names], schema=batch.schema)


_Parsed = tuple[list[pa.Array], pa.Array | None, npt.NDArray[np.int64] | None]
"""Columns, an error per row or None, rows per message or None for one each."""


def _parse_json(values: Sequence[bytes], columns: pa.Schema) -> _Parsed:
    if not len(columns):
        raise ConfigError("columns: name at least one column of the messages, as {name: type}")
    rows, errors = JsonlFormat().rows(values, columns)
    return rows.columns, errors, None


def _parse_arrow(values: Sequence[bytes], columns: pa.Schema) -> _Parsed:
    tables: list[pa.Table] = []
    problems: list[pa.Array] = []
    counts = np.empty(len(values), np.int64)
    for number, value in enumerate(values):
        problem = None
        try:
            table = pa.ipc.open_stream(pa.py_buffer(value)).read_all()
            table.validate(full=True)  # offsets of a damaged message may point anywhere
            if not 0 < table.num_rows <= 1 << _ROWS_BITS:
                problem = f"an Arrow message must hold 1 to {1 << _ROWS_BITS} rows, this one has {table.num_rows}"
        except Exception as error:  # whatever Arrow makes of the bytes
            problem = f"no Arrow IPC stream: {first_line(error)}"
        if problem is not None:
            table = pa.Table.from_arrays([pa.nulls(1, kind) for kind in columns.types], schema=columns)
        conformed, lost = _conform(table, columns)
        tables.append(conformed)
        problems.append(lost if problem is None else pa.repeat(pa.scalar(problem, pa.string()), table.num_rows))
        counts[number] = table.num_rows
    whole = pa.concat_tables(tables).combine_chunks()
    arrays = [column.chunk(0) for column in whole.columns]
    errors = pa.concat_arrays(problems)
    return arrays, errors if errors.null_count < len(errors) else None, counts


def _conform(table: pa.Table, columns: pa.Schema) -> tuple[pa.Table, pa.Array]:
    """Return ``table`` with exactly ``columns``, null what it lacks and what cannot be cast, and an error per row."""
    none = pa.nulls(table.num_rows, pa.string())
    if table.schema.equals(columns):
        return table, none
    arrays = []
    errors = [none]
    for field in columns:
        if table.schema.names.count(field.name) == 1:
            column = table.column(field.name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
            arrays.append(convert(column, field.type))
            if arrays[-1].null_count > column.null_count:
                lost = pc.and_(arrays[-1].is_null(), column.is_valid())
                errors.append(pc.if_else(lost, _reasons(field, column), none))
        else:
            arrays.append(pa.nulls(table.num_rows, field.type))
            if field.name in table.schema.names:
                errors.append(pa.repeat(f"there are several columns called {field.name!r}", table.num_rows))
    return pa.Table.from_arrays(arrays, schema=columns), pc.coalesce(*errors) if len(errors) > 1 else none


def _reasons(field: pa.Field, column: pa.Array) -> pa.Array | str:
    """Say of each value that it does not fit; of types without a text only which they are."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return f"column {field.name!r} is {column.type} and no {field.type}"
    shown = pc.utf8_slice_codeunits(column.cast(pa.string()), 0, 100)
    return pc.binary_join_element_wise(f"column {field.name!r}: '", shown, f"' is no {field.type}", "")


_Frame = tuple[str | None, int | None, int | None, int | None, int | None, str | None]
"""Encoding, height, width, time in µs, number, error."""


def _parse_frame(value: bytes, headers: Sequence[tuple[str, bytes]]) -> _Frame:
    named = dict(headers)
    time_ns, number = _whole(named.get("ts_ns")), _whole(named.get("seq"))
    time_us = None if time_ns is None or time_ns in _NO_TIME_NS else time_ns // 1000
    try:
        header = parse_header(value)
        if header is not None:
            return header.encoding, header.height, header.width, time_us, number, None
        height, width = _whole(named.get("h")), _whole(named.get("w"))
        encoding = encoding_of(named.get(CONTENT_TYPE, b""))
        if encoding in _CHANNELS and height is not None and width is not None:
            wanted = height * width * _CHANNELS[encoding]
            if len(value) == wanted:
                return encoding, height, width, time_us, number, None
            raise ValueError(f"{encoding} of {width}x{height} has {wanted} bytes, this message {len(value)}")
        raise ValueError(f"neither JPEG nor PNG, and no raw image by its headers {sorted(named)}")
    except ValueError as error:
        return None, None, None, time_us, number, str(error)


def _whole(text: bytes | None) -> int | None:
    """Return a header's number; None where it is missing or none that fits into 64 bits."""
    if text is None or not text.removeprefix(b"-").isdigit() or len(text) > 19:
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None
