"""The Kafka sink against a real broker: every row once, whatever dies and when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer
from kafka_broker import Broker, committed_records

from connectors.base import Staged
from connectors.errors import ConfigError, SinkError
from connectors.faults import VARIABLE
from connectors.records import FRAME, TIME_TYPE, output_schema
from connectors.sinks import kafka as sink_module
from connectors.sinks.kafka import KafkaSink, KafkaSinkOptions

SCHEMA = output_schema("numbers", 1, [pa.field("value", pa.float64())])
EPOCHS = 3
ROWS = 20


def batch(start: int, count: int) -> pa.RecordBatch:
    rows = range(start, start + count)
    columns = [
        pa.array([f"s{n % 3}" for n in rows]),
        pa.array(rows, pa.int64()),
        pa.array([1_700_000_000_000_000 + n * 1000 for n in rows]).cast(TIME_TYPE),
        pa.array([n / 7 for n in rows]),
        pa.array(["ok"] * count).dictionary_encode().cast(SCHEMA.field("status").type),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def make(broker: Broker, topic: str, path: Path, **more: Any) -> KafkaSink:
    settings: dict[str, Any] = {"retry_s": 30.0, "transactional_id": f"test-{topic}", **more}
    return KafkaSink(KafkaSinkOptions(bootstrap_servers=broker.address, topic=topic, path=path, **settings))


class Run:
    """A small engine: what survives a crash is ``manifest``, the newest epoch and its staged files."""

    def __init__(self, make: Callable[[], KafkaSink], manifest: Path, shards: int = 1) -> None:
        self.make, self.path, self.shards = make, manifest, shards

    def go(self, before_commit: Callable[[int, KafkaSink], None] = lambda epoch, sink: None) -> None:
        state = json.loads(self.path.read_text()) if self.path.exists() else {"epoch": -1, "staged": [], "attempt": 0}
        state["attempt"] += 1
        self.path.write_text(json.dumps(state))
        self.make().recover(state["epoch"], [Staged(**file) for file in state["staged"]])
        sinks = [self.make() for _ in range(self.shards)]
        for shard, sink in enumerate(sinks):
            sink.open({"node": SCHEMA}, attempt=state["attempt"], shard=shard)
        for epoch in range(state["epoch"] + 1, EPOCHS):
            staged = []
            for shard, sink in enumerate(sinks):
                sink.write("node", batch((epoch * self.shards + shard) * ROWS, ROWS // 2))
                sink.write("node", batch((epoch * self.shards + shard) * ROWS + ROWS // 2, ROWS // 2))
                staged.append(sink.prepare(epoch))
            everything = [{name: getattr(f, name) for name in Staged.__slots__} for files in staged for f in files]
            self.path.write_text(json.dumps({**state, "epoch": epoch, "staged": everything}))
            for sink, files in zip(sinks, staged, strict=True):
                before_commit(epoch, sink)
                sink.commit(epoch, files)
        for sink in sinks:
            sink.close()


def values(broker: Broker, topic: str, **settings: Any) -> list[float]:
    """What a reader of committed messages sees."""
    return sorted(json.loads(record[3])["sequence"] for record in committed_records(broker, topic, **settings))


EXPECTED = list(range(EPOCHS * ROWS))


def test_rows_are_visible_once_their_epoch_is_committed_and_not_before(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic(4)
    sink = make(broker, name, tmp_path)
    sink.recover(-1, [])
    sink.open({"node": SCHEMA}, attempt=1, shard=0)
    sink.write("node", batch(0, ROWS))
    staged = sink.prepare(0)
    assert [file.rows for file in staged] == [ROWS]
    assert committed_records(broker, name, isolation="read_uncommitted") == []
    sink.commit(0, staged)
    records = committed_records(broker, name)
    assert sorted(json.loads(record[3])["sequence"] for record in records) == list(range(ROWS))
    sink.commit(0, staged)
    assert len(committed_records(broker, name)) == ROWS
    by_key: dict[bytes, list[int]] = {}
    for partition, _, key, value, headers, timestamp in records:
        row = json.loads(value)
        assert row["stream_id"].encode() == key
        assert timestamp == 1_700_000_000_000 + row["sequence"]
        assert dict(headers) == {"ct": b"application/json", "schema": b"numbers.v1"}
        by_key.setdefault(key, []).append(partition)
    assert all(len(set(partitions)) == 1 for partitions in by_key.values())
    sink.close()
    assert not list(tmp_path.rglob("*.staged"))


def test_a_stream_goes_to_the_partition_that_kafka_itself_would_choose(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    name, other = topic(5), topic(5)
    Run(lambda: make(broker, name, tmp_path / "out"), tmp_path / "manifest").go()
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for key in (b"s0", b"s1", b"s2"):
        producer.send(other, b"x", key)
    producer.close()
    expected = {key: partition for partition, _, key, *_ in committed_records(broker, other)}
    assert {key: partition for partition, _, key, *_ in committed_records(broker, name)} == expected


CHILD = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import kafka_broker
from connectors import faults
from test_kafka_sink import Run, make
class Address:
    address = {address!r}
faults.arm({fault!r})
Run(lambda: make(Address, {topic!r}, Path({folder!r}) / "out"), Path({folder!r}) / "manifest").go()
"""


