"""Source: topics of Kafka, one split per partition. Positions are offsets and live in the epoch's manifest, not in a group.

Rows come in the order of their offsets. An empty message ends the stream that its key names.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.base import Position, Reader, Row, Source
from connectors.errors import ConfigError, SourceError, nearest
from connectors.kafka.client import ConnectionOptions, consumer, kafka_errors, package, producer
from connectors.kafka.decode import Decoder, FrameDecoder, Messages, TableDecoder
from connectors.kafka.messages import MessageFormat
from connectors.options import REQUIRED, option
from connectors.sources.columns import parse_type
from connectors.sources.event_time import MessageTimeUnit, parse_start_time
from connectors.sources.paced import rows_within

if TYPE_CHECKING:
    from connectors.kafka.feed import ConsumerRecord, Feed, TopicPartition

__all__ = ["KafkaReader", "KafkaSource", "KafkaSourceOptions"]


_SEND_S = 30.0
"""How long the brokers may take to confirm a row that is put into a topic."""


@dataclass(frozen=True, kw_only=True)
class KafkaSourceOptions(ConnectionOptions):
    """Options of the source ``kafka``."""

    topic: str | list[str] = option(REQUIRED, "Topic, or a list of topics of the same format.")
    format: MessageFormat = option(
        "json",
        "What a message holds: json, one object; arrow, an Arrow IPC stream of any number of rows; frame, one image.",
    )
    columns: dict[str, str] | None = option(
        None, "Columns of json and arrow messages as {name: type}; what else a message holds is left out."
    )
    stream_id: str | None = option(
        None,
        "Column, or header:NAME, that names the stream; nothing: the column 'stream_id' if declared, else the message key.",
    )
    event_time: str | None = option(
        None,
        "Column, or header:NAME, that says when a row happened; nothing: the column 'event_time' if declared, else the "
        "message's timestamp.",
    )
    event_time_unit: MessageTimeUnit = option(
        "auto",
        "Notation of event_time: s, ms, us, ns since 1970 UTC; iso (ISO 8601 text); auto for text and time columns.",
    )
    max_ahead_s: float | None = option(
        3600.0,
        "An event_time further than this ahead of its message's timestamp is replaced by that; null: any time is taken.",
        unit="s",
        ge=0,
    )
    sequence: str | None = option(
        None,
        "Column, or header:NAME, that counts the rows of a stream; nothing: the column 'sequence' if declared, else offsets.",
    )
    start: str = option(
        "earliest", "Where a first run begins: earliest, latest, or the first message of an ISO 8601 time or later."
    )
    until: Literal["never", "latest"] = option(
        "never",
        "never: read on for ever; latest: end at what each partition held when the run began.",
    )
    on_gap: Literal["fail", "earliest", "latest"] = option(
        "fail",
        "What to do where messages were deleted before they were read: fail, or go on at the earliest or the latest message.",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = option(
        "read_committed",
        "read_uncommitted also delivers messages of transactions that are open or were aborted.",
    )
    discover_s: float = option(60.0, "How often to look for new partitions.", unit="s", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.topics or not all(self.topics):
            raise ConfigError("topic: is empty; name at least one topic")
        if self.start not in ("earliest", "latest"):
            try:
                parse_start_time(self.start)
            except ConfigError:
                raise ConfigError(
                    f"start: must be earliest, latest or an ISO 8601 time such as '2026-03-01T08:00:00Z', got {self.start!r}"
                ) from None
        if self.format == "frame":
            for name in ("columns", "stream_id", "event_time", "sequence"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name}: has no effect with format: frame, whose columns are fixed; leave it out")
        elif not self.columns:
            raise ConfigError(f"columns: is missing; declare the columns of the {self.format} messages as {{name: type}}")
        for kind in (self.columns or {}).values():
            parse_type(kind)

    @property
    def topics(self) -> list[str]:
        """The topics."""
        return [self.topic] if isinstance(self.topic, str) else self.topic


class KafkaSource(Source):
    """Partitions of topics. A split is called ``<topic>/<partition>``."""

    Options = KafkaSourceOptions
    options: KafkaSourceOptions
    appeared_at: ClassVar[Position | None] = {"start": "earliest"}

    def __init__(self, options: KafkaSourceOptions) -> None:
        super().__init__(options)
        self.bounded = self.splits_end = options.until == "latest"
        self.bulky = options.format == "frame"
        self._decoder: Decoder | None = None
        self._shared: Feed | None = None
        self._readers = 0
        self._known: set[str] = set()

    @property
    def schema(self) -> pa.Schema:
        """The declared columns with keys and ``error``, or ``frame.v1`` with ``time_source``."""
        return self._get_decoder().schema

    def splits(self) -> list[str]:
        """Ask the brokers for the partitions of all topics."""
        options = self.options
        with kafka_errors(options, SourceError, "cannot list topics"):
            client = consumer(options, bootstrap_s=self.listing_s)
            try:
                partitions = {topic: client.partitions_for_topic(topic) for topic in options.topics}
                missing = next((topic for topic, numbers in partitions.items() if not numbers), None)
                others = sorted(client.topics()) if missing is not None else []
            finally:
                client.close()
        if missing is not None:
            raise SourceError(
                f"topic {missing!r} is not there{nearest(missing, others)}, or this user may not see it; the brokers at "
                f"{','.join(options.servers)} show {len(others)} topics: {', '.join(others[:8])}"
            )
        splits = [f"{topic}/{number}" for topic, numbers in partitions.items() for number in sorted(numbers)]
        self._known.update(splits)
        return splits

    def discover(self) -> list[str]:
        """Return partitions that have been added since they were last listed."""
        if self.bounded or self._shared is None:
            return []
        listed = [f"{topic}/{number}" for topic in self.options.topics for number in self._shared.partitions(topic)]
        new = [split for split in listed if split not in self._known]
        self._known.update(new)
        return new

    def grown(self, split: str, position: Position) -> Position | None:
        """Return the position with the end that the partition has now, where it holds more than then."""
        if not self.bounded:
            return {**position, "end": None}
        package()  # says what to install where it is missing
        from connectors.kafka.feed import TopicPartition

        topic, _, number = split.rpartition("/")
        feed = self._open_feed()
        self._readers += 1
        try:
            _, end = feed.range(TopicPartition(topic, int(number)))
        finally:
            self._release()
        return {**position, "end": end} if end > int(position["offset"]) else None

    def open(self, split: str, position: Position | None) -> KafkaReader:
        """Open a partition. ``SourceError`` names both offsets where messages behind the position are gone."""
        package()  # says what to install where it is missing
        from connectors.kafka.feed import TopicPartition

        topic, _, number = split.rpartition("/")
        partition = TopicPartition(topic, int(number))
        feed = self._open_feed()
        begin, end = feed.range(partition)
        start = self.options.start if position is None else position.get("start")
        if start is None:
            assert position is not None
            now = position if self.bounded else {**position, "end": None}
        else:
            if start == "earliest":
                offset = begin
            elif start == "latest":
                offset = end
            else:
                found = feed.offset_at(partition, max(0, parse_start_time(start) // 1000))
                offset = end if found is None else found
            now = {"offset": offset, "row": 0, "time_us": 0, "end": end if self.bounded else None}
        last = now["end"]
        offset = int(now["offset"])
        if last is None or offset < last:
            opened = feed.open(partition, offset)
            now = now if opened == offset else {**now, "offset": opened, "row": 0}
        self._readers += 1
        return KafkaReader(feed, partition, self._get_decoder(), now, self._release)

    def require_puttable(self) -> None:
        """A message must say by its key and timestamp what stream and time it has: then any row can be written."""
        options = self.options
        problem = None
        if options.format != "json":
            problem = f"format is {options.format}; only json can be written"
        elif options.stream_id not in (None, "stream_id"):
            problem = f"stream_id is {options.stream_id!r}; leave it out, so that the message's key names the stream"
        elif options.event_time is not None or "event_time" in (options.columns or {}):
            problem = "event_time is a column; leave it out, so that it is the time of the message"
        elif options.sequence is not None or "sequence" in (options.columns or {}):
            problem = "sequence is a column; leave it out, so that it is the offset of the message"
        if problem is not None:
            raise ConfigError(problem)

    def put(self, rows: Sequence[Row]) -> None:
        """Send one message per row to the first topic, under the key of its stream; all in-sync replicas have it."""
        topic = self.options.topics[0]
        with kafka_errors(self.options, SourceError, f"cannot write to topic {topic!r}"):
            client = producer(self.options)
            try:
                sent = [client.send(topic, json.dumps(row).encode(), row["stream_id"].encode()) for row in rows]
                for future in sent:
                    future.get(timeout=_SEND_S)
            finally:
                client.close()

    def _get_decoder(self) -> Decoder:
        if self._decoder is None:
            options = self.options
            if options.format == "frame":
                self._decoder = FrameDecoder(options.max_ahead_s)
            else:
                self._decoder = TableDecoder(
                    options.format,
                    options.columns or {},
                    topic=", ".join(options.topics),
                    stream_id=options.stream_id,
                    event_time=options.event_time,
                    event_time_unit=options.event_time_unit,
                    sequence=options.sequence,
                    max_ahead_s=options.max_ahead_s,
                )
        return self._decoder

    def _open_feed(self) -> Feed:
        """Return the consumer that all readers of this object share."""
        package()  # says what to install where it is missing
        from connectors.kafka.feed import Feed

        if self._shared is None:
            options = self.options
            self._shared = Feed(
                options, isolation_level=options.isolation_level, on_gap=options.on_gap, refresh_s=options.discover_s
            )
        return self._shared

    def _release(self) -> None:
        """Close the consumer with its last reader."""
        self._readers -= 1
        if self._readers == 0 and self._shared is not None:
            self._shared.close()
            self._shared = None


class KafkaReader(Reader):
    """Reads one partition. Position: offset of the next message, next row in it, event time of the row before, where to end."""

    def __init__(
        self, feed: Feed, partition: TopicPartition, decoder: Decoder, position: Position, release: Callable[[], None]
    ) -> None:
        self._feed = feed
        self._partition = partition
        self._where = f"{partition.topic}/{partition.partition}"
        self._decoder = decoder
        self._release = release
        self._offset = int(position["offset"])
        self._skip = int(position["row"])
        self._time_us = int(position["time_us"])
        self._end: int | None = position["end"]
        self._first = self._offset
        self._batch: pa.RecordBatch | None = None
        self._at = 0
        self._offsets: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._ends: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._next = self._offset
        self._ending: Sequence[str] = ()
        self._closed = False
        self.exhausted = self._end is not None and self._offset >= self._end

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next rows of the partition, or None where there are none now."""
        self.ended = ()
        if self._batch is None and not self.exhausted:
            self._load(max_rows)
        if self._batch is None:
            return None
        rows = rows_within(self._batch, self._at, max_rows, max_bytes)
        batch = self._batch.slice(self._at, rows)
        self._at += rows
        self._time_us = batch.column("event_time")[rows - 1].value
        if self._at == self._batch.num_rows:
            self._pass()
        return batch

    @property
    def dropped(self) -> Mapping[str, int]:  # type: ignore[override]
        """Messages that were deleted before they were read, where ``on_gap`` accepts that."""
        number = self._feed.passed_over[self._partition]
        return {"messages were deleted from the topic before they were read (on_gap)": number} if number else {}

    def position(self) -> Position:
        """Return the next row."""
        offset, row = self._offset, self._skip
        if self._batch is not None:
            message = int(np.searchsorted(self._ends, self._at, side="right"))
            offset = int(self._offsets[message])
            row = self._at - (int(self._ends[message - 1]) if message else 0)
        return {"offset": offset, "row": row, "time_us": self._time_us, "end": self._end}

    def next_due(self) -> float | None:
        """Return 0.0 while messages come, else None."""
        return 0.0 if self._feed.lively else None

    def total_rows(self) -> int | None:
        """Return the number of offsets up to the end, where there is one: an estimate, since not every offset is a row."""
        return None if self._end is None else max(0, self._end - self._first)

    def close(self) -> None:
        """Stop to fetch this partition. May be called twice."""
        if not self._closed:
            self._closed = True
            self._batch = None
            self._feed.close_partition(self._partition)
            self._release()

    def _load(self, most: int) -> None:
        """Take messages, up to and with the next run of empty ones, and decode them."""
        records = self._feed.take(self._partition, most)
        at_end = False
        if self._end is not None and records and records[-1].offset >= self._end:
            records = records[: bisect_left(records, self._end, key=lambda record: record.offset)]
            at_end = True
        if records:
            filled, empty = _cut(records)
            if filled + empty < len(records):
                self._feed.give_back(self._partition, records[filled + empty :])
                at_end = False
            self._next = int(records[filled + empty - 1].offset) + 1
            self._ending = _stream_ids(records[filled : filled + empty])
            if filled:
                self._decode(records[:filled])
        elif self._end is not None:  # the last offsets may be markers of transactions, or were compacted away
            self._next = max(self._next, self._feed.passed(self._partition))
        if at_end:
            self._next = self._end or 0
        if self._batch is None:
            self._pass()

    def _decode(self, records: Sequence[ConsumerRecord]) -> None:
        _, _, _, offsets, times, _, keys, values, headers, *_ = zip(*records, strict=True)
        if not all(values):
            values = tuple(value or b"" for value in values)
        messages = Messages(self._where, offsets, times, keys, values, headers)
        self._batch, self._ends = self._decoder.decode(messages, self._time_us)
        self._offsets = np.asarray(offsets)
        self._at = self._skip if offsets[0] == self._offset and self._skip < self._ends[0] else 0

    def _pass(self) -> None:
        """Leave behind what has been delivered."""
        self._batch, self._offset, self._skip = None, self._next, 0
        self.ended, self._ending = self._ending, ()
        self.exhausted = self._end is not None and self._offset >= self._end


def _cut(records: Sequence[ConsumerRecord]) -> tuple[int, int]:
    """Return how many messages with content come first, and how many without one follow them."""
    values = [record.value for record in records]
    if all(values):
        return len(values), 0
    keys = [record.key for record in records]
    first = next((i for i, value in enumerate(values) if not value and keys[i]), len(values))
    after = next((i for i in range(first, len(values)) if values[i] or not keys[i]), len(values))
    return first, after - first


def _stream_ids(tombstones: Sequence[ConsumerRecord]) -> list[str]:
    return list(dict.fromkeys(record.key.decode("utf-8", "replace") for record in tombstones))
