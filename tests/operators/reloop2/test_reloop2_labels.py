"""How labels, and impressions without one, are handled: timeouts, corrections, early, late, twice, out of range, no id."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reloop2_streams import impressions, labels, make, rows_of

from connectors.errors import ConfigError, SchemaError
from operators.reloop2 import ReLoop2Operator, ReLoop2Options
from operators.reloop2.schemas import Flag

SERIAL: dict[str, Any] = {"micro_batch": 1, "label_timeout_s": 10.0, "allowed_lateness_s": 0.0}


def show(operator: ReLoop2Operator, ids: list[Any], at_s: float = 0.0, **columns: Any) -> list[dict[str, Any]]:
    return rows_of(operator.process(impressions(ids, times_s=[at_s] * len(ids), **columns)))


def sums(operator: ReLoop2Operator) -> tuple[float, float]:
    """Labels and rows in the memory, as the next impression would find them."""
    operator._turn(np.array([0]), np.array([0]))
    counts = operator.metrics()
    return counts["bank_rows"], counts["labels"]


def mean_label(operator: ReLoop2Operator, at_s: float = 0.0) -> float:
    """The mean over all buckets of the labels read by a row like those of ``show``."""
    (row,) = show(operator, [10**9 + int(operator.metrics()["impressions"])], at_s)
    return float(row["ybar"]) if row["ybar"] is not None else float("nan")


def same(operator: ReLoop2Operator, ids: list[int], at_s: float = 0.0) -> None:
    """Show impressions that are all alike."""
    for key in ids:
        show(operator, [key], at_s)


def test_first_impression_keeps_the_base_prediction(ctr_model: str):
    (row,) = show(make(ctr_model), [1])
    assert row["y_pred"] == row["y_base"]
    assert (row["status"], row["y_err"], row["ybar"], row["n_hit"], row["n_mem"]) == ("ok", 0.0, None, 0, 0)
    assert row["flags"] == Flag.NO_MEMORY


def test_label_is_seen_after_the_micro_batch(ctr_model: str):
    operator = make(ctr_model, micro_batch=2)
    show(operator, [1])
    operator.control(labels([1], [1.0]))
    assert show(operator, [2])[0]["n_mem"] == 0
    (third,) = show(operator, [3])
    assert (third["n_mem"], third["ybar"], third["n_hit"]) == (1, 1.0, 6)
    assert third["y_pred"] == pytest.approx(third["y_base"] + 0.4 * (1.0 - third["y_base"]), abs=1e-6)


def test_missing_label_counts_as_negative_after_the_timeout(ctr_model: str):
    operator = make(ctr_model, **SERIAL)
    same(operator, [1])
    assert np.isnan(mean_label(operator, 9.9))
    show(operator, [2], 10.0)  # the watermark gets there
    assert mean_label(operator, 10.0) == 0.0
    assert operator.metrics()["timeouts"] == 1


def test_timed_out_impression_is_dropped_where_so_configured(ctr_model: str):
    operator = make(ctr_model, on_timeout="drop", **SERIAL)
    same(operator, [1])
    show(operator, [2], 20.0)
    assert sums(operator)[0] == 0
    operator.control(labels([1], [1.0]))
    assert sums(operator)[0] == 0
    assert operator.metrics()["late"] == operator.metrics()["timeouts"] == 1


def test_late_positive_corrects_the_negative(ctr_model: str):
    operator = make(ctr_model, late_correction_s=5.0, **SERIAL)
    same(operator, [1, 2])
    show(operator, [3], 12.0)
    assert mean_label(operator, 12.0) == 0.0
    assert operator.control(labels([1, 1], [0.0, 1.0])) == []
    assert mean_label(operator, 12.0) == 0.5
    operator.control(labels([1], [1.0]))
    assert mean_label(operator, 12.0) == 0.5
    counts = operator.metrics()
    assert (counts["corrections"], counts["late"], counts["duplicate_labels"]) == (1, 1, 1)


def test_positive_after_the_time_for_corrections_is_counted_only(ctr_model: str):
    operator = make(ctr_model, late_correction_s=5.0, **SERIAL)
    same(operator, [1])
    show(operator, [3], 15.1)
    show(operator, [4], 15.1)
    operator.control(labels([1], [1.0]))
    assert mean_label(operator, 15.1) == 0.0
    assert operator.metrics()["late"] == 1


def test_correction_after_a_clear_is_not_made(ctr_model: str):
    operator = make(ctr_model, late_correction_s=100.0, reset_every_s=30.0, **SERIAL)
    same(operator, [1])
    show(operator, [3], 25.0)
    show(operator, [4], 25.0)
    operator.control(labels([1], [1.0]))
    show(operator, [5], 31.0)  # enters the next span: all is forgotten before the correction can be made
    show(operator, [6], 31.0)
    assert operator.metrics()["corrections"] == 1
    operator = make(ctr_model, late_correction_s=100.0, reset_every_s=30.0, **SERIAL)
    same(operator, [1])
    show(operator, [3], 25.0)
    show(operator, [4], 31.0)
    show(operator, [5], 31.0)
    operator.control(labels([1], [1.0]))
    show(operator, [6], 31.0)
    assert operator.metrics()["corrections"] == 0
    assert operator.metrics()["late"] == 1


def test_label_before_its_impression_waits_for_it(ctr_model: str):
    operator = make(ctr_model, **SERIAL)
    assert operator.control(labels([1], [1.0])) == []
    assert operator.metrics()["early"] == 1
    (row,) = show(operator, [1])
    assert row["flags"] & Flag.EARLY_LABEL
    assert mean_label(operator) == 1.0
    assert operator.metrics()["early"] == 0


def test_label_without_impression_expires(ctr_model: str):
    operator = make(ctr_model, early_label_s=5.0, **SERIAL)
    show(operator, [1], 100.0)
    operator.control(labels([99], [1.0], times_s=[1e9]))  # its own clock does not matter
    show(operator, [2], 104.9)
    show(operator, [3], 104.9)
    assert operator.metrics()["early"] == 1
    show(operator, [4], 105.0)
    show(operator, [5], 105.0)
    assert operator.metrics()["early"] == 0
    assert operator.metrics()["early_expired"] == 1


def test_early_labels_beyond_the_capacity_are_refused(ctr_model: str):
    operator = make(ctr_model, early_capacity=2)
    operator.control(labels([1, 1, 2, 3, 3], [1.0] * 5))
    counts = operator.metrics()
    assert (counts["early"], counts["early_refused"], counts["duplicate_labels"]) == (2, 2, 1)
    assert [row["flags"] & Flag.EARLY_LABEL for row in show(operator, [1, 2, 3])] == [4, 4, 0]


def test_duplicate_impression_is_predicted_and_flagged(ctr_model: str):
    operator = make(ctr_model)
    first, second, third = (row["flags"] & Flag.DUPLICATE for row in show(operator, [1, 1, 2]))
    assert (first, second, third) == (0, Flag.DUPLICATE, 0)
    operator.control(labels([1], [1.0]))
    assert sums(operator)[0] == 1
    assert show(operator, [1])[0]["flags"] & Flag.DUPLICATE  # also once it is labeled
    assert operator.metrics()["duplicate_impressions"] == 2


def test_oldest_pending_impression_gives_way(ctr_model: str):
    operator = make(ctr_model, pending_capacity=3, micro_batch=1)
    show(operator, [1, 2, 3, 4, 5])
    operator.control(labels([1, 2, 3, 4, 5], [1.0] * 5))
    assert sums(operator)[0] == 4  # 5 is not over the capacity before the next one comes
    assert operator.metrics()["waiting_dropped"] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [(2.0, "label is 2;"), (-1.0, "label is -1;"), (None, "null"), (float("nan"), "nan"), (0.5, "soft_labels")],
)
def test_unusable_label_is_answered(ctr_model: str, value: float | None, reason: str):
    operator = make(ctr_model)
    show(operator, [1])
    before = operator.metrics()
    (row,) = rows_of(operator.control(labels([1], [value])))
    assert (row["status"], row["impression_id"], row["y_pred"]) == ("invalid_label", 1, None)
    assert reason in row["error"]
    changed = {name for name, count in operator.metrics().items() if count != before[name]}
    assert changed == {"invalid_labels"}
    assert operator.control(labels([1], [1.0])) == []


def test_soft_labels_are_taken_where_allowed(ctr_model: str):
    operator = make(ctr_model, soft_labels=True, **SERIAL)
    same(operator, [1])
    assert operator.control(labels([1], [0.25])) == []
    assert mean_label(operator) == 0.25
    (row,) = rows_of(operator.control(labels([1], [1.25])))
    assert "from 0 to 1" in row["error"]


def test_label_with_an_earlier_time_than_its_impression_is_taken(ctr_model: str):
    operator = make(ctr_model, **SERIAL)
    show(operator, [1], 500.0)
    operator.control(labels([1], [1.0], times_s=[3.0]))
    assert sums(operator)[0] == 1


def test_label_without_id_is_answered(ctr_model: str):
    (row,) = rows_of(make(ctr_model).control(labels([None], [1.0])))
    assert row["status"] == "invalid_label"
    assert "impression_id is null" in row["error"]


def test_error_of_the_source_is_passed_on(ctr_model: str):
    operator = make(ctr_model)
    bad = labels([1], [1.0]).append_column("error", pa.array(["unreadable line"]))
    (row,) = rows_of(operator.control(bad))
    assert (row["status"], row["error"]) == ("rejected_corrupt", "unreadable line")


def test_text_ids_join_too(ctr_model: str):
    operator = make(ctr_model, id_type="string", **SERIAL)
    same_row = {"user": [1], "item": [1], "price": pa.array([0.0], pa.float32())}
    (row,) = show(operator, ["imp-1"], **same_row)
    assert row["impression_id"] == "imp-1"
    operator.control(labels(["imp-1", "imp-2"], [1.0, 0.0]))
    (row,) = show(operator, ["imp-3"], **same_row)
    assert (row["ybar"], operator.metrics()["early"]) == (1.0, 1)


def test_ids_of_another_type_are_refused(ctr_model: str):
    with pytest.raises(SchemaError, match="id_type is 'int64'; set id_type"):
        make(ctr_model).process(impressions(["x"]))
    with pytest.raises(SchemaError, match="id_type is 'string'"):
        make(ctr_model, id_type="string").control(labels([1], [1.0]))
    with pytest.raises(SchemaError, match="'impression_id' is missing"):
        make(ctr_model).process(impressions([1]).drop_columns(["impression_id"]))


def test_equal_ids_of_streams_are_different_impressions_per_key(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=2, **SERIAL)
    rows = impressions([1, 1], streams=["a", "b"])
    assert [row["flags"] & Flag.DUPLICATE for row in rows_of(operator.process(rows))] == [0, 0]
    operator.control(labels([1], [1.0], streams=["b"]))
    again = rows_of(operator.process(impressions([2, 2], streams=["a", "b"])))
    assert [row["n_mem"] for row in again] == [0, 1]


def test_stream_idle_longest_gives_way_per_key(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=2, **SERIAL)
    operator.process(impressions([1, 2], streams=["a", "b"]))
    operator.control(labels([1, 2], [1.0, 1.0], streams=["a", "b"]))
    operator.process(impressions([3, 4], streams=["a", "c"]))
    rows = rows_of(operator.process(impressions([5, 6], streams=["a", "b"])))
    assert [row["n_mem"] for row in rows] == [1, 0]
    assert operator.metrics()["evictions"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "knn", "scope": "per_key"}, "needs mode='sketch'"),
        ({"mode": "knn", "late_correction_s": 1.0}, "corrected exactly"),
        ({"late_correction_s": 1.0, "forgetting": "half_life"}, "lost weight"),
        ({"late_correction_s": 1.0, "forgetting": "never", "on_timeout": "drop"}, "writes none"),
        ({"sigma": 0.5}, "a sketch holds every row"),
        ({"max_streams": 3}, "does nothing"),
        ({"on_streams_full": "reject"}, "does nothing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        ReLoop2Options(checkpoint="m", **options)
