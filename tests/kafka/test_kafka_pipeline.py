"""Kafka → operator → Kafka and Parquet on a real broker: the rows of an undisturbed run, whatever is killed."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_workload import hurry, run_process
from kafka import KafkaProducer
from kafka_broker import PASSWORD, USER, Broker, committed_records

from connectors import faults
from connectors.sinks.read import read_committed
from pipelines import Pipeline

ROWS = 3000
STREAMS = 8
PARTITIONS = 4
Topic = Callable[..., str]
Rows = dict[str, list[tuple[int, float]]]


def fill(broker: Broker, topic: str) -> Rows:
    """Send values of 8 streams; return the running means per stream, computed the plain way."""
    draw = random.Random(0)
    producer = KafkaProducer(bootstrap_servers=broker.address, linger_ms=20)
    sums: dict[str, tuple[int, float]] = {}
    means: Rows = {}
    for n in range(ROWS):
        stream, value = f"s{draw.randrange(STREAMS)}", round(draw.random(), 3)
        producer.send(topic, json.dumps({"v": value}).encode(), stream.encode(), timestamp_ms=1_700_000_000_000 + n)
        count, total = sums.get(stream, (0, 0.0))
        sums[stream] = (count + 1, total + value)
        means.setdefault(stream, []).append((count + 1, (total + value) / (count + 1)))
    producer.flush()
    producer.close()
    return means


def pipeline(broker: Broker, source: str, target: str, run: Path, *, slow_s: float = 0.0) -> dict[str, Any]:
    here = {"type": "kafka", "bootstrap_servers": broker.address}
    sink = {**here, "input": "mean", "topic": target, "path": str(run / "staged"), "transactional_id": target}
    return {
        "name": "means",
        "state": str(run / "state"),
        "epoch_s": 0.25,
        "sources": {"events": {**here, "topic": source, "columns": {"v": "double"}, "until": "latest", "parallelism": 2}},
        "operators": {
            "mean": {
                "type": "pipelines.testing.running_mean:RunningMean",
                "input": "events",
                "max_batch": 64,
                "max_wait_ms": 0,
                "slow_s": slow_s,
                "slow_until": str(run / "hurry"),
            }
        },
        "sinks": {"topic": sink, "rows": {"type": "parquet", "input": "mean", "path": str(run / "rows")}},
    }


def in_kafka(broker: Broker, topic: str) -> Rows:
    """Read what a consumer of committed messages sees, in the order of each partition."""
    streams: Rows = {}
    for record in committed_records(broker, topic):
        row = json.loads(record[3])
        assert row["stream_id"].encode() == record[2]
        streams.setdefault(row["stream_id"], []).append((row["n"], row["m"]))
    return streams


def in_parquet(run: Path) -> Rows:
    streams: Rows = {}
    for row in read_committed(run / "rows").to_pylist():
        streams.setdefault(row["stream_id"], []).append((row["n"], row["m"]))
    return streams


def check(broker: Broker, topic: str, run: Path, expected: Rows) -> None:
    assert in_kafka(broker, topic) == expected
    assert in_parquet(run) == expected
    assert not list(run.rglob("*.staged"))


@pytest.fixture(scope="session")
def filled(broker: Broker) -> tuple[str, Rows]:
    """A topic with values, and the means that must come out."""
    name = broker.create_topic("means-in", PARTITIONS)
    return name, fill(broker, name)


# One epoch for the points of transactions: which of many epochs have rows depends on how soon the brokers answer.
@pytest.mark.parametrize(
    ("fault", "epoch_s", "slow_s"),
    [
        pytest.param("after_manifest:epoch=1", 0.25, 0.1, marks=pytest.mark.slow),
        pytest.param("after_transaction:epoch=0", 60.0, 0.0, marks=pytest.mark.slow),
        ("in_transaction:epoch=0", 60.0, 0.0),
    ],
)
def test_the_driver_killed_at_any_point_loses_nothing_and_doubles_nothing(
    broker: Broker, topic: Topic, filled: tuple[str, Rows], tmp_path: Path, fault: str, epoch_s: float, slow_s: float
) -> None:
    target = topic(PARTITIONS)
    values = {**pipeline(broker, filled[0], target, tmp_path, slow_s=slow_s), "epoch_s": epoch_s}
    assert run_process(values, fault=fault) == -signal.SIGKILL
    hurry(tmp_path)
    assert run_process(values, resume=True) == 0
    check(broker, target, tmp_path, filled[1])


def test_both_ways_encrypted_with_user_and_password_from_environment_and_file(
    broker: Broker, topic: Topic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = topic(PARTITIONS), topic(PARTITIONS)
    expected = fill(broker, source)
    monkeypatch.setenv("STREAMBANK_TEST_USER", USER)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    secure = {
        "bootstrap_servers": broker.sasl_address,
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(broker.ca_file),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": {"env": "STREAMBANK_TEST_USER"},
        "sasl_password": {"file": str(tmp_path / "password")},
    }
    values = pipeline(broker, source, target, tmp_path)
    values["sources"]["events"].update(secure)
    values["sinks"]["topic"].update(secure)
    Pipeline.from_dict(values).run()
    check(broker, target, tmp_path, expected)
    kept = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not kept


def test_a_finished_run_is_read_back_by_a_source_of_the_same_format(
    broker: Broker, topic: Topic, filled: tuple[str, Rows], tmp_path: Path
) -> None:
    target = topic(2)
    values = pipeline(broker, filled[0], target, tmp_path)
    values["sinks"]["topic"]["format"] = "arrow"
    Pipeline.from_dict(values).run()
    back = {
        "name": "back",
        "state": str(tmp_path / "back"),
        "sources": {
            "means": {
                **{key: values["sources"]["events"][key] for key in ("type", "bootstrap_servers", "until")},
                "topic": target,
                "format": "arrow",
                "columns": {
                    "stream_id": "string",
                    "sequence": "int64",
                    "event_time": "timestamp[us]",
                    "n": "int64",
                    "m": "double",
                },
            }
        },
        "sinks": {"rows": {"type": "arrow", "input": "means", "path": str(tmp_path / "rows2")}},
    }
    table = Pipeline.from_dict(back).run().table("rows")
    streams: Rows = {}
    for row in table.to_pylist():
        streams.setdefault(row["stream_id"], []).append((row["n"], row["m"]))
    assert streams == filled[1]
    assert table.column("error").null_count == ROWS


@pytest.mark.slow  # the short soak in test_kafka_faults.py kills a sink actor on Ray each time, at a moment of its own
@pytest.mark.ray
def test_on_ray_a_killed_sink_actor_is_replaced_and_every_row_comes_once(
    broker: Broker, topic: Topic, filled: tuple[str, Rows], tmp_path: Path, ray_address: str
) -> None:
    target = topic(PARTITIONS)
    values = {**pipeline(broker, filled[0], target, tmp_path, slow_s=0.1), "runner": "ray"}
    from pipelines.runners import run

    try:
        report = run(Pipeline.from_dict(values).spec, runner="ray", resume=False, fault="before_commit:epoch=1:task=topic[0]")
    finally:
        faults.arm(None)
    assert report.attempts == 2
    check(broker, target, tmp_path, filled[1])
