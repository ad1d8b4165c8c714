"""Samples and prompts on a real broker: the states, segments and events of a replay of files; and prompts by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking_workload import running
from kafka import KafkaProducer
from kafka_broker import Broker
from memprompttss_streams import STEP_US, network, wave

from connectors.sinks.read import read_committed
from pipelines import Pipeline

STREAMS, LENGTH = "abc", 120
SAMPLE = {"t": "int64", "values": "list<float>"}
PROMPT = {
    "t": "int64",
    "prompt_id": "string",
    "kind": "string",
    "at": "timestamp[us, UTC]",
    "state": "int32",
    "target": "string",
}

Topic = Callable[..., str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return network(tmp_path_factory.mktemp("network"))


def lines() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of samples and of prompts, in the order of time."""
    waves = {name: wave(LENGTH, n) for n, name in enumerate(STREAMS)}
    samples = [
        {"stream_id": name, "t": n * STEP_US, "values": [float(v) for v in x_LC[n]]}
        for n in range(LENGTH)
        for name, x_LC in waves.items()
    ]
    prompts: list[dict[str, Any]] = []
    for number, name in enumerate(STREAMS):
        at = f"1970-01-01T00:00:00.{30 + number}Z"
        prompts.append({"stream_id": name, "t": 505_000, "prompt_id": name, "kind": "label", "at": at, "state": number})
    prompts.append({"stream_id": "b", "t": 805_000, "prompt_id": "back", "kind": "retract", "target": "b"})
    return samples, prompts


def pipeline(run: Path, checkpoint: str, samples: dict[str, Any], prompts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "machines",
        "state": str(run / "state"),
        "epoch_s": 0.2,
        "sources": {
            "samples": {"event_time": "t", "event_time_unit": "us", "columns": SAMPLE, **samples},
            "prompts": {"event_time": "t", "event_time_unit": "us", "columns": PROMPT, **prompts},
        },
        "operators": {
            "segment": {"type": "memprompttss", "input": "samples", "control": "prompts", "checkpoint": checkpoint}
            | {"history": 64, "bank_gib": 0.5, **more}
        },
        "sinks": {
            name: {"type": "jsonl", "input": f"segment.{name}", "path": str(run / name)}
            for name in ("states", "segments", "bank")
        },
    }


def found(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each output without what counts messages, in the order of their streams."""
    rows = {name: read_committed(run / name).to_pylist() for name in ("states", "segments", "bank")}
    for name, own in rows.items():
        for row in own:
            for key in ("sequence", "end_sequence", "confidence", "mean_confidence"):
                row.pop(key, None)
        rows[name] = sorted(own, key=lambda row: str(row["stream_id"]))
    return rows


def send(broker: Broker, topic: str, rows: list[dict[str, Any]]) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for row in rows:
        body = {name: value for name, value in row.items() if name != "stream_id"}
        producer.send(topic, json.dumps(body).encode(), row["stream_id"].encode())
    producer.flush()
    producer.close()


def test_topics_of_samples_and_prompts_give_the_rows_of_files(
    broker: Broker, topic: Topic, checkpoint: str, tmp_path: Path
) -> None:
    rows = lines()
    files = []
    for name, own in zip(("samples", "prompts"), rows, strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        files.append({"type": "jsonl", "path": str(tmp_path / f"{name}.jsonl")})
    Pipeline.from_dict(pipeline(tmp_path / "files", checkpoint, *files, align_s=0.1)).run()
    wanted = found(tmp_path / "files")
    assert [row["op"] for row in wanted["bank"]] == ["write", "write", "retract", "write"]
    topics = []
    for own in rows:
        topics.append({"type": "kafka", "bootstrap_servers": broker.address, "topic": topic(3), "until": "latest"})
        send(broker, topics[-1]["topic"], own)
    for shards in (1, 3):
        run = tmp_path / f"shards{shards}"
        Pipeline.from_dict(pipeline(run, checkpoint, *topics, align_s=0.1, shards=shards)).run()
        assert found(run) == wanted


def test_a_prompt_put_by_the_command_goes_through_a_topic(
    broker: Broker, topic: Topic, checkpoint: str, tmp_path: Path
) -> None:
    samples, _ = lines()
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    files = {"type": "jsonl", "path": str(tmp_path / "samples.jsonl")}
    columns = {"prompt_id": "string", "kind": "string", "state": "int32", "at_offset_s": "double"}
    told = {"type": "kafka", "bootstrap_servers": broker.address, "topic": topic(2), "stay": True}
    values = pipeline(tmp_path / "run", checkpoint, files, told | {"columns": columns, "event_time": None})
    values["sources"]["prompts"].pop("event_time_unit")
    with running(values):
        answer = Pipeline.from_dict(values).prompt("label", 2, stream="c", at="-0.3s")
        assert answer.row is not None and (answer.row["op"], answer.row["status"]) == ("write", "ok")
        refused = Pipeline.from_dict(values).prompt("label", 9, stream="c", at="-0.3s")
        assert refused.row is not None and refused.row["status"] == "rejected_prompt"
    revised = [row for row in read_committed(tmp_path / "run" / "states").to_pylist() if row["revision"]]
    assert revised and all(row["caused_by"] == [answer.id] for row in revised)
