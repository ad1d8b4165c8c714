"""RGB-D frames on a real broker: the history chosen from a topic is that of a batch replay, whatever the number of shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import rgbd_folders as made
from kafka import KafkaProducer
from kafka_broker import Broker

from connectors.sources.rgbd import RgbdOptions, RgbdSource
from pipelines import Pipeline

COLUMNS = {
    "stream_id": "string",
    "sequence": "int64",
    "event_time": "timestamp[us, UTC]",
    "image": "binary",
    "encoding": "string",
    "height": "int32",
    "width": "int32",
    "depth": "binary",
    "depth_encoding": "string",
    "depth_scale": "double",
    "intrinsics": "list<double>",
    "pose": "list<double>",
}
STREAMS, FRAMES = "abc", 12


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for name in STREAMS:
        made.tum_folder(folder / name, FRAMES)
    return folder


def send(broker: Broker, topic: str, scans: Path) -> None:
    """Put each frame into the topic as an Arrow message of one row, the streams in turn."""
    source = RgbdSource(RgbdOptions(path=str(scans)))
    batches = {name: source.open(name, None).read(1000, 1 << 30) for name in source.splits()}
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for n in range(FRAMES):
        for name, batch in batches.items():
            assert batch is not None
            row = batch.slice(n, 1).select(list(COLUMNS))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, row.schema) as writer:
                writer.write_batch(row)
            producer.send(topic, sink.getvalue().to_pybytes(), name.encode())
    producer.flush()
    producer.close()


def chosen(source: dict[str, Any], run: Path, shards: int) -> list[dict[str, Any]]:
    """Return the rows of a run over ``source``."""
    values = {
        "name": "history",
        "state": str(run / "state"),
        "sources": {"frames": source},
        "operators": {
            "choose": {"type": "fourd_vla", "input": "frames", "window": 8, "keep": 3, "max_streams": 4, "shards": shards}
        },
        "sinks": {"rows": {"type": "arrow", "input": "choose", "path": str(run / "rows")}},
    }
    rows: list[dict[str, Any]] = Pipeline.from_dict(values).run().table("rows").to_pylist()
    return sorted(rows, key=lambda row: (row["stream_id"], row["sequence"]))


def test_a_topic_of_rgbd_frames_gives_the_rows_of_the_replay_with_1_and_3_shards(
    broker: Broker, topic: Callable[..., str], scans: Path, tmp_path: Path
) -> None:
    name = topic(3)
    send(broker, name, scans)
    here = {"type": "kafka", "bootstrap_servers": broker.address, "topic": name, "until": "latest"}
    live = here | {"format": "arrow", "columns": COLUMNS}
    wanted = chosen({"type": "rgbd", "path": str(scans)}, tmp_path / "replay", 1)
    assert [row["status"] for row in wanted] == ["ok"] * len(STREAMS) * FRAMES
    for shards in (1, 3):
        assert chosen(live, tmp_path / f"shards{shards}", shards) == wanted
