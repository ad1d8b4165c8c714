"""Which staged files have been published: one marker per file, written in the transaction that publishes it.

The markers stand in a compacted topic of their own, keyed by transactional id and number of the file in its epoch, so the topic
does not grow with time. A marker is there exactly if its transaction was committed; ``find`` waits for those that are open.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass

from connectors.errors import SinkError
from connectors.kafka.client import ConnectionOptions, admin, consumer, kafka_errors, package

__all__ = ["Marker", "ensure_topic", "find"]

_SETTINGS = {"cleanup.policy": "compact", "segment.bytes": str(16 << 20), "min.cleanable.dirty.ratio": "0.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """Says that a staged file has been published. ``file`` is a name that was never given before."""

    file: str
    epoch: int
    attempt: int
    rows: int

    def to_bytes(self) -> bytes:
        """Return the value of its message."""
        return json.dumps(asdict(self)).encode()


def ensure_topic(options: ConnectionOptions, topic: str) -> None:
    """Make the topic of markers unless it is there. Raise ``SinkError`` where this user may not."""
    NewTopic = package("kafka.admin").NewTopic
    TopicAlreadyExistsError = package("kafka.errors").TopicAlreadyExistsError
    advice = f"cannot make topic {topic!r}; have it made with cleanup.policy=compact and one partition"
    with kafka_errors(options, SinkError, advice):
        client = admin(options)
        try:
            if topic in client.list_topics():
                return
            client.create_topics([NewTopic(topic, 1, -1, topic_configs=_SETTINGS)], wait_for_metadata=True)
        except TopicAlreadyExistsError:
            pass  # another shard was faster
        finally:
            client.close()


def find(options: ConnectionOptions, topic: str, files: Collection[str], *, timeout_s: float) -> set[str]:
    """Return those of ``files`` that have a marker.

    Reads the whole topic, up to what is there now: markers of open transactions too, which are waited for since they hold back
    what follows them. Raise ``SinkError`` where one is still open after ``timeout_s``.
    """
    TopicPartition = package().TopicPartition
    found: set[str] = set()
    deadline = time.monotonic() + timeout_s
    with kafka_errors(options, SinkError, f"cannot read topic {topic!r}"):
        ends = consumer(options, isolation_level="read_uncommitted")
        reader = consumer(options, isolation_level="read_committed")
        try:
            partitions = [TopicPartition(topic, number) for number in ends.partitions_for_topic(topic)]
            last = ends.end_offsets(partitions)
            begin = ends.beginning_offsets(partitions)
            reader.assign(partitions)
            for partition in partitions:
                reader.seek(partition, begin[partition])
            while any(reader.position(partition) < last[partition] for partition in partitions):
                for records in reader.poll(timeout_ms=100, max_records=10_000).values():
                    found.update(json.loads(record.value)["file"] for record in records)
                if time.monotonic() > deadline:
                    raise SinkError(
                        f"topic {topic!r} has had an open transaction for more than {timeout_s:.0f} s, behind which nothing "
                        "can be read; find its producer (kafka-transactions.sh find-hanging) and run again with --resume"
                    )
        finally:
            reader.close()
            ends.close()
    return found & set(files)
