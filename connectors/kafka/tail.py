"""The end of a topic: messages that are committed from now on, for one who waits for a few of them. Keeps no position."""

from __future__ import annotations

from connectors.errors import SourceError
from connectors.kafka.client import ConnectionOptions, consumer, kafka_errors, package

__all__ = ["TopicTail"]


class TopicTail:
    """All partitions of a topic, from where they end when this is made. ``SourceError`` where it cannot be read."""

    def __init__(self, options: ConnectionOptions, topic: str) -> None:
        TopicPartition = package().TopicPartition
        self._options = options
        self._topic = topic
        with kafka_errors(options, SourceError, f"cannot read topic {topic!r}"):
            self._consumer = consumer(options, isolation_level="read_committed")
            try:
                numbers = self._consumer.partitions_for_topic(topic)
                if not numbers:
                    raise SourceError(f"topic {topic!r} is not there, or this user may not see it; make it first")
                partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
                self._consumer.assign(partitions)
                for partition, offset in self._consumer.end_offsets(partitions).items():
                    self._consumer.seek(partition, offset)
            except BaseException:
                self._consumer.close()
                raise

    def take(self, timeout_s: float) -> list[bytes]:
        """Return the contents of the next messages; wait ``timeout_s`` at most. Empty ones are left out."""
        with kafka_errors(self._options, SourceError, f"cannot read topic {self._topic!r}"):
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000) + 1)
        return [record.value for records in polled.values() for record in records if record.value]

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
