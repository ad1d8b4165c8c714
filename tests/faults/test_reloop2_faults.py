"""ReLoop2 over impressions and delayed labels: killed and resumed, its predictions and its bank are the same bits.

The pipeline aligns labels with impressions by event time; without that, what a prediction saw would depend on the run.
"""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from engine_workload import run_here, run_process
from impressions import impressions_pipeline, write_impressions, write_model
from ray_actors import Actors

from connectors import faults
from connectors.sinks.read import read_committed
from operators.state import State
from pipelines.api import Pipeline
from pipelines.runners import Progress, run
from pipelines.runtime.manifest import read_manifests
from pipelines.runtime.snapshots import read_chain
from pipelines.testing._compare import state_difference

ROWS = 8_000
POINTS = sorted({*faults.POINTS} - {"between_renames"})  # which only epochs with rows have
SMALL: dict[str, Any] = {
    "arrays": 6,
    "bits": 7,
    "micro_batch": 64,
    "max_batch": 256,
    "align_s": 10,
    "label_timeout_s": 60,
    "pending_capacity": 20_000,
}
MODES: dict[str, dict[str, Any]] = {
    "half-life": {"forgetting": "half_life", "forget_rows": 1_000},
    "corrections": {"forgetting": "never", "late_correction_s": 120},
    "knn": {"mode": "knn", "capacity": 1_500, "top_k": 10},
    "per key": {"scope": "per_key", "max_streams": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reloop2")
    write_impressions(folder, ROWS, streams=5)
    write_model(folder / "model.safetensors")
    return folder


def pipeline(folder: Path, run: Path, mode: str, *, pace: float | str = "max", epoch_s: float = 0.05) -> dict[str, Any]:
    """``pace`` 10 brings all impressions in 16 seconds: else runs would be through before they are disturbed."""
    values = impressions_pipeline(folder, run, **SMALL, **MODES[mode])
    values["sources"]["impressions"]["pace"] = pace
    return {**values, "epoch_s": epoch_s}


def predictions(run: Path) -> pa.Table:
    """The committed rows in the order of the file."""
    return read_committed(run / "rows").combine_chunks()


def bank(run: Path) -> State:
    """All of the operator's state at the end, over its shards: sketch or rows, waiting impressions, counters."""
    manifest = read_manifests(run / "state")[0]
    assert manifest.finished
    return State.merge([read_chain(run / "state", shard.chain) for shard in manifest.operators["correct"]])


@pytest.mark.parametrize(
    "mode", [mode if mode == "corrections" else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
)
def test_kills_at_random_points_change_no_prediction_and_no_bit_of_the_bank(mode: str, folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_here(pipeline(folder, whole, mode))
    draw = random.Random(mode)
    made = 0
    for _ in range(3):
        manifests = read_manifests(killed / "state")
        epoch = (manifests[0].epoch if manifests else -1) + draw.randint(1, 3)
        fault = f"{draw.choice(POINTS)}:epoch={epoch}"
        made += run_process(pipeline(folder, killed, mode, pace=10.0, epoch_s=0.2), resume=True, fault=fault) == -signal.SIGKILL
    assert made == 3
    assert run_process(pipeline(folder, killed, mode), resume=True) == 0
    assert predictions(whole).num_rows == ROWS
    assert predictions(killed).equals(predictions(whole))
    assert state_difference(bank(whole), bank(killed)) is None


def test_the_memory_changes_predictions_so_that_a_lost_label_would_show(folder: Path, tmp_path: Path) -> None:
    run_here(pipeline(folder, tmp_path, "half-life"))
    rows = predictions(tmp_path)
    changed = pc.sum(pc.not_equal(rows.column("y_pred"), rows.column("y_base"))).as_py()
    assert changed > 0.9 * ROWS


@pytest.mark.slow  # conformance moves streams between shards
def test_one_shard_stopped_and_resumed_with_three_gives_the_same_memories_of_streams(folder: Path, tmp_path: Path) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run_here(pipeline(folder, whole, "per key"))
    values = pipeline(folder, moved, "per key", pace=20.0)
    stop = threading.Event()

    def watch(reading: Progress) -> None:
        if reading.rows_committed.get("rows"):  # the first epochs may be empty
            stop.set()

    run(Pipeline.from_dict(values).spec, runner="local", stop=stop, on_progress=watch)
    assert 0 < predictions(moved).num_rows < ROWS
    values["sources"]["impressions"]["pace"] = "max"
    values["operators"]["correct"]["shards"] = 3
    run_here(values, resume=True)
    keys = [("stream_id", "ascending"), ("sequence", "ascending")]
    assert predictions(moved).sort_by(keys).equals(predictions(whole).sort_by(keys))
    one, three = bank(whole), bank(moved)
    for state in (one, three):
        del state.dense["used"]  # counts the rows of the shard: who came last
    assert state_difference(one, three) is None


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_address")
def test_on_ray_a_killed_operator_comes_to_the_same_predictions_and_the_same_bank(folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_here(pipeline(folder, whole, "half-life"))
    actors = Actors()
    killed_one = False

    def watch(reading: Progress) -> None:
        nonlocal killed_one
        if not killed_one and reading.rows_committed.get("rows"):
            killed_one = actors.kill("OperatorActor")

    values = pipeline(folder, killed, "half-life", pace=30.0, epoch_s=0.3)
    report = run(Pipeline.from_dict(values).spec, runner="ray", on_progress=watch)
    assert killed_one
    assert report.attempts == 2
    assert predictions(killed).equals(predictions(whole))
    assert state_difference(bank(whole), bank(killed)) is None