def child(broker: Broker, topic: str, folder: Path, fault: str) -> int:
    """Run in a process of its own, which dies at ``fault``."""
    root = Path(__file__).resolve().parents[2]
    paths = [str(Path(__file__).parent), str(root / "tests" / "support"), str(root)]
    code = CHILD.format(paths=paths, address=broker.address, fault=fault, topic=topic, folder=str(folder))
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=240, check=False).returncode


@pytest.mark.parametrize("point", ["in_transaction", "after_transaction"])
def test_killed_in_the_middle_of_a_transaction_every_row_comes_once(
    broker: Broker, topic: Callable[..., str], tmp_path: Path, point: str
) -> None:
    name = topic(3)
    assert child(broker, name, tmp_path, f"{point}:epoch=1") == -signal.SIGKILL
    Run(lambda: make(broker, name, tmp_path / "out"), tmp_path / "manifest").go()
    assert values(broker, name) == EXPECTED
    uncommitted = len(committed_records(broker, name, isolation="read_uncommitted"))
    assert uncommitted == len(EXPECTED) + (ROWS if point == "in_transaction" else 0)
    assert not list(tmp_path.rglob("*.staged"))


class Crash(Exception):
    """The process dies here: no ``close`` is called."""


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_crash_between_manifest_and_commit_is_made_good(
    broker: Broker, topic: Callable[..., str], tmp_path: Path, epoch: int
) -> None:
    name = topic(2)
    run = Run(lambda: make(broker, name, tmp_path / "out"), tmp_path / "manifest")

    def crash(reached: int, sink: KafkaSink) -> None:
        if reached == epoch:
            raise Crash

    with pytest.raises(Crash):
        run.go(crash)
    run.go()
    assert values(broker, name) == EXPECTED


def test_what_was_staged_and_has_no_manifest_never_appears(broker: Broker, topic: Callable[..., str], tmp_path: Path) -> None:
    name = topic()
    sink = make(broker, name, tmp_path / "out")
    sink.recover(-1, [])
    sink.open({"node": SCHEMA}, attempt=1, shard=0)
    sink.write("node", batch(500, ROWS))
    sink.prepare(0)
    run = Run(lambda: make(broker, name, tmp_path / "out"), tmp_path / "manifest")
    run.path.write_text(json.dumps({"epoch": -1, "staged": [], "attempt": 1}))
    run.go()
    assert values(broker, name, isolation="read_uncommitted") == EXPECTED


