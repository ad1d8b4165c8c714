"""Mode ``posting_lists``: rows on disk, with the promises of the modes in memory."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reloop2_streams import drifting, make

from connectors.errors import ConfigError, RecoveryError
from operators.reloop2 import ReLoop2Operator, ReLoop2Options, budget, row_memory
from operators.state import State
from pipelines.testing._compare import clone_state, state_difference

pytestmark = pytest.mark.heavy

TIMES = {"label_timeout_s": 30.0, "allowed_lateness_s": 1.0, "top_k": 5}


@pytest.fixture(autouse=True)
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (row_memory, budget):
        monkeypatch.setattr(module, "TAIL_ROWS", 8)


def on_disk(ctr_model: str, folder: Path, **options: Any) -> ReLoop2Operator:
    return make(ctr_model, mode="posting_lists", lists_path=str(folder), **{"capacity": 50, **TIMES, **options})


def without_folder(state: State) -> State:
    meta = {name: value for name, value in state.meta.items() if name != "memory.ring.folder"}
    return dataclasses.replace(clone_state(state), meta=meta)


def test_while_every_list_is_read_predictions_are_those_of_the_exact_search(ctr_model: str, tmp_path: Path):
    events = drifting(150)
    disk = on_disk(ctr_model, tmp_path, capacity=1000, lists_per_query=10_000)
    wanted = events.run(make(ctr_model, mode="knn", capacity=1000, **TIMES))
    got = events.run(disk)
    assert np.allclose(got.column("y_pred").to_numpy(), wanted.column("y_pred").to_numpy(), atol=1e-6)
    assert list(tmp_path.rglob("*.lists"))
    assert disk.metrics()["bank_rows"] > 80


def test_the_oldest_rows_go_and_disk_and_memory_stay_bounded(ctr_model: str, tmp_path: Path):
    operator = on_disk(ctr_model, tmp_path)  # 8 slices of 8 rows
    events = drifting(180)
    sizes = []
    for start in range(0, len(events.order), 60):
        events.run(operator, start=start, stop=start + 60)
        operator.snapshot()
        sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*.lists")))
    assert 8 * 8 <= operator.metrics()["bank_rows"] <= 10 * 8
    assert max(sizes[3:]) < 1.5 * sizes[3]
    assert operator.metrics()["bank_bytes_device"] <= budget.disk_bytes(operator.options, operator._scorer.model.hidden_dim)


def test_cuts_change_neither_output_nor_state(ctr_model: str, tmp_path: Path):
    events = drifting(120, duplicates=0.1)
    whole = on_disk(ctr_model, tmp_path / "whole")
    wanted = events.run(whole)
    cut = on_disk(ctr_model, tmp_path / "cut")
    assert events.run(cut, np.random.default_rng(0)).equals(wanted)
    assert state_difference(without_folder(whole.snapshot()), without_folder(cut.snapshot())) is None


def test_what_a_killed_run_wrote_after_its_snapshot_does_not_count(ctr_model: str, tmp_path: Path):
    events = drifting(100)
    undisturbed = on_disk(ctr_model, tmp_path / "a")
    wanted = events.run(undisturbed)
    killed = on_disk(ctr_model, tmp_path / "b")
    state = State()
    for start in (0, 35, 70):
        events.run(killed, start=start, stop=start + 35)
        state = state.apply(killed.snapshot(incremental=True)) if start else clone_state(killed.snapshot())
    events.run(killed, start=105, stop=145)
    resumed = on_disk(ctr_model, tmp_path / "b")
    resumed.restore(state)
    after = events.run(resumed, start=105)
    assert after.equals(wanted.slice(wanted.num_rows - after.num_rows))
    assert state_difference(without_folder(undisturbed.snapshot()), without_folder(resumed.snapshot())) is None


def test_a_snapshot_without_rows_is_resumed_from_too(ctr_model: str, tmp_path: Path):
    first = on_disk(ctr_model, tmp_path)
    second = on_disk(ctr_model, tmp_path)
    second.restore(first.snapshot())
    assert second.metrics()["bank_rows"] == 0
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(ctr_model: str, tmp_path: Path):
    first = on_disk(ctr_model, tmp_path)
    drifting(30).run(first)
    state = first.snapshot()
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)
    with pytest.raises(RecoveryError, match=f"{folder.name} is not there.*put the folder back"):
        on_disk(ctr_model, tmp_path).restore(state)


def test_a_folder_that_cannot_be_made_is_named(ctr_model: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"lists_path: cannot make .*file"):
        drifting(100).run(on_disk(ctr_model, tmp_path / "file"))


def test_the_folder_and_the_mode_go_together():
    with pytest.raises(ConfigError, match="needs lists_path"):
        ReLoop2Options(checkpoint="m", mode="posting_lists")
    with pytest.raises(ConfigError, match="lists_path='x' does nothing in mode='knn'; remove it"):
        ReLoop2Options(checkpoint="m", mode="knn", lists_path="x")
