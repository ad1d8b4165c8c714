"""Event time from the engine: what is due, late and cleared when rows come in the order of event time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from reloop2_streams import impressions, labels, make, rows_of

from connectors.errors import ConfigError
from operators.base import Context
from operators.reloop2 import CtrWindows, CtrWindowsOptions, ReLoop2Operator

SERIAL: dict[str, Any] = {"micro_batch": 1, "label_timeout_s": 10.0, "allowed_lateness_s": 0.0}


def show(operator: ReLoop2Operator, key: int, at_s: float) -> dict[str, Any]:
    (row,) = rows_of(operator.process(impressions([key], times_s=[at_s])))
    return row


def test_impression_that_opens_a_micro_batch_sees_what_is_due_by_its_own_time(ctr_model: str):
    for aligned, rows in ((True, 1), (False, 0)):  # without alignment the row before says how far event time is
        operator = make(ctr_model, aligned=aligned, **SERIAL)
        show(operator, 1, 0.0)
        assert show(operator, 2, 10.0)["n_mem"] == rows
        assert operator.metrics()["timeouts"] == rows


def test_lateness_keeps_open_what_is_due(ctr_model: str):
    operator = make(ctr_model, aligned=True, **{**SERIAL, "allowed_lateness_s": 5.0})
    show(operator, 1, 0.0)
    assert show(operator, 2, 14.9)["n_mem"] == 0
    assert show(operator, 3, 15.0)["n_mem"] == 1


def test_memory_is_forgotten_before_the_impression_that_enters_the_next_span(ctr_model: str):
    operator = make(ctr_model, aligned=True, reset_every_s=30.0, **SERIAL)
    show(operator, 1, 1.0)
    operator.control(labels([1], [1.0], times_s=[2.0]))
    show(operator, 2, 3.0)
    assert (show(operator, 3, 30.0)["bank_version"], operator.metrics()["bank_rows"]) == (3, 1)  # written, cleared, timed out


@pytest.mark.parametrize(("at_s", "late"), [(9.9, 0), (10.0, 1), (40.0, 1)])
def test_labels_own_time_says_whether_it_is_in_time(ctr_model: str, at_s: float, late: int):
    """Though no micro-batch has opened since, which would have timed the impression out."""
    operator = make(ctr_model, aligned=True, **SERIAL)
    show(operator, 1, 0.0)
    operator.control(labels([1], [1.0], times_s=[at_s]))
    assert operator.metrics()["late"] == late
    show(operator, 2, 50.0)
    row = show(operator, 3, 50.0)
    assert (row["n_mem"], row["ybar"]) == (1, 0.0 if late else 1.0)


@pytest.mark.parametrize(("at_s", "label"), [(12.0, 1.0), (15.1, 0.0)])
def test_positive_that_is_late_counts_within_the_time_for_corrections(ctr_model: str, at_s: float, label: float):
    for opened in (False, True):  # whether the negative has been written by then or not
        operator = make(ctr_model, aligned=True, late_correction_s=5.0, **SERIAL)
        show(operator, 1, 0.0)
        if opened:
            show(operator, 2, 11.0)
        operator.control(labels([1], [1.0], times_s=[at_s]))
        show(operator, 3, 20.0)
        assert show(operator, 4, 20.5)["ybar"] == label
        assert operator.metrics()["late"] == (label == 0.0)


def test_early_label_waits_from_its_own_time(ctr_model: str):
    operator = make(ctr_model, aligned=True, early_label_s=5.0, **SERIAL)
    show(operator, 1, 100.0)
    operator.control(labels([3], [1.0], times_s=[103.0]))
    show(operator, 2, 107.9)
    assert operator.metrics()["early"] == 1
    show(operator, 4, 108.0)
    assert (operator.metrics()["early"], operator.metrics()["early_expired"]) == (0, 1)


def test_limit_of_jumps_is_refused(ctr_model: str):
    with pytest.raises(ConfigError, match=r"max_jump_s=60\.0 does nothing with align_s"):
        make(ctr_model, aligned=True, max_jump_s=60.0)


# Windows


def windows(**options: Any) -> CtrWindows:
    settings = {"window_s": 10.0, "label_timeout_s": 20.0, "allowed_lateness_s": 0.0, **options}
    return CtrWindows(CtrWindowsOptions(**settings), Context("quality", aligned=True))


def predicted(ids: list[int], times_s: list[float]) -> pa.RecordBatch:
    batch = impressions(ids, times_s=times_s).select(["stream_id", "sequence", "event_time", "impression_id"])
    for name, kind in (("y_base", pa.float32()), ("y_pred", pa.float32()), ("flags", pa.int32())):
        batch = batch.append_column(name, pa.array([0] * len(ids), kind))
    return batch


def test_window_is_judged_by_the_time_that_the_engine_tells():
    operator = windows()
    assert operator.process(predicted([1, 2], [3.0, 11.0])) == []
    assert operator.advance(29_999_999) == []
    (row,) = rows_of(operator.advance(30_000_000))
    assert (row["sequence"], row["n"]) == (0, 1)
    assert operator.advance(35_000_000) == []
    (row,) = rows_of(operator.advance(2**63 - 1))
    assert (row["sequence"], row["n"]) == (1, 1)


def test_window_is_judged_by_a_prediction_or_a_label_that_is_past_its_end():
    for call in (
        lambda operator: operator.process(predicted([9, 10], [30.0, 31.0])),
        lambda operator: operator.control(labels([9], [1.0], times_s=[30.0])),
    ):
        operator = windows()
        operator.process(predicted([1], [3.0]))
        (row,) = rows_of(call(operator))
        assert (row["sequence"], row["n"], row["timeouts"]) == (0, 1, 1)


def test_label_counts_up_to_the_end_of_its_window_within_one_batch():
    operator = windows()
    operator.process(predicted([1, 2], [3.0, 4.0]))
    (row,) = rows_of(operator.control(labels([1, 2], [1.0, 1.0], times_s=[29.9, 30.0])))
    assert (row["ctr"], row["timeouts"]) == (0.5, 1)


def test_prediction_from_the_future_is_of_its_own_window():
    operator = CtrWindows(
        CtrWindowsOptions(window_s=10.0, label_timeout_s=20.0, allowed_lateness_s=0.0, max_jump_s=60.0), Context("quality")
    )
    rows = rows_of(operator.process(predicted([1, 2], [3.0, 1000.0])))
    assert [(row["sequence"], row["n"]) for row in rows] == [(0, 1)]
    assert rows_of(operator.process(predicted([3, 4], [64.0, 65.0]))) == []
    assert operator.metrics()["waiting"] == 3
