"""One consumer for all partitions that a source task reads: hands each its messages in order, and guards its offsets.

Partitions are assigned by hand, so there is no group and no rebalance. A partition whose messages are not taken is left out of
the assignment until they are, so what waits here is bounded. Used by one thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kafka import TopicPartition  # type: ignore[import-untyped, unused-ignore]
from kafka.consumer.fetcher import ConsumerRecord  # type: ignore[import-untyped, unused-ignore]
from kafka.errors import LogTruncationError, OffsetOutOfRangeError  # type: ignore[import-untyped, unused-ignore]

from connectors.errors import SourceError
from connectors.kafka.client import ConnectionOptions, consumer, kafka_errors

__all__ = ["ConsumerRecord", "Feed", "TopicPartition"]

_FETCH_BYTES = 32 << 20
_PARTITION_BYTES = 8 << 20
"""Most that a broker sends of one partition at a time; it always sends at least one batch, however large."""

_WAIT_S = 0.005
"""How long a poll that finds nothing waits, and how long none is made after it: idle partitions must not hold up others."""

_LIVELY_S = 0.1

_POLLS_WAITING = 2
"""Polls' worth of messages of one partition that may wait while others are read."""

logger = logging.getLogger(__name__)


class Feed:
    """The messages of any number of partitions. ``on_gap``: fail, earliest or latest, for offsets that are gone."""

    def __init__(
        self,
        options: ConnectionOptions,
        *,
        isolation_level: str,
        on_gap: str,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._on_gap = on_gap
        self.passed_over: Counter[TopicPartition] = Counter()
        """Messages that were skipped since they, or some before them, had been deleted."""
        self._clock = clock
        self._waiting: dict[TopicPartition, list[ConsumerRecord]] = {}
        # Not by pause and resume: kafka-python 3.0 may keep what it had fetched of a resumed partition to itself for ever.
        self._left_out: dict[TopicPartition, int] = {}  # with the offset to go on at
        self._empty_at = -1.0
        self._data_at = -1.0
        with kafka_errors(options, SourceError, "cannot connect"):
            self._consumer = consumer(
                options,
                isolation_level=isolation_level,
                fetch_max_bytes=_FETCH_BYTES,
                max_partition_fetch_bytes=_PARTITION_BYTES,
                metadata_max_age_ms=max(1, int(refresh_s * 1000)),
            )

    @property
    def lively(self) -> bool:
        """Whether there were messages a moment ago, so that it is worth asking again at once."""
        return self._clock() - self._data_at < _LIVELY_S

    def partitions(self, topic: str) -> list[int]:
        """Return the numbers of a topic's partitions; they are asked for again every ``refresh_s``."""
        with kafka_errors(self._options, SourceError, f"cannot list the partitions of topic {topic!r}"):
            return sorted(self._consumer.partitions_for_topic(topic))

    def range(self, partition: TopicPartition) -> tuple[int, int]:
        """Return the first offset that the brokers hold and the one behind the last that may be read."""
        with kafka_errors(self._options, SourceError, f"cannot ask for the offsets of {_name(partition)}"):
            begin: int = self._consumer.beginning_offsets([partition])[partition]
            end: int = self._consumer.end_offsets([partition])[partition]
        return begin, end

    def offset_at(self, partition: TopicPartition, time_ms: int) -> int | None:
        """Return the first offset of that time or later; None where there is none."""
        with kafka_errors(self._options, SourceError, f"cannot ask for the offsets of {_name(partition)} by time"):
            found = self._consumer.offsets_for_times({partition: time_ms})[partition]
        return None if found is None else int(found.offset)

    def open(self, partition: TopicPartition, offset: int) -> int:
        """Begin to fetch at ``offset``, or where ``on_gap`` says if it is gone; return where."""
        begin, end = self.range(partition)
        if not begin <= offset <= end:
            offset = self._close_gap(partition, offset, begin, end)
        self._waiting[partition] = []
        self._assign()
        self._consumer.seek(partition, offset)
        return offset

    def close_partition(self, partition: TopicPartition) -> None:
        """Stop to fetch a partition."""
        if self._waiting.pop(partition, None) is not None:
            self._left_out.pop(partition, None)
            self._assign()

    def take(self, partition: TopicPartition, most: int) -> list[ConsumerRecord]:
        """Return the next messages of a partition, at most ``most``; an empty list where there are none now."""
        waiting = self._waiting[partition]
        if not waiting:
            if self._clock() - self._empty_at < _WAIT_S:
                return []
            self._poll(most)
            waiting = self._waiting[partition]
        taken, self._waiting[partition] = waiting[:most], waiting[most:]
        if partition in self._left_out and not self._waiting[partition]:
            offset = self._left_out.pop(partition)
            self._assign()
            self._consumer.seek(partition, offset)
        return taken

    def give_back(self, partition: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Put back the last of what ``take`` returned."""
        self._waiting[partition] = records + self._waiting[partition]

    def passed(self, partition: TopicPartition) -> int:
        """Return the offset up to which everything has been taken, with what consumers never see: markers of transactions."""
        waiting = self._waiting[partition]
        if waiting:
            return int(waiting[0].offset)
        with kafka_errors(self._options, SourceError, f"cannot tell the position in {_name(partition)}"):
            return int(self._consumer.position(partition))

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._waiting.clear()
        self._consumer.close()

    def _poll(self, most: int) -> None:
        try:
            with kafka_errors(self._options, SourceError, "cannot read"):
                found = self._consumer.poll(timeout_ms=int(_WAIT_S * 1000), max_records=most)
        except SourceError as error:
            self._mend(error)
            return
        now = self._clock()
        if not found:
            self._empty_at = now
            return
        self._data_at = now
        for partition, records in found.items():
            waiting = self._waiting[partition]
            waiting += records
            if len(waiting) > _POLLS_WAITING * most:
                self._left_out[partition] = waiting[-1].offset + 1
                self._assign()

    def _assign(self) -> None:
        self._consumer.assign([partition for partition in self._waiting if partition not in self._left_out])

    def _mend(self, error: SourceError) -> None:
        """Go on behind a gap if the user wants it so; raise otherwise."""
        cause = error.__cause__
        gone: Mapping[TopicPartition, Any]
        if isinstance(cause, OffsetOutOfRangeError):
            gone = cause.args[0]
        elif isinstance(cause, LogTruncationError):
            gone = {partition: self._consumer.position(partition) for partition in cause.divergent_offsets}
        else:
            raise error
        for partition, offset in gone.items():
            begin, end = self.range(partition)
            self._consumer.seek(partition, self._close_gap(partition, int(offset), begin, end))

    def _close_gap(self, partition: TopicPartition, offset: int, begin: int, end: int) -> int:
        name = _name(partition)
        if offset > end:  # nothing that on_gap could mean: these messages are of another topic
            raise SourceError(
                f"{name} ends at offset {end}, before offset {offset} where this run goes on: the topic was deleted and "
                "recreated, or brokers lost messages. Start over in another state folder"
            )
        if self._on_gap == "fail":
            raise SourceError(
                f"{name} begins at offset {begin}, but this run goes on at offset {offset}: {begin - offset} messages were "
                "deleted before they were read (retention). Restore them, or accept the loss with on_gap: earliest (or latest) "
                "and a longer retention.ms of the topic"
            )
        chosen = begin if self._on_gap == "earliest" else end
        self.passed_over[partition] += chosen - offset
        logger.warning("partition=%s gap: offsets %d to %d are gone, going on at %d", name, offset, begin - 1, chosen)
        return chosen


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
