"""The ready pipeline from end to end: a made-up stream with shifts, replayed from Parquet through the local runner."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from models.reloop2.drifting_clicks import DriftConfig
from models.reloop2.train import train
from operators.base import Context
from operators.reloop2 import ReLoop2Operator
from pipelines.check import check_spec
from pipelines.file import load_spec
from pipelines.registry import ready_pipelines
from pipelines.runners import run
from pipelines.spec import PipelineSpec

WORLD = DriftConfig(
    users=40, items=30, training_rows=6000, steady_rows=500, shifted_rows=500, raised_rows=4000, back_rows=2000, raise_by=2.0
)


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, impressions and labels."""
    folder = tmp_path_factory.mktemp("drift")
    train(folder, recipe="drift", world=WORLD)
    return folder


def replay_spec(drift: Path, out: Path, *more: str) -> PipelineSpec:
    """Return the ready pipeline with small sizes and windows of 10 s."""
    sets = [
        f"shown.path={drift}/impressions.parquet",
        f"labels.path={drift}/labels.parquet",
        f"predict.checkpoint={drift}/drift.safetensors",
        f"predictions.path={out}/predictions",
        f"windows.path={out}/windows",
        f"state={out}/state",
        "quality.window_s=10",
        "quality.label_timeout_s=20",
        "quality.capacity=20000",
        "predict.bits=12",
        "predict.arrays=20",
        "predict.label_timeout_s=20",
        "predict.micro_batch=64",
        "predict.align_s=2",
        "quality.align_s=2",
    ]
    return load_spec(ready_pipelines()["reloop2_replay"], sets=[*sets, *more])


def replay(drift: Path, out: Path, *more: str) -> tuple[pa.Table, pa.Table]:
    """Run the ready pipeline; return predictions and windows in order."""
    report = run(replay_spec(drift, out, *more))
    assert report.status == "finished"
    return tuple(  # type: ignore[return-value]
        ds.dataset(out / name).to_table().sort_by("sequence") for name in ("predictions", "windows")
    )


@pytest.mark.heavy
def test_replay_follows_the_shift_and_repeats_to_the_bit(drift: Path, tmp_path: Path):
    predictions, windows = replay(drift, tmp_path / "a")
    assert predictions.num_rows == 7000
    assert set(predictions.column("status").to_pylist()) == {"ok"}
    rows = windows.to_pylist()
    assert sum(row["n"] for row in rows) + 2000 > 7000  # all but the windows whose labels were not due yet
    raised = rows[4:9]  # of 500 impressions each; the bias has risen in the third
    assert all(row["logloss_pred"] < row["logloss_base"] - 0.02 for row in raised)
    again, same_windows = replay(drift, tmp_path / "b", "predict.max_batch=100", "shown.parallelism=2", "epoch_s=0.2")
    assert again.equals(predictions)
    assert same_windows.equals(windows)


def test_ready_replay_passes_the_check(drift: Path, tmp_path: Path):
    found = check_spec(replay_spec(drift, tmp_path))
    assert {finding.level for finding in found} == {"ok"}
    assert [finding.where for finding in found][2:4] == ["operators.predict", "operators.quality"]


def test_topics_of_the_ready_kafka_pipeline_fit_the_operator(drift: Path):
    """Without a broker: rows of the declared columns go through the operator with a model of these features."""
    spec = load_spec(ready_pipelines()["reloop2_kafka"], sets=[f"predict.checkpoint={drift}/drift.safetensors"])
    shown, labels = (one_row(source.build().schema) for source in spec.sources)
    operator = ReLoop2Operator(spec.operators[0].options, Context("predict"))
    (row,) = operator.process(shown)[0].to_pylist()
    assert row["status"] == "ok"
    assert operator.control(labels) == []


def one_row(schema: pa.Schema) -> pa.RecordBatch:
    """Return a row of values that fit an id, a time, a feature and a label alike; ``error`` is null."""
    values = [None if field.name == "error" else "1" if pa.types.is_string(field.type) else 1 for field in schema]
    return pa.RecordBatch.from_arrays([pa.array([v], f.type) for v, f in zip(values, schema, strict=True)], schema=schema)


def test_lengths_of_event_time_that_do_not_go_together_are_warned_of(drift: Path, tmp_path: Path) -> None:
    def warned(*more: str) -> list[tuple[str, str]]:
        findings = check_spec(replay_spec(drift, tmp_path, *more))
        return [(f.where, f.message) for f in findings if f.level == "warning"]

    assert warned() == []
    found = warned(
        "predict.label_timeout_s=5",
        "predict.allowed_lateness_s=2",
        "predict.align_s=10",
        "quality.align_s=10",
        "quality.window_s=4",
    )
    assert [where for where, _ in found] == ["operators.predict.label_timeout_s", "operators.quality.window_s"]
    assert "impressions wait 7 s only" in found[0][1] and "set allowed_lateness_s to 10" in found[0][1]
    assert "windows of 4 s are shorter than align_s (10 s)" in found[1][1]
