"""The end of a topic: messages that are committed from now on, for one who waits for a few of them. Keeps no position."""

from __future__ import annotations

import json
from collections.abc import Collection

import pyarrow as pa

from connectors.base import Row, Tail
from connectors.errors import SinkError
from connectors.kafka.client import ConnectionOptions, consumer, kafka_errors, package

__all__ = ["TopicTail"]

_POLL_S = 1.0


class TopicTail(Tail):
    """All partitions of a topic, from where they end when this is made. ``SinkError`` where it cannot be read."""

    def __init__(self, options: ConnectionOptions, topic: str, column: str, *, arrow: bool) -> None:
        super().__init__(column)
        TopicPartition = package().TopicPartition
        self._options = options
        self._topic = topic
        self._is_arrow = arrow
        with kafka_errors(options, SinkError, f"cannot read topic {topic!r}"):
            self._consumer = consumer(options, isolation_level="read_committed")
            try:
                numbers = self._consumer.partitions_for_topic(topic)
                if not numbers:
                    raise SinkError(f"topic {topic!r} is not there, or this user may not see it; make it first")
                partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
                self._consumer.assign(partitions)
                for partition, offset in self._consumer.end_offsets(partitions).items():
                    self._consumer.seek(partition, offset)
            except BaseException:
                self._consumer.close()
                raise

    def look(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Read the next messages."""
        with kafka_errors(self._options, SinkError, f"cannot read topic {self._topic!r}"):
            polled = self._consumer.poll(timeout_ms=int(min(timeout_s, _POLL_S) * 1000) + 1)
        messages = [record.value for records in polled.values() for record in records if record.value]
        return [row for message in messages for row in self._rows(message, ids)]

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _rows(self, value: bytes, ids: Collection[str]) -> list[Row]:
        """Read one message; one that another program has written in another form holds no such row."""
        try:
            if self._is_arrow:
                return self.matching(pa.ipc.open_stream(pa.py_buffer(value)).read_all(), ids)
            row = json.loads(value)
        except (pa.ArrowException, OSError, ValueError, RecursionError):
            return []
        return [row] if isinstance(row, dict) and row.get(self._column) in ids else []
