"""Claim: the Kafka source reads at least 0.8, the transactional sink writes at least 0.6 times as fast as bare kafka-python.

Bare means a loop over ``KafkaConsumer.poll`` that touches nothing, and ``KafkaProducer.send`` without transactions of values
that are ready; of Arrow messages the batches are ready, and each is written as an IPC stream and sent. JSON of 200 bytes, Arrow
messages of 1,000 rows, frames of 100 KB; both sides take turns against one broker on this machine, with the same settings. The
source decodes, the sink encodes, stages with fsync and commits an epoch per run.

    python -m benchmarks.kafka_throughput [--repeat 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from kafka_broker import Broker, unavailable

from benchmarks.machine import write
from connectors.kafka.client import ConnectionOptions, consumer, producer
from connectors.records import FRAME, TIME_TYPE, key_schema
from connectors.sinks.kafka import KafkaSink, KafkaSinkOptions
from connectors.sources.kafka import KafkaSource, KafkaSourceOptions

_SOURCE_FLOOR = 0.8
_SINK_FLOOR = 0.6
_ROWS_PER_READ = 8192
_READ_BYTES = 16 << 20
_PARTITIONS = 4
_VALUES = key_schema("values", 1, [pa.field("x", pa.float64()), pa.field("text", pa.string())])


@dataclass(frozen=True)
class Case:
    """One payload: ``rows`` in ``messages`` messages."""

    name: str
    format: str
    batches: list[pa.RecordBatch]
    columns: dict[str, str] | None
    max_message_bytes: int = 1_048_588

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


def cases() -> list[Case]:
    """Return the three payloads."""
    declared = {"stream_id": "string", "sequence": "int64", "event_time": "timestamp[us]", "x": "double", "text": "string"}
    json_columns = {**declared, "event_time": "string"}
    return [
        Case("json_200B", "json", [_values(1000, n, 95) for n in range(60)], json_columns),
        Case("arrow_1000_rows", "arrow", [_values(4000, n, 95) for n in range(300)], declared),
        Case("frame_100KB", "frame", [_frames(20, n) for n in range(60)], None),
    ]


def _values(rows: int, number: int, text: int) -> pa.RecordBatch:
    draw = np.random.default_rng(number)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"sensor{n:02d}" for n in range(100)]).take(pa.array(draw.integers(0, 100, rows))),
            pa.array(np.arange(rows) + number * rows),
            pa.array(1_700_000_000_000_000 + np.arange(rows) + number * rows).cast(TIME_TYPE),
            pa.array(draw.random(rows)),
            pa.repeat("y" * text, rows),
        ],
        schema=_VALUES,
    )


def _frames(rows: int, number: int) -> pa.RecordBatch:
    """Bytes that pass for JPEG: header, noise, end."""
    head = bytes.fromhex("ffd8ffc0000b080258032001011100ffda0008010100003f00")
    noise = np.random.default_rng(number).integers(0, 255, 100_000, np.uint8).tobytes()
    image = head + noise + b"\xff\xd9"
    columns = [
        pa.array([f"cam{n % 8}" for n in range(rows)]),
        pa.array(np.arange(rows) + number * rows),
        pa.array(1_700_000_000_000_000 + np.arange(rows)).cast(TIME_TYPE),
        pa.array([image] * rows, pa.binary()),
        pa.repeat("jpeg", rows),
        pa.array([600] * rows, pa.int32()),
        pa.array([800] * rows, pa.int32()),
        pa.nulls(rows, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FRAME)


def run_sink(case: Case, broker: Broker, topic: str, folder: Path) -> float:
    """Stage and commit all rows as one epoch; return the seconds, from the first write to the commit."""
    options = KafkaSinkOptions(
        bootstrap_servers=broker.address,
        topic=topic,
        path=folder,
        transactional_id=topic,
        format=case.format,
        max_message_bytes=case.max_message_bytes,
    )
    sink = KafkaSink(options)
    sink.recover(-1, [])
    sink.open({"node": case.batches[0].schema}, attempt=1, shard=0)
    began = time.perf_counter()
    for batch in case.batches:
        sink.write("node", batch)
    sink.commit(0, sink.prepare(0))
    seconds = time.perf_counter() - began
    sink.close()
    return seconds


def run_source(case: Case, broker: Broker, topic: str) -> float:
    """Read all partitions to their end in turns; return the seconds from the first read on."""
    source = KafkaSource(
        KafkaSourceOptions(
            bootstrap_servers=broker.address, topic=topic, format=case.format, columns=case.columns, until="latest"
        )
    )
    readers = [source.open(split, None) for split in source.splits()]
    rows = 0
    began = time.perf_counter()
    while any(not reader.exhausted for reader in readers):
        for reader in readers:
            batch = reader.read(_ROWS_PER_READ, _READ_BYTES) if not reader.exhausted else None
            rows += batch.num_rows if batch is not None else 0
    seconds = time.perf_counter() - began
    for reader in readers:
        reader.close()
    if rows != case.rows:
        raise SystemExit(f"{case.name}: read {rows} of {case.rows} rows")
    return seconds


def run_consumer(broker: Broker, topic: str, messages: int) -> tuple[float, list[Any]]:
    """Poll all messages; return the seconds and the messages."""
    from connectors.kafka import feed

    client = consumer(
        ConnectionOptions(bootstrap_servers=broker.address),
        isolation_level="read_committed",
        fetch_max_bytes=feed._FETCH_BYTES,
        max_partition_fetch_bytes=feed._PARTITION_BYTES,
    )
    partitions = [feed.TopicPartition(topic, number) for number in range(_PARTITIONS)]
    client.assign(partitions)
    for partition in partitions:
        client.seek(partition, 0)
    polled = []
    count = 0
    began = time.perf_counter()
    while count < messages:
        for records in client.poll(timeout_ms=100, max_records=_ROWS_PER_READ).values():
            count += len(records)
            polled.append(records)
    seconds = time.perf_counter() - began
    client.close()
    return seconds, [record for records in polled for record in records]


def run_producer(case: Case, broker: Broker, topic: str, messages: list[Any]) -> float:
    """Send the same messages without transactions; return the seconds until all are acknowledged."""
    from connectors.kafka import transactions

    batches: list[pa.RecordBatch] = []
    if case.format == "arrow":
        batches = [pa.ipc.open_stream(record.value).read_next_batch() for record in messages]

    client = producer(
        ConnectionOptions(bootstrap_servers=broker.address),
        batch_size=transactions._BATCH_BYTES,
        linger_ms=transactions._LINGER_MS,
        max_request_size=8 << 20,
    )
    client.partitions_for(topic)
    began = time.perf_counter()
    for number, record in enumerate(messages):
        value = _stream(batches[number]) if batches else record.value
        client.send(topic, value, record.key, record.headers, timestamp_ms=record.timestamp)
    client.flush()
    seconds = time.perf_counter() - began
    client.close()
    return seconds


def _stream(batch: pa.RecordBatch) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(buffer.getvalue().to_pybytes())


def count(broker: Broker, topic: str) -> int:
    """Return how many messages a topic holds for readers."""
    from kafka_broker import committed_records

    return len(committed_records(broker, topic))


def measure(case: Case, broker: Broker, repeat: int, scratch: Path) -> dict[str, Any]:
    """Run both sides in turns; return rates and ratios."""
    seconds: dict[str, list[float]] = {"sink": [], "producer": [], "source": [], "consumer": []}
    for number in range(repeat):
        ours, bare = (broker.create_topic(f"{case.name}-{side}-{number}", _PARTITIONS) for side in ("ours", "bare"))
        seconds["sink"].append(run_sink(case, broker, ours, scratch / ours))
        messages = count(broker, ours)
        seconds["source"].append(run_source(case, broker, ours))
        polled, records = run_consumer(broker, ours, messages)
        seconds["consumer"].append(polled)
        seconds["producer"].append(run_producer(case, broker, bare, records))
        seconds["source"].append(run_source(case, broker, ours))
        seconds["consumer"].append(run_consumer(broker, ours, messages)[0])
        with broker.admin() as admin:
            admin.delete_topics([ours, bare])
    fastest = {name: min(values) for name, values in seconds.items()}  # what else the machine does can only slow a run down
    return {
        "rows": case.rows,
        "messages": messages,
        "rows_per_s": {name: case.rows / value for name, value in fastest.items()},
        "messages_per_s": {name: messages / value for name, value in fastest.items()},
        "seconds": seconds,
        "source_ratio": fastest["consumer"] / fastest["source"],
        "sink_ratio": fastest["producer"] / fastest["sink"],
    }


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    reason = unavailable()
    if reason is not None:
        raise SystemExit(reason)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder) / "broker")
        broker.start()
        try:
            for case in cases():
                result = results[case.name] = measure(case, broker, arguments.repeat, Path(folder))
                rates = result["messages_per_s"]
                print(
                    f"{case.name:16s} source {rates['source']:9,.0f} of {rates['consumer']:9,.0f} messages/s "
                    f"({result['source_ratio']:.2f})  sink {rates['sink']:9,.0f} of {rates['producer']:9,.0f} "
                    f"({result['sink_ratio']:.2f})",
                    flush=True,
                )
        finally:
            broker.stop()
    passed = all(r["source_ratio"] >= _SOURCE_FLOOR and r["sink_ratio"] >= _SINK_FLOOR for r in results.values())
    print("pass" if passed else "FAIL", f"(floors: source {_SOURCE_FLOOR}, sink {_SINK_FLOOR} of bare kafka-python)")
    write("kafka_throughput", {"passed": passed, "floors": {"source": _SOURCE_FLOOR, "sink": _SINK_FLOOR}, "cases": results})
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
