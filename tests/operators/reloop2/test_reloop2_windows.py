"""Metrics per window of event time: against a plain computation, whatever the cuts and restores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from reloop2_streams import Events, drifting, labels, make, rows_of

from connectors.errors import RecoveryError
from models.reloop2.evaluate import evaluate
from operators.base import Context
from operators.reloop2 import CtrWindows, CtrWindowsOptions
from pipelines.testing._compare import clone_state, state_difference

SMALL: dict[str, Any] = {"window_s": 25.0, "label_timeout_s": 30.0, "allowed_lateness_s": 1.0}


def windows(**options: Any) -> CtrWindows:
    return CtrWindows(CtrWindowsOptions(**(SMALL | options)), Context("quality"))


@functools.cache
def predicted(model: str, **options: Any) -> Events:
    """Predictions of the operator in the place of impressions, and the same labels."""
    events = drifting(200, **options)
    out = events.run(make(model, label_timeout_s=30.0, allowed_lateness_s=1.0, soft_labels=False))
    return Events(out.combine_chunks().to_batches()[0], events.labels, events.order)


@pytest.mark.heavy
def test_window_agrees_with_a_plain_computation(ctr_model: str):
    events = predicted(ctr_model, streams=4, delay=3)
    rows = rows_of(events.run(windows(group="stream_id")).to_batches())
    assert [row["sequence"] for row in rows] == [0, 1, 2, 3, 4, 5]
    keyed: dict[int, float] = {}
    for is_label, row in events.order:  # the first label counts; all are in time here, or never come
        if is_label:
            keyed.setdefault(events.labels.column("impression_id")[row].as_py(), events.labels.column("label")[row].as_py())
    table = events.impressions.to_pylist()
    for row in rows:
        mine = [p for p in table if p["event_time"].timestamp() // 25.0 == row["sequence"]]
        given = [keyed.get(p["impression_id"], 0.0) for p in mine]
        for name in ("base", "pred"):
            wanted = evaluate(given, [p[f"y_{name}"] for p in mine], [p["stream_id"] for p in mine])
            assert row["n"] == wanted.rows == 25
            assert row[f"logloss_{name}"] == pytest.approx(wanted.logloss)
            assert row[f"auc_{name}"] == pytest.approx(wanted.auc)
            assert row[f"gauc_{name}"] == pytest.approx(wanted.gauc)
        assert row["ctr"] == pytest.approx(np.mean(given))
        assert row["timeouts"] == sum(p["impression_id"] not in keyed for p in mine)
        assert (row["window_start"].timestamp(), row["event_time"].timestamp()) == (
            row["sequence"] * 25,
            row["sequence"] * 25 + 25,
        )


@pytest.mark.heavy
def test_window_of_one_class_has_no_auc(ctr_model: str):
    events = predicted(ctr_model)
    negatives = events.labels.set_column(4, "label", pc.multiply(events.labels.column("label"), pa.scalar(0.0, pa.float32())))
    rows = rows_of(Events(events.impressions, negatives, events.order).run(windows(group="stream_id")).to_batches())
    assert rows
    for row in rows:
        assert (row["auc_base"], row["auc_pred"], row["gauc_pred"]) == (None, None, None)
        assert row["logloss_pred"] is not None


@pytest.mark.heavy
def test_dropped_timeouts_leave_the_labeled_rows(ctr_model: str):
    events = predicted(ctr_model)
    kept = rows_of(events.run(windows(on_timeout="drop")).to_batches())
    assert all(row["n"] == 25 - row["timeouts"] for row in kept)
    assert sum(row["timeouts"] for row in kept) > 5
    assert kept[0]["gauc_base"] is None


@pytest.mark.parametrize(
    "options", [{}, {"capacity": 40}, pytest.param({"early_capacity": 1}, marks=pytest.mark.slow), {"allowed_lateness_s": 0.0}]
)
@pytest.mark.heavy
def test_cuts_and_restores_change_nothing(ctr_model: str, options: dict[str, Any]):
    events = predicted(ctr_model, duplicates=0.1)
    # Some rows are far out of order.
    times = events.impressions.column("event_time").cast(pa.int64()).to_numpy().copy()
    times[::17] -= 20_000_000
    times[5::41] += 45_000_000
    shuffled = events.impressions.set_column(2, "event_time", pa.array(times.clip(0)).cast(pa.timestamp("us", "UTC")))
    events = Events(shuffled, events.labels, events.order)
    whole = windows(**options)
    wanted = events.run(whole)
    assert wanted.num_rows > 3
    for seed in range(2):
        operator = windows(**options)
        rng = np.random.default_rng(seed)
        parts = [events.run(operator, rng, stop=150)]
        state = clone_state(operator.snapshot())
        parts.append(events.run(operator, rng, start=150, stop=200))
        state = state.apply(operator.snapshot(incremental=True))
        assert state_difference(operator.snapshot(), state) is None
        second = windows(**options)
        second.restore(state)
        parts.append(events.run(second, rng, start=200))
        assert pa.concat_tables(parts).equals(wanted)
        assert state_difference(whole.snapshot(), second.snapshot()) is None


@pytest.mark.heavy
def test_predictions_beyond_the_capacity_are_counted(ctr_model: str):
    rows = rows_of(predicted(ctr_model).run(windows(capacity=30)).to_batches())
    assert sum(row["dropped"] for row in rows) > 50
    assert all(row["n"] <= 30 for row in rows)


def test_answers_and_rejected_rows_are_passed_over(ctr_model: str):
    answered = make(ctr_model).control(labels([1], [5.0]))
    assert windows().process(answered[0]) == []
    assert windows().control(labels([1, 2, None], [5.0, None, 1.0])) == []


def test_snapshot_of_other_sizes_or_of_an_earlier_version_is_refused():
    with pytest.raises(RecoveryError, match="'capacity': 7"):
        windows(capacity=7).restore(windows().snapshot())
    state = windows().snapshot()
    del state.meta["version"]
    with pytest.raises(RecoveryError, match="earlier version"):
        windows().restore(state)
    with pytest.raises(RecoveryError, match="incremental"):
        windows().restore(windows().snapshot(incremental=True))
