"""The ready pipelines: a simulated stream replayed from Parquet, and messages of the Kafka one, without a broker."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from prompttpp_streams import network

from models.prompttpp.recipe import Drift, Recipe, write_data
from operators.base import Context
from operators.prompttpp import PromptTPPOperator
from pipelines.check import check_spec
from pipelines.file import load_spec
from pipelines.registry import ready_pipelines
from pipelines.runners import run
from pipelines.spec import PipelineSpec


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and events."""
    folder = tmp_path_factory.mktemp("drift")
    network(folder)
    write_data(Recipe(drift=Drift(keys=5, phases=(0, 1), training_phases=1, phase_s=1200.0)), folder, 0)
    return folder


def replay_spec(drift: Path, out: Path, *more: str) -> PipelineSpec:
    sets = [
        f"events.path={drift}/events.parquet",
        f"next.checkpoint={drift}/s2p2.safetensors",
        f"scores.path={out}/scores",
        f"state={out}/state",
        "next.max_streams=16",
        "next.learn_batch=20",
    ]
    return load_spec(ready_pipelines()["prompttpp_replay"], sets=[*sets, *more])


def replay(drift: Path, out: Path, *more: str) -> pa.Table:
    assert run(replay_spec(drift, out, *more)).status == "finished"
    return ds.dataset(out / "scores").to_table().sort_by([("stream_id", "ascending"), ("sequence", "ascending")])


@pytest.mark.heavy
def test_replay_learns_and_repeats_to_the_bit(drift: Path, tmp_path: Path) -> None:
    scores = replay(drift, tmp_path / "a")
    assert scores.num_rows > 60
    assert set(scores.column("status").to_pylist()) <= {"ok", "warmup", "long_gap"}
    assert max(scores.column("model_version").to_pylist()) >= 2
    assert replay(drift, tmp_path / "b", "next.max_batch=7", "epoch_s=0.2").equals(scores)


def test_ready_replay_passes_the_check(drift: Path, tmp_path: Path) -> None:
    assert {finding.level for finding in check_spec(replay_spec(drift, tmp_path))} == {"ok"}


def test_the_topic_of_the_ready_kafka_pipeline_fits_the_operator(drift: Path) -> None:
    spec = load_spec(
        ready_pipelines()["prompttpp_kafka"], sets=[f"next.checkpoint={drift}/s2p2.safetensors", "next.max_streams=16"]
    )
    (source,) = spec.sources
    schema = source.build().schema
    values = {"stream_id": "user1", "sequence": 0, "event_time": 0, "type": 1}
    columns = [pa.array([values.get(field.name)], pa.int64() if field.name == "event_time" else field.type) for field in schema]
    columns = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    (out,) = PromptTPPOperator(spec.operators[0].options, Context("next")).process(batch)
    assert isinstance(out, pa.RecordBatch)
    assert out.to_pylist()[0]["status"] == "warmup"
