"""Sink: a topic of Kafka, exactly once. Rows of an epoch are staged on disk as messages and sent when the epoch is committed.

Readers with ``isolation.level=read_committed`` see an epoch as a whole, once, or not at all; an epoch of more than 64 MiB
comes in several such pieces. Who sends, and what happens after a crash, is the concern of :mod:`connectors.kafka.transactions`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

import pyarrow as pa

from connectors import faults
from connectors.base import Shown, Staged, Tail
from connectors.errors import ConfigError, SinkError
from connectors.kafka import markers
from connectors.kafka.client import ConnectionOptions, admin, kafka_errors, package
from connectors.kafka.encode import MESSAGE, Encoder, make_encoder, standard_headers
from connectors.kafka.markers import Marker
from connectors.kafka.messages import MessageFormat
from connectors.kafka.transactions import HEADERS_KEY, TRANSACTION_S, Publisher
from connectors.options import REQUIRED, option
from connectors.sinks.json_text import ALTERED
from connectors.sinks.staged import FileSink, StagedFile, single_input, sink_error
from connectors.sinks.tables import ColumnOptions, Columns, RowBuffer, require_kept

__all__ = ["KafkaSink", "KafkaSinkOptions"]

_BLOCK_ROWS = 10_000
_BLOCK_BYTES = 4 << 20
_FILE_BYTES = 64 << 20
"""Messages of one transaction: it must end long before the brokers abort it."""

_FINAL = re.compile(r"part-(\d+)-(\d+)-(\d+)\.\w+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KafkaSinkOptions(ConnectionOptions, ColumnOptions):
    """Options of the sink ``kafka``."""

    topic: str = option(REQUIRED, "Topic to write to; it must exist.")
    path: Path = option(
        REQUIRED, "Folder where rows wait for the commit of their epoch; on a cluster one that all machines share."
    )
    transactional_id: str = option(
        REQUIRED, "Name that no other producer of this Kafka cluster has; never change it between a run and its --resume."
    )
    format: MessageFormat = option(
        "json",
        "What a message holds: json, one object per row; arrow, an Arrow IPC stream of up to 10,000 rows; frame, one image.",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = option(
        "none",
        "Compression of batches of messages; images do not get smaller.",
    )
    max_message_bytes: int = option(
        1_048_588, "Largest message; no more than max.message.bytes of the topic.", unit="bytes", ge=1024, le=1 << 30
    )
    commit_topic: str = option(
        "_streambank_commits", "Compacted topic that keeps which epochs have been published; made where it is missing."
    )
    retry_s: float = option(240.0, "How long to wait for brokers that are away before the run ends.", unit="s", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        ColumnOptions.__post_init__(self)
        if not self.topic or not self.transactional_id:
            name = "transactional_id" if self.topic else "topic"
            raise ConfigError(f"{name}: is empty; give it a name")
        if self.format == "frame" and (self.columns is not None or self.exclude):
            name = "exclude" if self.columns is None else "columns"
            raise ConfigError(f"{name}: has no effect with format: frame, which writes the image; leave it out")


class KafkaSink(FileSink):
    """Writes to one topic. Staged files are named uniquely, so a marker means one file of one attempt of one run."""

    Options: ClassVar[type] = KafkaSinkOptions
    suffix = ".messages"
    options: KafkaSinkOptions

    def __init__(self, options: KafkaSinkOptions) -> None:
        super().__init__(options)
        self._attempt = 0
        self._schema: pa.Schema
        self._columns: Columns  # by _start, as _schema
        self._encoder: Encoder
        self._publisher: Publisher | None = None
        self._waiting = RowBuffer()
        self._file: StagedFile | None = None
        self._writer: Any = None
        self._rows = 0

    # -- staging

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._schema = single_input("kafka", schemas)
        self._columns = Columns(self.options.columns, self.options.exclude, self._schema)
        self._encoder = self._make_encoder(1, self.options.max_message_bytes)

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Fence older attempts, on disk and at the brokers. ``SinkError`` where the topic is not there."""
        super().open(schemas, attempt=attempt, shard=shard)
        self._attempt = attempt
        self._encoder = self._make_encoder(*self._describe_topic())
        markers.ensure_topic(self.options, self.options.commit_topic)
        self._publisher = self._make_publisher(shard)
        self._publisher.connect()

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the rows until there are enough for a block of messages."""
        if not batch.num_rows:
            return
        batch = _decode_dictionaries(batch)
        if not self._waiting.accepts(batch.schema):
            self._write_waiting()
        self._waiting.add(batch)
        if self._waiting.rows >= _BLOCK_ROWS or self._waiting.bytes >= _BLOCK_BYTES:
            self._write_waiting()

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows have null where JSON cannot hold the value."""
        return {ALTERED: self._encoder.altered}

    def _write_waiting(self) -> None:
        if not self._waiting.rows:
            return
        rows, size = self._waiting.rows, self._waiting.bytes
        joined = pa.concat_batches(self._waiting.take())
        step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES * rows // size))
        for start in range(0, rows, step):
            block = joined.slice(start, step)
            for messages in self._encoder.encode(block):
                if self._file is None:
                    self._begin_file()
                self._writer.write_batch(messages)
            self._rows += block.num_rows
            if self._file is not None and self._file.bytes >= _FILE_BYTES:
                self._end_file()

    def _begin_file(self) -> None:
        if self._superseded():
            raise SinkError(f"{self._folder} has disappeared: another run has taken over {self.root}; end one of the two")
        path = self._new_path()
        self._file, self._rows = StagedFile(path.with_name(f"{uuid4().hex}-{path.name}")), 0
        headers = [[name, value.decode("latin-1")] for name, value in standard_headers(self.options.format, self._schema)]
        schema = MESSAGE.with_metadata({HEADERS_KEY: json.dumps(headers)})
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), schema)

    def _end_file(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._file.finish()
            self._finished(self._file, partition="", rows=self._rows)
            self._file = self._writer = None

    def _flush(self) -> None:
        self._write_waiting()
        self._end_file()

    def _drop(self) -> None:
        self._waiting.take()
        if self._file is not None:
            self._file.abort()
            self._file = self._writer = None

    # -- publishing

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish each staged file in a transaction of its own, then delete it."""
        if self._publisher is None:
            raise SinkError(f"topic {self.options.topic!r}: the sink is not open")
        for file in staged:
            path = self._inside(file.staged)
            if path.exists():
                self._publish(self._publisher, file, self._attempt)
            elif not self._published([file]):
                raise SinkError(self._lost(file))

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish what the newest manifest promises and is not published, then delete what is staged besides."""
        if staged:
            publishers = {shard: self._make_publisher(shard) for shard in sorted({_parse(file)[1] for file in staged})}
            try:
                for publisher in publishers.values():  # ends all open transactions: they might hold back markers
                    publisher.connect()
                missing = [file for file in staged if file.staged not in self._published(staged)]
                for file in missing:
                    self._require_whole(file)
                    self._publish(publishers[_parse(file)[1]], file, 0)
            finally:
                for publisher in publishers.values():
                    publisher.close()
            logger.info("sink=%s recovered epoch=%d sent=%d of %d", self.options.topic, epoch, len(missing), len(staged))
        self._remove_staged()

    def close(self) -> None:
        """Delete what was not prepared and let go of the producer."""
        super().close()
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    # -- reading back

    def shown(self, column: str) -> Shown:
        """Return that rows are in the topic from the commit of their epoch on; images hold no other columns."""
        if self.options.format == "frame":
            raise ConfigError("its messages are images")
        require_kept(self.options.columns, self.options.exclude, column)
        return Shown.COMMITTED

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        """Follow all partitions of the topic from their ends."""
        from connectors.kafka.tail import TopicTail

        return TopicTail(self.options, self.options.topic, column, arrow=self.options.format == "arrow")

    def _publish(self, publisher: Publisher, file: Staged, attempt: int) -> None:
        epoch, shard, number = _parse(file)
        path = self._inside(file.staged)
        marker = Marker(file=file.staged, epoch=epoch, attempt=attempt, rows=file.rows)
        publisher.publish(path, marker, key=f"{self._name(shard)}/{number}")
        path.unlink(missing_ok=True)
        faults.reach("between_renames", epoch)

    def _require_whole(self, file: Staged) -> None:
        path = self._inside(file.staged)
        try:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            raise SinkError(self._lost(file)) from None
        except OSError as error:
            raise sink_error(path, error) from error
        if digest != file.sha256:
            raise SinkError(f"{path} was changed after its epoch was committed; put it back, or start over with --fresh")

    def _published(self, staged: Sequence[Staged]) -> set[str]:
        names = {file.staged for file in staged}
        return markers.find(self.options, self.options.commit_topic, names, timeout_s=2 * TRANSACTION_S)

    def _make_encoder(self, partitions: int, max_bytes: int) -> Encoder:
        return make_encoder(self.options.format, self._columns, self._schema, partitions=partitions, max_bytes=max_bytes)

    def _make_publisher(self, shard: int) -> Publisher:
        options = self.options
        return Publisher(
            options,
            topic=options.topic,
            marker_topic=options.commit_topic,
            transactional_id=self._name(shard),
            compression=None if options.compression == "none" else options.compression,
            max_message_bytes=options.max_message_bytes,
            retry_s=options.retry_s,
            superseded=self._superseded,
        )

    def _name(self, shard: int) -> str:
        return f"{self.options.transactional_id}-{shard}"

    def _superseded(self) -> bool:
        """Return whether the staging folder has been taken over since ``open``."""
        return self._folder is not None and not self._folder.is_dir()

    def _describe_topic(self) -> tuple[int, int]:
        """Return the number of partitions, and the largest message that both the option and the topic allow.

        So no message is refused after its epoch's manifest.
        """
        ConfigResource = package("kafka.admin").ConfigResource
        topic = self.options.topic
        with kafka_errors(self.options, SinkError, f"cannot describe topic {topic!r}"):
            client = admin(self.options)
            try:
                (described,) = client.describe_topics([topic])
                settings = client.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
            finally:
                client.close()
        partitions = len(described["partitions"])
        if not partitions:
            raise SinkError(f"topic {topic!r} is not there, or this user may not see it; make it first")
        allowed = settings["topic"][topic].get("max.message.bytes")  # absent where this user may not see it
        largest = self.options.max_message_bytes
        return partitions, largest if allowed is None else min(int(allowed["value"]), largest)

    def _lost(self, file: Staged) -> str:
        return (
            f"{self.root}: {file.staged} of epoch {_parse(file)[0]} is neither staged nor published to topic "
            f"{self.options.topic!r} by {self.options.commit_topic!r}. Was it deleted, or has 'path' or 'commit_topic' "
            "changed? Put it back, or start over with --fresh"
        )


def _parse(file: Staged) -> tuple[int, int, int]:
    """Return epoch, shard and number of a staged file."""
    match = _FINAL.fullmatch(file.final)
    if match is None:
        raise SinkError(f"the manifest names a file that no Kafka sink wrote: {file.final!r}; it is damaged")
    return int(match[1]), int(match[2]), int(match[3])


def _decode_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode dictionary columns, since many small dictionaries may not fit into one when batches are joined."""
    for i, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(
                i, pa.field(batch.schema.field(i).name, column.type.value_type), column.dictionary_decode()
            )
    return batch
