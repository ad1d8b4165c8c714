"""Edge cases of the specification: each has a status of its own, and leaves everything else alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prompttpp_streams import SIZES, network, operator, rows, stream, table

from connectors.errors import CheckpointMismatch, ConfigError, RecoveryError
from models.prompttpp.checkpoint import load
from operators.prompttpp import PromptTPPOperator
from operators.prompttpp.budget import key_bytes


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return network(tmp_path_factory.mktemp("network"))


def run(one: PromptTPPOperator, *events: tuple[str, int, float, Any]) -> list[dict[str, Any]]:
    return table(one.process(rows(events, types=one.options.types))).to_pylist()


REGULAR = [("a", i, 1000.0 + 60 * i, i % 3) for i in range(8)]


def test_an_empty_batch_gives_nothing_and_a_valid_snapshot(path: str) -> None:
    one = operator(path, learn="prompts")
    assert one.process(rows([])) == []
    other = operator(path, learn="prompts")
    other.restore(one.snapshot())
    assert other.metrics()["model_version"] == 0


def test_the_first_event_only_conditions_and_three_are_a_warm_up(path: str) -> None:
    found = run(operator(path), *REGULAR)
    assert [row["status"] for row in found] == ["warmup"] * 3 + ["ok"] * 5
    first = found[0]
    assert first["loglik"] is None and first["pit"] is None and first["type_rank"] is None
    assert first["next_dt_mean"] > 0 and first["n_history"] == 1
    for row in found:
        assert abs(sum(row["type_probs"]) - 1) < 1e-5
        assert row["next_dt_p10"] < row["next_dt_median"] < row["next_dt_p90"]
        assert row["next_type"] == int(np.argmax(row["type_probs"]))
        assert (row["next_t"] - row["event_time"]).total_seconds() == pytest.approx(row["next_dt_mean"], abs=1e-5)
    assert all(0 <= row["pit"] <= 1 and 1 <= row["type_rank"] <= 3 for row in found[1:])


def test_equal_times_are_allowed_and_their_interval_counts_nothing(path: str) -> None:
    found = run(operator(path), *REGULAR[:4], ("a", 4, 1180.0, 1), ("a", 5, 1180.0, 2))
    assert [row["status"] for row in found[4:]] == ["ok", "ok"]
    assert found[4]["pit"] == 0.0 and found[4]["loglik"] is not None


def test_scores_are_in_seconds_whatever_the_unit_of_the_network(tmp_path: Path) -> None:
    minute, second = (network(tmp_path / name, pool=0, time_scale=scale) for name, scale in (("m", 60.0), ("s", 1.0)))
    one, other = operator(minute), operator(second)
    slow = run(one, *[(key, i, 60 * (t - 1000) + 1000, kind) for key, i, t, kind in REGULAR])
    fast = run(other, *REGULAR)
    for a, b in zip(slow[1:], fast[1:], strict=True):
        assert a["loglik"] == pytest.approx(b["loglik"] - np.log(60.0), abs=1e-4)
        assert a["next_dt_mean"] == pytest.approx(60 * b["next_dt_mean"], rel=1e-5)


def test_a_late_event_within_the_window_is_put_where_it_belongs(path: str) -> None:
    late = operator(path, allowed_lateness_s=600.0)
    found = run(late, *REGULAR[:4], ("a", 4, 1090.0, 2), ("a", 5, 1300.0, 1))
    assert [row["status"] for row in found[3:]] == ["ok", "late_applied", "ok"]
    assert found[4]["loglik"] is None and found[4]["n_history"] == 5
    ordered = operator(path)
    in_order = [*REGULAR[:2], ("a", 2, 1090.0, 2), ("a", 3, 1120.0, 2), ("a", 4, 1180.0, 0), ("a", 5, 1300.0, 1)]
    wanted = run(ordered, *in_order)
    for name in ("loglik", "pit", "next_dt_mean", "type_probs", "n_history"):
        assert found[5][name] == wanted[5][name], name


def test_a_late_event_before_the_first_one_moves_the_beginning(path: str) -> None:
    late = operator(path, allowed_lateness_s=1e5)
    found = run(late, *REGULAR[1:4], ("a", 9, 1000.0, 0), ("a", 10, 1300.0, 1))
    wanted = run(operator(path), *REGULAR[:4], ("a", 10, 1300.0, 1))
    assert found[3]["status"] == "late_applied"
    assert found[4]["loglik"] == wanted[4]["loglik"] and found[4]["next_dt_median"] == wanted[4]["next_dt_median"]


def test_an_event_too_late_for_option_or_window_is_dropped_with_the_reason(path: str) -> None:
    one = operator(path, allowed_lateness_s=60.0)
    (row,) = run(one, *REGULAR, ("a", 8, 1000.0, 0))[-1:]
    assert row["status"] == "late_dropped" and "allowed_lateness_s=60" in row["error"] and row["n_history"] is None
    wide = operator(path, allowed_lateness_s=1e6)
    (row,) = run(wide, *REGULAR, ("a", 8, 1000.0, 0))[-1:]
    assert row["status"] == "late_dropped" and "6 latest" in row["error"]
    assert wide.metrics()["late_dropped"] == 1


def test_late_and_duplicate_sequences_are_told_apart(path: str) -> None:
    found = run(operator(path), *REGULAR[:3], ("a", 2, 2000.0, 0), ("a", 1, 2000.0, 0), ("a", 2, 2000.0, 99))
    assert [row["status"] for row in found[3:]] == ["duplicate", "late", "duplicate"]


def test_a_clock_that_jumps_ahead_is_refused(path: str) -> None:
    one = operator(path, max_skew_s=600.0)
    found = run(one, *REGULAR[:2], ("a", 2, 1e7, 0), ("a", 3, 1200.0, 0))
    assert [row["status"] for row in found] == ["warmup", "warmup", "ahead", "warmup"]
    assert found[3]["n_history"] == 3


def test_unknown_types_are_refused_or_other(path: str) -> None:
    found = run(operator(path), *REGULAR[:2], ("a", 2, 1200.0, 7), ("a", 3, 1200.0, None), ("a", 4, 1200.0, 1))
    assert [row["status"] for row in found[2:]] == ["unknown_type", "rejected_corrupt", "warmup"]
    assert "type is 7; the network knows ['buy', 'sell', 'other']" in found[2]["error"]
    other = operator(path, unknown_type="other")
    found = run(other, *REGULAR[:2], ("a", 2, 1200.0, 7))
    assert found[2]["type"] == 2 and found[2]["status"] == "warmup"
    named = operator(path, types="name", unknown_type="other")
    found = run(named, ("a", 0, 0.0, "sell"), ("a", 1, 5.0, "refund"))
    assert [row["type"] for row in found] == [1, 2]


@pytest.mark.heavy
def test_a_long_pause_is_integrated_in_pieces(path: str) -> None:
    found = run(operator(path), *REGULAR, ("a", 8, 1420.0 + 60 * 5000, 1))
    assert found[-1]["status"] == "long_gap"
    assert found[-1]["pit"] == pytest.approx(1.0, abs=1e-6) and np.isfinite(found[-1]["loglik"])
    # Against a very fine even grid over the same pause.
    fine = run(operator(path, points=2_000), *REGULAR, ("a", 8, 1420.0 + 60 * 40, 1))
    coarse = run(operator(path, points=20, grid=97), *REGULAR, ("a", 8, 1420.0 + 60 * 40, 1))
    assert coarse[-1]["status"] == "long_gap"
    assert coarse[-1]["loglik"] == pytest.approx(fine[-1]["loglik"], rel=2e-2)


@pytest.mark.heavy
def test_more_keys_than_slots_evict_the_one_idle_longest_one_by_one_or_in_one_batch(path: str) -> None:
    batch = stream(9, 6)
    whole, single = operator(path, max_streams=4), operator(path, max_streams=4)
    together = table(whole.process(batch))
    apart = table([out for i in range(batch.num_rows) for out in single.process(batch.slice(i, 1))])
    assert together.equals(apart)
    assert whole.metrics()["evictions"] == single.metrics()["evictions"] > 5
    assert "reset" in together.column("status").to_pylist()
    full = operator(path, max_streams=2, on_streams_full="reject")
    found = table(full.process(batch))
    refused = [row for row in found.to_pylist() if row["status"] == "rejected_full"]
    assert refused and full.metrics()["evictions"] == 0


def test_equal_keys_in_one_batch_equal_one_by_one(path: str) -> None:
    whole, single = operator(path, learn="prompts"), operator(path, learn="prompts")
    events = [*REGULAR, *[("b", i, 1000.0 + 7 * i, 1) for i in range(8)]]
    together = table(whole.process(rows(events)))
    apart = table([out for event in events for out in single.process(rows([event]))])
    assert together.equals(apart)
    assert whole.metrics()["model_version"] == 3


def test_attention_sees_the_window_and_no_more(tmp_path: Path) -> None:
    attention = network(tmp_path, "attnhp", layers=1, heads=1, pool=0)
    # Of one layer the states depend on the last W events alone; what was before changes nothing but the mean gap.
    one, other = operator(attention, window=3), operator(attention, window=3)
    events = [("a", i, 1000.0 + 60 * i, 0) for i in range(6)]
    changed = [(key, i, t, 2 if 0 < i < 3 else kind) for key, i, t, kind in events]
    a, b = run(one, *events)[-1], run(other, *changed)[-1]
    assert a["next_dt_mean"] == b["next_dt_mean"]
    wide = run(operator(attention, window=6), *changed)[-1]
    assert wide["next_dt_mean"] != b["next_dt_mean"]


def test_odd_units_of_time_are_told_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        run(operator(path), *[("a", i, 1000.0 + 1e-3 * i, 0) for i in range(8)])
    assert sum("time_scale" in record.message for record in caplog.records) == 1


def test_options_that_do_not_fit_the_network_are_refused(path: str, tmp_path: Path) -> None:
    bare = network(tmp_path, pool=0, type_names=())
    with pytest.raises(ConfigError, match="no prompts to learn"):
        operator(bare, learn="prompts")
    with pytest.raises(ConfigError, match="knows its types by numbers only"):
        operator(bare, types="name")
    with pytest.raises(ConfigError, match="no type named 'other'"):
        operator(bare, unknown_type="other")
    with pytest.raises(ConfigError, match="streams fit"):
        operator(path, max_streams=10_000_000, bank_gib=0.1)
    with pytest.raises(ConfigError, match="leaves nothing of window=6"):
        operator(path, learn="prompts", learn_history=6)
    with pytest.raises(ConfigError, match="common_share mixes queries of s2p2 or nhp"):
        operator(network(tmp_path / "attention", "attnhp"), learn="prompts", common_share=0.5)
    with pytest.raises(ConfigError, match="novelty needs to know which prompts the training has used"):
        operator(network(tmp_path / "uncounted"), learn="prompts", common_share=0.5, novelty=0.5)
    with pytest.raises(ConfigError, match="needs common_share above 0"):
        operator(network(tmp_path / "uncounted"), learn="prompts", novelty=0.5)
    with pytest.raises(ConfigError, match="common_share does nothing with learn='off'"):
        operator(network(tmp_path / "uncounted"), common_share=0.5)
    with pytest.raises(ConfigError, match="refresh_lag does nothing"):
        operator(path, refresh_lag=1)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(CheckpointMismatch, match="not a safetensors file"):
        operator(str(tmp_path / "text"))


def test_a_snapshot_of_other_options_or_weights_is_refused(path: str, tmp_path: Path) -> None:
    one = operator(path)
    run(one, *REGULAR)
    with pytest.raises(RecoveryError, match="made with settings"):
        operator(path, window=7).restore(one.snapshot())
    with pytest.raises(RecoveryError, match="made with weights"):
        operator(network(tmp_path, "nhp")).restore(one.snapshot())


def test_memory_is_what_the_budget_says(path: str) -> None:
    one = operator(path, max_streams=50)
    model = load(path)
    assert one._network.prompts is not None
    assert one.metrics()["bank_bytes"] == 50 * key_bytes(model.config, 6) + one._network.prompts.bytes()
    assert SIZES["types"] == model.config.types
