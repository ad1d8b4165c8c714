"""Publishes staged files of messages, each exactly once: one transaction holds the messages of a file and its marker.

``connect`` ends the transaction that an earlier producer of the same name may have left, since Kafka fences that producer. From
there on it is certain what was published: what has a marker. Used by one thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors import faults
from connectors.errors import SinkError
from connectors.kafka import markers
from connectors.kafka.client import ConnectionOptions, kafka_errors, package, producer
from connectors.kafka.markers import Marker

if TYPE_CHECKING:
    from kafka import KafkaProducer  # type: ignore[import-untyped, unused-ignore]

__all__ = ["HEADERS_KEY", "TRANSACTION_S", "Publisher"]

TRANSACTION_S = 120
"""After this the brokers abort a transaction on their own, for producers that are gone."""

HEADERS_KEY = b"streambank.headers"
"""Metadata of a staged file: the headers of messages that have none of their own, as JSON with latin-1 text."""

_BATCH_BYTES = 256 << 10
_LINGER_MS = 10
_BYTES_IN_FLIGHT = 32 << 20
"""Sent and not yet acknowledged, some block more at most: kafka-python itself puts no limit on what waits in memory."""

_BACKOFF_S = 0.5
_FENCED_OFTEN = 3

logger = logging.getLogger(__name__)


class Publisher:
    """The transactional producer of one shard. ``superseded`` says whether a newer attempt has taken over."""

    def __init__(
        self,
        options: ConnectionOptions,
        *,
        topic: str,
        marker_topic: str,
        transactional_id: str,
        compression: str | None,
        max_message_bytes: int,
        retry_s: float,
        superseded: Callable[[], bool],
    ) -> None:
        self._options = options
        self._topic = topic
        self._marker_topic = marker_topic
        self._transactional_id = transactional_id
        self._settings: dict[str, Any] = {
            "transactional_id": transactional_id,
            "transaction_timeout_ms": TRANSACTION_S * 1000,
            "max_request_size": max_message_bytes + _BATCH_BYTES,
            "compression_type": compression,
            "batch_size": min(_BATCH_BYTES, max_message_bytes),
            "linger_ms": _LINGER_MS,
        }
        self._retry_s = retry_s
        self._superseded = superseded
        self._producer: KafkaProducer | None = None

    def connect(self) -> KafkaProducer:
        """Return the producer; a new one fences all earlier ones of its name and ends their transactions."""
        if self._producer is None:
            with kafka_errors(self._options, SinkError, f"cannot begin as transactional id {self._transactional_id!r}"):
                fresh = producer(self._options, **self._settings)
                try:
                    fresh.init_transactions()
                except BaseException:
                    fresh.close(timeout=0)
                    raise
            self._producer = fresh
        return self._producer

    def publish(self, path: Path, marker: Marker, *, key: str) -> None:
        """Publish the messages of a staged file, of which it is known that they are not, together with their marker.

        Tries again for ``retry_s`` while brokers are away. Raise ``SinkError`` after that, for what trying again does not help,
        and where another producer has the name.
        """
        deadline = time.monotonic() + self._retry_s
        tried = False
        fenced = 0
        while True:
            try:
                client = self.connect()
                if tried and self._is_published(marker):
                    return
                tried = True
                with kafka_errors(self._options, SinkError, f"cannot publish epoch {marker.epoch} to topic {self._topic!r}"):
                    self._send(client, path, marker, key)
                return
            except SinkError as error:
                self.close()
                fenced += _is_fenced(error.__cause__)
                if self._superseded():
                    raise SinkError(
                        f"a newer attempt of this pipeline writes to topic {self._topic!r} as {self._transactional_id!r}; this "
                        "one is outdated, end it"
                    ) from error
                if fenced >= _FENCED_OFTEN:
                    raise SinkError(
                        f"another producer uses the transactional id {self._transactional_id!r}; give every sink its own "
                        "'transactional_id'"
                    ) from error
                if not _is_passing(error.__cause__) or time.monotonic() > deadline:
                    raise
                logger.warning("sink=%s epoch=%d not published yet, trying again: %s", self._topic, marker.epoch, error)
                time.sleep(_BACKOFF_S)

    def close(self) -> None:
        """Let go of the producer; an open transaction is aborted by the next one of its name, or in time by the brokers."""
        if self._producer is not None:
            # Of a producer that has failed nothing is wanted anymore, whatever it says about it.
            with contextlib.suppress(Exception):
                self._producer.close(timeout=0)
            self._producer = None

    def _is_published(self, marker: Marker) -> bool:
        timeout_s = 2 * TRANSACTION_S  # by then the brokers have ended every open transaction
        return bool(markers.find(self._options, self._marker_topic, {marker.file}, timeout_s=timeout_s))

    def _send(self, client: KafkaProducer, path: Path, marker: Marker, key: str) -> None:
        client.begin_transaction()
        in_flight: deque[tuple[int, list[Any]]] = deque()
        waiting = 0
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            standard = _standard_headers(stream.schema)
            for block in stream:
                in_flight.append((block.nbytes, _send_block(client, self._topic, block, standard)))
                waiting += block.nbytes
                while waiting > _BYTES_IN_FLIGHT:
                    size, futures = in_flight.popleft()
                    _wait(futures)
                    waiting -= size
        client.send(self._marker_topic, marker.to_bytes(), key.encode())
        for _, futures in in_flight:
            _wait(futures)
        client.flush()
        faults.reach("in_transaction", marker.epoch)
        client.commit_transaction()
        faults.reach("after_transaction", marker.epoch)


def _send_block(client: KafkaProducer, topic: str, block: pa.RecordBatch, standard: list[tuple[str, bytes]]) -> list[Any]:
    """Hand a block to the producer; return the last future of each partition."""
    last: dict[int, Any] = {}
    partitions, keys, values, times, packed = (block.column(name) for name in range(5))
    headers: list[Any] = [standard] * block.num_rows
    if packed.null_count < block.num_rows:
        headers = [
            standard if own is None else [(header["name"], header["value"]) for header in own] for own in packed.to_pylist()
        ]
    rows = zip(values.to_pylist(), keys.to_pylist(), headers, partitions.to_pylist(), times.to_pylist(), strict=True)
    send = client.send
    for value, key, own, partition, time_ms in rows:
        last[partition] = send(topic, value, key, own, partition, time_ms)
    return list(last.values())


def _wait(futures: list[Any]) -> None:
    for future in futures:
        future.get()  # kafka-python ends it after its delivery_timeout_ms


def _standard_headers(schema: pa.Schema) -> list[tuple[str, bytes]]:
    packed: list[list[str]] = json.loads((schema.metadata or {}).get(HEADERS_KEY, b"[]"))
    return [(name, value.encode("latin-1")) for name, value in packed]


def _is_fenced(cause: BaseException | None) -> bool:
    errors = package("kafka.errors")
    return isinstance(cause, errors.ProducerFencedError | errors.InvalidProducerEpochError)


def _is_passing(cause: BaseException | None) -> bool:
    """Return whether trying again may help: not for what the brokers refuse on principle."""
    errors = package("kafka.errors")
    lasting = (
        errors.AuthorizationError,
        errors.InvalidTopicError,
        errors.MessageSizeTooLargeError,
        errors.RecordListTooLargeError,
        errors.InvalidTransactionTimeoutError,
        errors.UnsupportedVersionError,
        errors.UnsupportedCodecError,
        errors.UnsupportedCompressionTypeError,
        errors.InvalidRecordError,
        errors.PolicyViolationError,
    )
    return cause is not None and not isinstance(cause, lasting)
