"""PromptTPP killed at the points of an epoch while it learns: resumed, every score and every prompt is the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_workload import run_here, run_process
from prompttpp_streams import network, stream

from connectors.sinks.read import read_committed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    network(folder)
    pq.write_table(pa.Table.from_batches([stream(4, 20)]), folder / "events.parquet")
    return folder


def pipeline(data: Path, run: Path, *, learn: str = "prompts", pace: str | float = "max", shards: int = 1) -> dict[str, Any]:
    learning = {} if learn == "off" else {"learn_batch": 6, "learn_history": 3, "refresh_lag": 1}
    return {
        "name": "risk",
        "state": str(run / "state"),
        "epoch_s": 0.2,
        "sources": {"events": {"type": "parquet", "path": str(data / "events.parquet"), "pace": pace}},
        "operators": {
            "next": {
                "type": "prompttpp", "input": "events", "checkpoint": str(data / "s2p2.safetensors"), "max_streams": 8,
                "window": 6, "grid": 17, "points": 5, "learn": learn, "shards": shards, "max_batch": 16, **learning,
            }
        },
        "sinks": {"scores": {"type": "parquet", "input": "next", "path": str(run / "scores")}},
    }  # fmt: skip


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_committed(run / "scores").to_pylist()
    return sorted(found, key=lambda row: (row["stream_id"], row["sequence"]))


@pytest.mark.heavy
def test_shards_change_no_score_without_learning(data: Path, tmp_path: Path) -> None:
    run_here(pipeline(data, tmp_path / "one", learn="off"))
    run_here(pipeline(data, tmp_path / "three", learn="off", shards=3))
    assert len(rows(tmp_path / "one")) == 80
    assert rows(tmp_path / "one") == rows(tmp_path / "three")


@pytest.mark.parametrize(
    "point",
    [
        "after_manifest:epoch=1",
        pytest.param("before_snapshot:epoch=1", marks=pytest.mark.slow),
        pytest.param("after_prepare:epoch=0", marks=pytest.mark.slow),
    ],
)
@pytest.mark.heavy
def test_a_kill_while_learning_changes_no_bit(data: Path, tmp_path: Path, point: str) -> None:
    run_here(pipeline(data, tmp_path / "whole"))
    wanted = rows(tmp_path / "whole")
    assert len(wanted) == 80 and wanted[-1]["model_version"] > 5
    # The stream is about half an hour long; a hundred times that fast.
    values = pipeline(data, tmp_path / "killed", pace=500.0)
    assert run_process(values, fault=point) == -signal.SIGKILL
    assert run_process(values, resume=True) == 0
    assert rows(tmp_path / "killed") == wanted
