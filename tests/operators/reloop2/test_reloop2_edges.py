"""Bad and unusual impressions, clocks, model swaps, and snapshots of something else (spec §12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from reloop2_streams import drifting, impressions, labels, make, rows_of, save_model

from connectors.errors import CheckpointMismatch, ConfigError, RecoveryError, SchemaError
from models.reloop2 import checkpoint
from operators.base import Context
from operators.reloop2 import CtrWindows, CtrWindowsOptions, ReLoop2Operator, ReLoop2Options
from operators.reloop2.schemas import Flag
from operators.state import State
from pipelines.testing._compare import clone_state, state_difference


def test_no_rows_give_no_rows(ctr_model: str):
    operator = make(ctr_model)
    assert operator.process(impressions([1]).slice(0, 0)) == []
    assert operator.control(labels([], [])) == []
    assert operator.output_schema.names[:5] == ["stream_id", "sequence", "event_time", "impression_id", "y_base"]


def without_counters(operator: ReLoop2Operator) -> State:
    """The state without the counters, which bad rows change."""
    state = clone_state(operator.snapshot())
    del state.additive["counters"]
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_number_that_is_none_rejects_the_row(ctr_model: str, value: float | None):
    operator = make(ctr_model)
    operator.process(impressions([1, 2]))
    before = without_counters(operator)
    (row,) = rows_of(operator.process(impressions([3], price=pa.array([value], pa.float32()))))
    assert (row["status"], row["y_base"], row["y_pred"]) == ("rejected_corrupt", None, None)
    assert "price" in row["error"]
    assert state_difference(before, without_counters(operator)) is None
    assert operator.metrics()["rejected"] == 1
    operator.control(labels([3], [1.0]))
    assert operator.metrics()["early"] == 1  # it was never there


def test_bad_row_does_not_touch_its_neighbors(ctr_model: str):
    good = rows_of(make(ctr_model).process(impressions(range(6))))
    prices = impressions(range(6)).column("price").to_pylist()
    prices[2] = float("nan")
    mixed = rows_of(make(ctr_model).process(impressions(range(6), price=pa.array(prices, pa.float32()))))
    assert [row for i, row in enumerate(mixed) if i != 2] == [row for i, row in enumerate(good) if i != 2]


def test_unknown_category_is_predicted(ctr_model: str):
    (row,) = rows_of(make(ctr_model).process(impressions([1], user=[10**6])))
    assert (row["status"], row["error"]) == ("ok", None)


def test_impression_without_id_keeps_its_base_prediction(ctr_model: str):
    operator = make(ctr_model)
    first, second = rows_of(operator.process(impressions(pa.array([None, 7], pa.int64()))))
    assert (first["status"], first["y_pred"]) == ("base_only", first["y_base"])
    assert first["y_base"] is not None
    assert "impression_id is null" in first["error"]
    assert (second["status"], second["error"]) == ("ok", None)


def test_error_of_the_source_rejects_the_row(ctr_model: str):
    rows = impressions([1, 2]).append_column("error", pa.array(["unreadable line", None]))
    first, second = rows_of(make(ctr_model).process(rows))
    assert (first["status"], first["error"], second["status"]) == ("rejected_corrupt", "unreadable line", "ok")


def test_prediction_that_is_not_finite_rejects_the_row(tmp_path: Path):
    path = save_model(tmp_path / "m.safetensors")
    model = checkpoint.load(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "user" in name:
                parameter[1] = 3e38  # the first user of the vocabulary
    checkpoint.save(model, path)
    operator = make(path)
    first, second = rows_of(operator.process(impressions([1, 2], user=[0, 5])))
    assert (first["status"], first["y_pred"], second["status"]) == ("rejected_corrupt", None, "ok")
    assert "not finite" in first["error"]


def test_prediction_from_a_memory_that_holds_no_numbers_is_told_as_such(ctr_model: str):
    operator = make(ctr_model, mode="ring", capacity=16, micro_batch=1)
    operator.process(impressions([1, 2]))
    operator.control(labels([1, 2], [0, 1]))
    operator.process(impressions([3]))
    operator._memory._ring._values_CV[:] = torch.nan
    (row,) = rows_of(operator.process(impressions([4])))
    assert row["status"] == "not_finite" and row["y_pred"] is None and 0 < row["y_base"] < 1
    assert "y_pred holds nan, which is no result" in row["error"]


@pytest.mark.parametrize("mode", ["sketch", "knn"])
def test_zero_vector_is_legal(ctr_model: str, mode: str):
    operator = make(ctr_model, mode=mode, center="none")
    memory = operator._memory
    keys = memory.keys(torch.zeros(3, 8 + 12))
    if mode == "sketch":
        assert not keys.any()
    memory.write(keys, torch.ones(3), torch.zeros(3), np.zeros(3, np.int64))
    read = memory.read(keys[:1], np.zeros(1, np.int64))
    assert float(read.weight_BK.sum()) == pytest.approx(1.0)
    assert float((read.weight_BK * read.label_BK).sum()) == pytest.approx(1.0)


def test_rows_are_taken_in_the_order_of_arrival(ctr_model: str):
    operator = make(ctr_model, micro_batch=1)
    rows = rows_of(operator.process(impressions([1, 2, 3], times_s=[50, 10, 30])))
    assert [row["impression_id"] for row in rows] == [1, 2, 3]
    assert [row["flags"] & Flag.CLOCK_JUMP for row in rows] == [0, 0, 0]


def test_clock_jump_is_flagged_and_times_nothing_out(ctr_model: str):
    operator = make(ctr_model, micro_batch=1, label_timeout_s=100.0, max_jump_s=60.0)
    operator.process(impressions([1]))
    (row,) = rows_of(operator.process(impressions([2], times_s=[1e9])))
    assert row["flags"] & Flag.CLOCK_JUMP
    operator.process(impressions([3, 4], times_s=[1, 2]))
    assert operator.metrics()["timeouts"] == 0
    assert operator.metrics()["clock_jumps"] == 1


def test_without_a_limit_a_clock_counts_as_it_is(ctr_model: str):
    operator = make(ctr_model, micro_batch=1, label_timeout_s=100.0)
    operator.process(impressions([1]))
    (row,) = rows_of(operator.process(impressions([2], times_s=[1e9])))
    assert not row["flags"] & Flag.CLOCK_JUMP
    operator.process(impressions([3], times_s=[1]))
    assert operator.metrics()["timeouts"] == 1


# Streams that find no slot, or come back


def test_evicted_stream_is_told_that_it_starts_afresh(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=1)
    rows = rows_of(operator.process(impressions([1, 2, 3, 4], streams=["a", "b", "a", "a"])))
    assert [row["status"] for row in rows] == ["ok", "ok", "reset", "ok"]
    assert "evicted" in rows[2]["error"]
    assert (operator.metrics()["evictions"], operator.metrics()["reset"]) == (2, 1)


def test_label_that_reopens_an_evicted_stream_leaves_the_news_to_its_next_impression(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=1)
    operator.process(impressions([1, 2], streams=["a", "b"]))
    operator.close_stream("b")
    operator.control(labels([3], [1.0], streams=["a"]))
    second = make(ctr_model, scope="per_key", max_streams=1)
    second.restore(operator.snapshot())
    (row,) = rows_of(second.process(impressions([3], streams=["a"])))
    assert (row["status"], row["flags"] & Flag.EARLY_LABEL) == ("reset", Flag.EARLY_LABEL)


def test_stream_without_a_slot_gets_the_base_prediction(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=1, on_streams_full="reject")
    rows = rows_of(operator.process(impressions([1, 2, 3], streams=["a", "b", "a"])))
    assert [row["status"] for row in rows] == ["ok", "rejected_full", "ok"]
    assert rows[1]["y_pred"] == rows[1]["y_base"] is not None
    assert "raise max_streams" in rows[1]["error"]
    operator.control(labels([2], [1.0], streams=["b"]))
    counts = operator.metrics()
    assert (counts["rejected"], counts["early_refused"], counts["streams"]) == (1, 1, 1)
    operator.close_stream("a")
    assert rows_of(operator.process(impressions([4], streams=["b"])))[0]["status"] == "ok"


def test_bad_row_takes_no_slot(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=1, on_streams_full="reject")
    prices = pa.array([float("nan"), 0.0, float("nan")], pa.float32())
    rows = rows_of(operator.process(impressions([1, 2, 3], streams=["a", "b", "a"], price=prices)))
    assert [row["status"] for row in rows] == ["rejected_corrupt", "ok", "rejected_full"]


# Model swaps


def swap(path: str, key: int | None = None) -> pa.RecordBatch:
    return labels([key], [None], checkpoints=[path]) if key is not None else labels([0], [None], checkpoints=[path])


def test_model_swap_clears_the_memory_and_never_mixes(ctr_model: str, other_ctr_model: str):
    operator = make(ctr_model, micro_batch=1, label_timeout_s=10.0, allowed_lateness_s=0.0)
    shown = rows_of(operator.process(impressions([1, 2, 3])))
    operator.control(labels([1], [1.0]))
    (answer,) = rows_of(operator.control(swap(other_ctr_model)))
    assert (answer["status"], answer["error"]) == ("model_swapped", None)
    assert answer["model_version"] != shown[0]["model_version"]
    operator.control(labels([2], [1.0]))
    (row,) = rows_of(operator.process(impressions([4], times_s=[3])))
    assert (row["n_mem"], row["n_hit"], row["model_version"]) == (0, 0, answer["model_version"])
    operator.process(impressions([5, 6], times_s=[13, 13]))  # 3 times out, of the old model; 4 of the new one does too
    counts = operator.metrics()
    assert (counts["stale"], counts["bank_rows"], counts["timeouts"], counts["model_swaps"]) == (3, 1, 2, 1)
    alone = rows_of(make(other_ctr_model).process(impressions([4], times_s=[3])))
    assert row["y_base"] == alone[0]["y_base"]


def test_swap_to_a_successor_can_keep_the_memory_and_the_waiting_rows(ctr_model: str, other_ctr_model: str):
    operator = make(ctr_model, micro_batch=1, on_swap="keep")
    operator.process(impressions([1, 2]))
    operator.control(labels([1], [1.0]))
    operator.process(impressions([3], times_s=[3]))
    (answer,) = rows_of(operator.control(swap(other_ctr_model)))
    assert answer["status"] == "model_swapped"
    operator.control(labels([2], [1.0]))
    (row,) = rows_of(operator.process(impressions([4], times_s=[5])))
    counts = operator.metrics()
    assert (row["n_mem"], counts["stale"], counts["model_swaps"]) == (2, 0, 1)
    assert row["model_version"] == answer["model_version"]


def test_swap_happens_at_its_place_among_the_labels(ctr_model: str, other_ctr_model: str):
    operator = make(ctr_model, micro_batch=1)
    operator.process(impressions([1, 2]))
    rows = labels([1, 0, 2], [1.0, None, 7.0], checkpoints=[None, other_ctr_model, None])
    assert [row["status"] for row in rows_of(operator.control(rows))] == ["model_swapped", "invalid_label"]


def test_failed_swap_keeps_the_model(ctr_model: str, tmp_path: Path):
    operator = make(ctr_model)
    (before,) = rows_of(operator.process(impressions([1])))
    wider = save_model(tmp_path / "wider.safetensors", hidden=(16,))
    for path, reason in ((str(tmp_path / "none.safetensors"), "none.safetensors"), (wider, "hidden_dim 28 instead of 20")):
        (answer,) = rows_of(operator.control(swap(path)))
        assert answer["status"] == "swap_failed"
        assert reason in answer["error"]
    (after,) = rows_of(operator.process(impressions([2])))
    assert (after["y_base"], after["model_version"]) == (before["y_base"], before["model_version"])


def test_swapped_model_survives_a_restore(ctr_model: str, other_ctr_model: str):
    first = make(ctr_model)
    first.process(impressions([1]))
    first.control(swap(other_ctr_model))
    first.process(impressions([2]))
    second = make(ctr_model)
    second.restore(first.snapshot())
    assert state_difference(first.snapshot(), second.snapshot()) is None
    assert rows_of(second.process(impressions([3]))) == rows_of(first.process(impressions([3])))


# Snapshots that do not fit


def test_snapshot_of_another_model_is_refused(ctr_model: str, other_ctr_model: str):
    operator = make(ctr_model)
    with pytest.raises(RecoveryError, match=r"was made with model \w+, .* is \w+; resume with the same file"):
        make(other_ctr_model).restore(operator.snapshot())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 5}, "bits 4 instead of 5"),
        ({"arrays": 7}, "arrays 6 instead of 7"),
        ({"seed": 3}, "seed 0 instead of 3"),
        ({"mode": "knn"}, "mode 'sketch' instead of 'knn'"),
        ({"micro_batch": 8}, "micro_batch 4 instead of 8"),
    ],
)
def test_snapshot_of_other_options_names_what_differs(ctr_model: str, changed: dict[str, Any], message: str):
    with pytest.raises(RecoveryError, match=message):
        make(ctr_model, **changed).restore(make(ctr_model).snapshot())


def test_snapshot_of_another_width_is_refused(ctr_model: str, tmp_path: Path):
    wider = save_model(tmp_path / "wider.safetensors", hidden=(16,))
    with pytest.raises(RecoveryError, match="hidden_dim 20 instead of 28"):
        make(wider).restore(make(ctr_model).snapshot())


def test_swapped_model_that_has_changed_on_disk_is_refused(ctr_model: str, tmp_path: Path):
    path = save_model(tmp_path / "new.safetensors", seed=5)
    operator = make(ctr_model)
    operator.control(swap(path))
    state = operator.snapshot()
    save_model(tmp_path / "new.safetensors", seed=6)
    with pytest.raises(RecoveryError, match="put the old file back"):
        make(ctr_model).restore(state)


def test_incremental_snapshot_alone_is_refused(ctr_model: str):
    operator = make(ctr_model)
    with pytest.raises(RecoveryError, match="incremental"):
        operator.restore(operator.snapshot(incremental=True))


def test_snapshot_of_an_earlier_version_is_refused(ctr_model: str):
    state = make(ctr_model).snapshot()
    del state.meta["version"]
    with pytest.raises(RecoveryError, match=r"earlier version of this operator.*new state folder"):
        make(ctr_model).restore(state)


def test_only_a_memory_per_stream_may_move_between_shards():
    assert not ReLoop2Operator.keyed(ReLoop2Options(checkpoint="m"))
    assert ReLoop2Operator.keyed(ReLoop2Options(checkpoint="m", scope="per_key"))
    assert not CtrWindows.keyed(CtrWindowsOptions())


def test_more_streams_than_slots_are_refused(ctr_model: str):
    operator = make(ctr_model, scope="per_key", max_streams=3)
    operator.process(impressions([1, 2, 3], streams=["a", "b", "c"]))
    with pytest.raises(RecoveryError, match="3 streams, max_streams is 2"):
        make(ctr_model, scope="per_key", max_streams=2).restore(operator.snapshot())


# What is asked for at the start


def test_checkpoint_without_hidden_mean_needs_center_none(tmp_path: Path):
    path = save_model(tmp_path / "m.safetensors")
    model = checkpoint.load(path)
    model.hidden_mean_known.fill_(False)
    checkpoint.save(model, path)
    with pytest.raises(ConfigError, match="center='none'"):
        make(path)
    assert rows_of(make(path, center="none").process(impressions([1])))[0]["status"] == "ok"


def test_examine_tells_the_schema_and_what_is_wrong(ctr_model: str, tmp_path: Path):
    options = ReLoop2Options(checkpoint=ctr_model, id_type="string")
    assert ReLoop2Operator.examine(options, "ctr") == ReLoop2Operator(options, Context("ctr")).output_schema
    with pytest.raises(CheckpointMismatch, match="missing"):
        ReLoop2Operator.examine(ReLoop2Options(checkpoint=str(tmp_path / "missing.safetensors")), "ctr")
    with pytest.raises(ConfigError, match="raise bank_gib"):
        ReLoop2Operator.examine(ReLoop2Options(checkpoint=ctr_model, bank_gib=0.01), "ctr")


def test_missing_feature_column_is_named(ctr_model: str):
    with pytest.raises(SchemaError, match="price"):
        make(ctr_model).process(impressions([1]).drop_columns(["price"]))


def test_memory_stays_flat(ctr_model: str):
    """Ten times what fills every table: not a byte more (spec: nothing grows)."""
    operator = make(ctr_model, pending_capacity=40, early_capacity=10, micro_batch=8, label_timeout_s=20.0)
    sizes = []
    for turn in range(10):
        events = drifting(100, seed=turn)
        shown = events.impressions
        moved = pa.compute.add(shown.column("impression_id"), turn * 1000)
        shown = shown.set_column(3, "impression_id", moved)
        operator.process(shown)
        operator.control(labels(moved.to_pylist()[::2], [1.0] * 50))
        operator.control(labels(list(range(-20 * turn - 20, -20 * turn)), [1.0] * 20))
        sizes.append((operator.snapshot().bytes() - 24 * int(operator.metrics()["early"]), operator.metrics()["bank_bytes"]))
    assert len(set(sizes[1:])) == 1
    assert operator.metrics()["waiting_dropped"] > 100
