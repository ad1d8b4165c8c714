"""The ready pipeline on a real broker: the scores of events from a topic are those of the same events from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer
from kafka_broker import Broker
from prompttpp_streams import network, operator, stream, table

from connectors.sinks.read import read_committed
from pipelines.file import load_spec
from pipelines.registry import ready_pipelines
from pipelines.runners import run

SIZES = {"max_streams": 8, "window": 6, "grid": 17, "points": 5}
SAME = ("type", "loglik", "pit", "type_rank", "next_dt_mean", "next_t", "type_probs", "n_history", "model_version", "status")


def send(broker: Broker, topic: str, events: pa.RecordBatch) -> None:
    """Put each event into the topic as the ready pipeline wants it: JSON, keyed by the stream."""
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for row in events.to_pylist():
        message = {"event_time": row["event_time"].isoformat(), "type": row["type"]}
        producer.send(topic, json.dumps(message).encode(), row["stream_id"].encode())
    producer.flush()
    producer.close()


def by_key(rows: list[dict[str, Any]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return what is said of each key's events, in their order."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in sorted(rows, key=lambda row: (row["stream_id"], row["sequence"])):
        found.setdefault(row["stream_id"], []).append(tuple(row[name] for name in SAME))
    return found


@pytest.mark.parametrize(
    ("partitions", "learning"), [(3, {"learn": "off"}), (1, {"learn": "prompts", "learn_batch": 6, "learn_history": 3})]
)
def test_a_topic_is_scored_as_the_same_events_of_a_file(
    broker: Broker, topic: Callable[..., str], tmp_path: Path, partitions: int, learning: dict[str, Any]
) -> None:
    events, weights, name = stream(4, 12), network(tmp_path), topic(partitions)
    send(broker, name, events)
    options = {**SIZES, **learning}
    sets = [
        f"events.bootstrap_servers={broker.address}",
        f"events.topic={name}",
        "events.until=latest",
        f"next.checkpoint={weights}",
        f"scores.path={tmp_path}/scores",
        f"state={tmp_path}/state",
        *(f"next.{option}={value}" for option, value in options.items()),
    ]
    assert run(load_spec(ready_pipelines()["prompttpp_kafka"], sets=sets)).status == "finished"
    wanted = by_key(table(operator(weights, **options).process(events)).to_pylist())
    assert by_key(read_committed(tmp_path / "scores").to_pylist()) == wanted
    assert sum(map(len, wanted.values())) == 48
    if learning["learn"] != "off":
        assert max(row[SAME.index("model_version")] for rows in wanted.values() for row in rows) == (48 - 4) // 6