def test_several_shards_and_pieces_recover_together(
    broker: Broker, topic: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_FILE_BYTES", 1)
    monkeypatch.setattr(sink_module, "_BLOCK_ROWS", 5)
    name = topic(2)
    run = Run(lambda: make(broker, name, tmp_path / "out"), tmp_path / "manifest", shards=2)

    def crash(epoch: int, sink: KafkaSink) -> None:
        if epoch == 1 and sink.shard == 1:
            raise Crash

    with pytest.raises(Crash):
        run.go(crash)
    assert len(json.loads(run.path.read_text())["staged"]) == 2 * ROWS // 5
    run.go()
    assert values(broker, name) == list(range(EPOCHS * 2 * ROWS))


def test_an_older_attempt_is_fenced_off(broker: Broker, topic: Callable[..., str], tmp_path: Path) -> None:
    name = topic()
    old = make(broker, name, tmp_path)
    old.recover(-1, [])
    old.open({"node": SCHEMA}, attempt=1, shard=0)
    old.write("node", batch(0, ROWS))
    staged = old.prepare(0)
    new = make(broker, name, tmp_path)
    new.recover(0, staged)
    new.open({"node": SCHEMA}, attempt=2, shard=0)
    old.commit(0, staged)  # published by the new attempt: nothing is left to do
    old.write("node", batch(ROWS, ROWS))
    with pytest.raises(SinkError, match="taken over"):
        old.prepare(1)
    assert values(broker, name) == list(range(ROWS))
    old.close()
    new.close()


def test_a_producer_that_lost_its_name_in_the_middle_is_told_so(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    """Both keep their own folder, as two pipelines that were given the same transactional id by mistake."""
    name = topic()
    one, two = make(broker, name, tmp_path / "one"), make(broker, name, tmp_path / "two")
    for sink in (one, two):
        sink.recover(-1, [])
        sink.open({"node": SCHEMA}, attempt=1, shard=0)
    one.write("node", batch(0, ROWS))
    one.commit(0, one.prepare(0))  # takes its name back, after it has made sure that nothing was sent
    assert values(broker, name) == list(range(ROWS))
    one.close()
    two.close()


def test_a_staged_file_that_is_gone_is_an_error_unless_it_was_published(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic()
    sink = make(broker, name, tmp_path)
    sink.recover(-1, [])
    sink.open({"node": SCHEMA}, attempt=1, shard=0)
    sink.write("node", batch(0, ROWS))
    staged = sink.prepare(0)
    sink.close()
    (tmp_path / staged[0].staged).unlink()
    with pytest.raises(SinkError, match="neither staged nor published"):
        make(broker, name, tmp_path).recover(0, staged)


def test_a_message_that_is_too_large_is_refused_before_the_epoch_is_committed(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    sink = make(broker, topic(max_message_bytes="2000"), tmp_path)
    sink.recover(-1, [])
    schema = SCHEMA.append(pa.field("text", pa.string()))
    sink.open({"node": schema}, attempt=1, shard=0)
    rows = batch(0, 3)
    large = pa.RecordBatch.from_arrays([*rows.columns, pa.array(["a", "b" * 3000, "c"])], schema=schema)
    sink.write("node", large)
    with pytest.raises(SinkError, match=r"sequence 1\) is larger than .* max_message_bytes .* max.message.bytes"):
        sink.prepare(0)
    sink.close()


def test_a_topic_that_is_not_there_is_named(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = make(broker, "no-such-topic", tmp_path)
    sink.recover(-1, [])
    with pytest.raises(SinkError, match="'no-such-topic' is not there"):
        sink.open({"node": SCHEMA}, attempt=1, shard=0)


def test_arrow_messages_hold_the_rows_of_many_streams_in_order(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic(2)
    Run(lambda: make(broker, name, tmp_path / "out", format="arrow"), tmp_path / "manifest").go()
    records = committed_records(broker, name)
    assert len(records) <= EPOCHS * 2
    rows: list[dict[str, Any]] = []
    for _, _, key, value, headers, _ in records:
        assert key is None
        assert dict(headers)["ct"] == b"application/vnd.apache.arrow.stream"
        rows += pa.ipc.open_stream(value).read_all().to_pylist()
    assert sorted(row["sequence"] for row in rows) == EXPECTED
    for stream in ("s0", "s1", "s2"):
        of_stream = [row["sequence"] for row in rows if row["stream_id"] == stream]
        assert of_stream == sorted(of_stream)


def test_frames_keep_their_bytes_and_tell_size_and_time_in_headers(
    broker: Broker, topic: Callable[..., str], tmp_path: Path
) -> None:
    name = topic()
    frames = pa.RecordBatch.from_arrays(
        [
            pa.array(["cam", "cam"]),
            pa.array([7, 8]),
            pa.array([1_700_000_000_123_456, 1_700_000_000_200_000]).cast(TIME_TYPE),
            pa.array([b"\xff\xd8jpeg", None], pa.binary()),
            pa.array(["jpeg", None]),
            pa.array([480, None], pa.int32()),
            pa.array([640, None], pa.int32()),
            pa.array([None, "cannot be decoded"]),
        ],
        schema=FRAME,
    )
    sink = make(broker, name, tmp_path, format="frame")
    sink.recover(-1, [])
    sink.open({"node": FRAME}, attempt=1, shard=0)
    sink.write("node", frames)
    sink.commit(0, sink.prepare(0))
    sink.close()
    (_, _, key, value, headers, timestamp), bad = committed_records(broker, name)
    assert (key, value, timestamp) == (b"cam", b"\xff\xd8jpeg", 1_700_000_000_123)
    expected = {"ct": b"image/jpeg", "ts_ns": b"1700000000123456000", "seq": b"7", "w": b"640", "h": b"480"}
    assert dict(headers) == {**expected, "schema": b"frame.v1"}
    assert bad[3] == b"cannot be decoded"


def test_options_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    given = {"bootstrap_servers": "h:1", "topic": "t", "path": tmp_path, "transactional_id": "x"}
    with pytest.raises(ConfigError, match="exclude: has no effect"):
        KafkaSinkOptions(**given, format="frame", exclude=["image"])
    with pytest.raises(ConfigError, match="transactional_id: is empty"):
        KafkaSinkOptions(**{**given, "transactional_id": ""})
    with pytest.raises(ConfigError, match="format: frame needs rows of frames"):
        KafkaSink(KafkaSinkOptions(**given, format="frame")).examine({"node": SCHEMA})
