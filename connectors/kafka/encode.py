"""Rows to messages, a block of rows at a time, as an Arrow batch of :data:`MESSAGE`. Knows nothing of producers.

A stream goes to the partition that Kafka's own partitioner gives its key, so its rows keep their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, SinkError
from connectors.kafka.client import package
from connectors.kafka.messages import CONTENT_TYPE, MEDIA_TYPES, SCHEMA, content_type
from connectors.records import FRAME, schema_name
from connectors.sinks.json_text import json_objects
from connectors.sinks.tables import Columns

__all__ = ["MESSAGE", "Encoder", "make_encoder", "standard_headers"]

_HEADER = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.binary(), nullable=False)])

MESSAGE = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("headers", pa.list_(_HEADER)),
    ]
)
"""``headers`` is null where a message has only those of its format: its type and the schema's name."""

_ARROW_ROWS = 10_000
_ENVELOPE_BYTES = 512
"""What Kafka adds to key, value and headers of a message that is alone in its batch: less than this."""


class Encoder(ABC):
    """Makes messages of rows. ``partitions`` is how many the topic has; ``max_bytes`` bounds a message."""

    def __init__(self, columns: Columns, *, partitions: int, max_bytes: int) -> None:
        self.partitions = partitions
        self.altered = 0
        """Rows that have null for a value that the format cannot hold."""
        self._columns = columns
        self._max_bytes = max_bytes - _ENVELOPE_BYTES

    @abstractmethod
    def encode(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the messages of these rows. Raise ``SinkError`` for one that is too large."""

    def _partition_of(self, streams: pa.Array) -> npt.NDArray[np.int32]:
        """Return each row's partition."""
        murmur2 = package("kafka.partitioner.default").murmur2
        coded = streams.dictionary_encode()
        names: list[str] = coded.dictionary.to_pylist()
        numbers = np.fromiter(((murmur2(n.encode()) & 0x7FFFFFFF) % self.partitions for n in names), np.int32, len(names))
        chosen: npt.NDArray[np.int32] = numbers[coded.indices.to_numpy()]
        return chosen

    def _check_sizes(self, values: pa.Array, batch: pa.RecordBatch) -> None:
        largest = pc.max(pc.binary_length(values)).as_py()
        if largest > self._max_bytes:
            row = pc.index(pc.binary_length(values), largest).as_py()
            stream, number = (batch.column(name)[row].as_py() for name in ("stream_id", "sequence"))
            raise self._too_large(largest, stream, number)

    def _too_large(self, size: int, stream: str, sequence: int) -> SinkError:
        return SinkError(
            f"a message of {size} bytes (stream {stream!r}, sequence {sequence}) is larger than {self._max_bytes} bytes; raise "
            "the sink's max_message_bytes and the topic's max.message.bytes, or leave large columns out by 'exclude'"
        )


class JsonEncoder(Encoder):
    """One JSON object per row."""

    def encode(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """See the contract."""
        chosen = self._columns.apply(batch)
        texts, altered = json_objects(chosen)
        self.altered += altered
        values = texts.view(pa.binary())
        self._check_sizes(values, batch)
        yield _messages(batch, values, self._partition_of(batch.column("stream_id")), None)


class FrameEncoder(Encoder):
    """One image per row, as it is. A row without an image becomes a message of its error, which is no image either."""

    def encode(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """See the contract."""
        missing = batch.column("image").is_null()
        errors = batch.column("error").fill_null("no image").cast(pa.binary())
        values = pc.if_else(missing, errors, batch.column("image"))
        self._check_sizes(values, batch)
        names = ("event_time", "sequence", "encoding", "height", "width")
        rows = zip(*(_plain(batch.column(name)) for name in names), strict=True)
        name = schema_name(batch.schema).encode()
        headers = [
            [
                (CONTENT_TYPE, content_type(encoding) if encoding is not None else b"text/plain"),
                ("ts_ns", b"%d" % (time_us * 1000)),
                ("seq", b"%d" % number),
                *([("h", b"%d" % height), ("w", b"%d" % width)] if height is not None and width is not None else []),
                (SCHEMA, name),
            ]
            for time_us, number, encoding, height, width in rows
        ]
        packed = pa.array([[{"name": k, "value": v} for k, v in row] for row in headers], MESSAGE.field("headers").type)
        yield _messages(batch, values, self._partition_of(batch.column("stream_id")), packed)


class ArrowEncoder(Encoder):
    """One Arrow IPC stream per partition and 10,000 rows at most, without a key: it may hold many streams."""

    def encode(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """See the contract."""
        place = self._partition_of(batch.column("stream_id"))
        present, counts = np.unique(place, return_counts=True)
        sorted_ = batch if len(present) == 1 else batch.take(pa.array(np.argsort(place, kind="stable")))
        ends = np.cumsum(counts).tolist()
        for partition, count, end in zip(present.tolist(), counts.tolist(), ends, strict=True):
            rows = sorted_.slice(end - count, count)
            for start in range(0, rows.num_rows, _ARROW_ROWS):
                yield from self._pack(rows.slice(start, _ARROW_ROWS), partition)

    def _pack(self, rows: pa.RecordBatch, partition: int) -> Iterator[pa.RecordBatch]:
        chosen = self._columns.apply(rows)
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, chosen.schema) as writer:
            writer.write_batch(chosen)
        value = buffer.getvalue()
        if value.size <= self._max_bytes:
            last = rows.slice(rows.num_rows - 1)
            yield _messages(last, _one_value(value), np.array([partition], np.int32), None, key=False)
        elif rows.num_rows == 1:
            raise self._too_large(value.size, rows.column("stream_id")[0].as_py(), rows.column("sequence")[0].as_py())
        else:
            half = rows.num_rows // 2
            yield from self._pack(rows.slice(0, half), partition)
            yield from self._pack(rows.slice(half), partition)


def make_encoder(format: str, columns: Columns, schema: pa.Schema, *, partitions: int, max_bytes: int) -> Encoder:
    """Return the encoder of a format. Raise ``ConfigError`` where it does not fit the rows."""
    if format == "frame":
        lacking = [field.name for field in FRAME if field.name not in schema.names]
        if lacking:
            raise ConfigError(f"format: frame needs rows of frames; column {lacking[0]!r} is missing from {schema.names}")
    kinds: dict[str, type[Encoder]] = {"json": JsonEncoder, "arrow": ArrowEncoder, "frame": FrameEncoder}
    return kinds[format](columns, partitions=partitions, max_bytes=max_bytes)


def standard_headers(format: str, schema: pa.Schema) -> list[tuple[str, bytes]]:
    """Return the headers of messages of ``json`` and ``arrow``."""
    if format == "frame":
        return []
    return [(CONTENT_TYPE, MEDIA_TYPES[format]), (SCHEMA, schema_name(schema).encode())]


def _messages(
    rows: pa.RecordBatch, values: pa.Array, partitions: npt.NDArray[np.int32], headers: pa.Array | None, *, key: bool = True
) -> pa.RecordBatch:
    keys = rows.column("stream_id").cast(pa.binary()) if key else pa.nulls(rows.num_rows, pa.binary())
    # Before 1970 there is no Kafka: its timestamps must not be negative.
    times_ms = np.maximum(rows.column("event_time").view(pa.int64()).to_numpy() // 1000, 0)
    columns = [pa.array(partitions), keys, values.cast(pa.binary()), pa.array(times_ms)]
    columns.append(pa.nulls(rows.num_rows, MESSAGE.field("headers").type) if headers is None else headers)
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGE)


def _one_value(buffer: pa.Buffer) -> pa.Array:
    """Return an array of one binary value, without a copy."""
    ends = pa.py_buffer(np.array([0, buffer.size], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, ends, buffer])


def _plain(column: pa.Array) -> Sequence[object]:
    values: list[object] = (column.view(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return values
