"""What goes into the Kafka soak and what comes out: cameras that send frames, and readers that know nothing of the engine.

Frames are clips of moving shapes, one stream per camera. The readers are a plain kafka-python consumer of committed messages
and plain pyarrow.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import pyarrow.dataset
from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped, unused-ignore]

from models.mamba.shapes import ShapesConfig, make_scene

__all__ = ["STREAMS", "Cameras", "compare", "kafka_rows", "parquet_rows"]

STREAMS = 8
_CLIP_FRAMES = 24
_START_NS = 1_700_000_000_000_000_000
_FRAME_NS = 40_000_000

_MEASURED = "latency_ms"
"""The column that is not a function of the input: how long the operator took."""

Rows = dict[str, list[dict[str, Any]]]
"""Stream → its rows in the order in which they were found."""


class Cameras:
    """Send a frame of each of 8 streams ``hz`` times a second until stopped."""

    def __init__(self, address: str, topic: str, *, partitions: int, hz: float) -> None:
        self._topic = topic
        self._partitions = partitions
        self._pause_s = 1.0 / hz
        self._images = [_clip(seed) for seed in range(STREAMS)]
        self._producer = KafkaProducer(bootstrap_servers=address, reconnect_backoff_max_ms=500)
        self._stopped = threading.Event()
        self._sent = 0
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._film)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        self._producer.close(timeout=0 if kind else None)

    def stop(self) -> dict[str, int]:
        """Send no more; return how many frames of each stream the broker has acknowledged."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return {f"camera{stream}": self._sent for stream in range(STREAMS)}

    def _film(self) -> None:
        try:
            futures: list[Any] = []
            while not self._stopped.wait(self._pause_s):
                futures = [future for future in futures if not future.succeeded()]
                futures += [self._send(stream, self._sent) for stream in range(STREAMS)]
                self._sent += 1
            for future in futures:
                future.get(60)
        except Exception as error:  # raised by stop(), in the thread of the soak
            self._error = error

    def _send(self, stream: int, number: int) -> Any:
        taken_ns = _START_NS + number * _FRAME_NS
        headers = [
            ("ct", b"image/jpeg"),
            ("ts_ns", b"%d" % taken_ns),
            ("seq", b"%d" % number),
        ]
        key = f"camera{stream}".encode()
        image = self._images[stream][number % _CLIP_FRAMES]
        partition = stream % self._partitions
        return self._producer.send(self._topic, image, key, headers, partition, taken_ns // 1_000_000)


def _clip(seed: int) -> list[bytes]:
    frames_THW3 = make_scene(ShapesConfig(frames=_CLIP_FRAMES), seed).frames()
    return [cv2.imencode(".jpg", cv2.cvtColor(frame_HW3, cv2.COLOR_RGB2BGR))[1].tobytes() for frame_HW3 in frames_THW3]


def kafka_rows(address: str, topic: str) -> Rows:
    """Read all committed JSON messages of a topic, each partition in the order of its offsets."""
    consumer = KafkaConsumer(bootstrap_servers=address, isolation_level="read_committed", group_id=None)
    rows: Rows = {}
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    row = json.loads(record.value)
                    del row[_MEASURED]
                    rows.setdefault(row["stream_id"], []).append(row)
    finally:
        consumer.close()
    return rows


def parquet_rows(folder: Path) -> Rows:
    """Read all Parquet files that a reader sees: pyarrow passes over names that begin with ``_`` or ``.``."""
    rows: Rows = {}
    for row in pyarrow.dataset.dataset(folder, format="parquet").to_table().drop_columns(_MEASURED).to_pylist():
        rows.setdefault(row["stream_id"], []).append(row)
    for found in rows.values():
        found.sort(key=lambda row: row["sequence"])
    return rows


def compare(rows: Rows, undisturbed: Rows, frames: dict[str, int]) -> dict[str, Any]:
    """Return what is lost and doubled of the ``frames`` sent, and whether all rows equal those of the undisturbed run."""
    seen = Counter((stream, row["sequence"]) for stream, found in rows.items() for row in found)
    sent = {(stream, number) for stream, count in frames.items() for number in range(count)}
    expected = {(stream, row["sequence"]): row for stream, found in undisturbed.items() for row in found}
    pairs = [(row, expected.get((stream, row["sequence"]), {})) for stream, found in rows.items() for row in found]
    differing = Counter(name for row, other in pairs for name in row if row[name] != other.get(name))
    return {
        "rows": sum(map(len, rows.values())),
        "lost": len(sent - set(seen)),
        "doubled": sum(count - 1 for count in seen.values()),
        "with_detections": sum(row["status"] == "ok" for found in rows.values() for row in found),
        "changed": sum(row != other for row, other in pairs),
        "changed_columns": dict(differing),
        "equal": rows == undisturbed and set(seen) == sent,
    }
