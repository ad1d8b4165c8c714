"""States and segments of streams: those of the whole series at once, whatever comes in between."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from memprompttss_streams import (
    STEP_US,
    closed,
    final_segments,
    final_states,
    network,
    operator,
    samples,
    tables,
    together,
    wave,
)

from connectors import records
from connectors.errors import ConfigError, RecoveryError
from models.memprompttss.checkpoint import load_network
from models.memprompttss.header import network_config
from models.memprompttss.offline import segment
from operators.memprompttss.config import Geometry
from operators.memprompttss.settings import stream_bytes


@pytest.mark.parametrize(("length", "stride"), [(83, 4), (95, 16), (61, 7), (16, 4), (18, 12)])
def test_final_states_are_those_of_the_whole_series_at_once(length: int, stride: int, tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(length)
    op = operator(checkpoint, stride=stride)
    found = tables([*op.process(samples("a", x_LC)), *closed(op, "a")])["states"]
    wanted = segment(load_network(checkpoint), torch.from_numpy(x_LC), stride=stride)
    assert final_states(found) == dict(enumerate(wanted.state_L.tolist()))
    final = found.filter(found["final"])
    assert final["sequence"].to_pylist() == list(range(length))
    np.testing.assert_allclose(final["confidence"].to_numpy(), wanted.confidence_L.numpy(), atol=1e-5)
    assert final["votes"].to_pylist() == wanted.votes_L.tolist()


def test_states_come_as_early_as_they_can(tmp_path: Path) -> None:
    op = operator(network(tmp_path))
    assert not op.process(samples("a", wave(15)))
    first = tables(op.process(samples("a", wave(16)[15:], 15)))["states"]
    assert [(row["sequence"], row["final"]) for row in first.to_pylist()] == [(i, i < 4) for i in range(16)]
    then = tables(op.process(samples("a", wave(20)[16:], 16)))["states"]
    assert [(row["sequence"], row["final"]) for row in then.to_pylist()] == [(i, i < 8) for i in (4, 5, 6, 7, 16, 17, 18, 19)]


def test_a_window_apart_every_state_is_final_at_once(tmp_path: Path) -> None:
    op = operator(network(tmp_path), stride=16)
    found = tables(op.process(samples("a", wave(40))))["states"]
    assert found["final"].to_pylist() == [True] * 32 and set(found["votes"].to_pylist()) == {1}


@pytest.mark.parametrize("min_segment", [0, 1, 5, 12])
def test_segments_tile_the_stream_and_none_is_short(min_segment: int, tmp_path: Path) -> None:
    op = operator(network(tmp_path), min_segment=min_segment)
    found = tables([*op.process(samples("a", wave(200))), *closed(op, "a")])
    segments = final_segments(found["segments"])
    assert [start for start, _, _ in segments] == [0, *(end + 1 for _, end, _ in segments[:-1])] and segments[-1][1] == 199
    assert all(end - start + 1 >= min_segment for start, end, _ in segments[1:-1])
    assert all(a[2] != b[2] for a, b in pairwise(segments))
    state = final_states(found["states"])
    if min_segment <= 1:
        assert all(state[i] == one for start, end, one in segments for i in range(start, end + 1))
    else:  # each begins with a run that is long enough
        assert all(state[i] == one for start, _, one in segments[1:-1] for i in range(start, start + min_segment))
    rows = found["segments"].filter(found["segments"]["final"]).to_pylist()
    confidence = {r["sequence"]: r["confidence"] for r in found["states"].to_pylist() if r["final"]}
    for row in rows:
        inside = [confidence[i] for i in range(row["sequence"], row["end_sequence"] + 1)]
        assert row["n_samples"] == len(inside) and row["mean_confidence"] == pytest.approx(np.mean(inside), abs=1e-5)


def test_states_of_several_streams_are_those_of_each_alone(tmp_path: Path) -> None:
    checkpoint = network(tmp_path)
    op, waves = operator(checkpoint), {name: wave(70 + 3 * n, n) for n, name in enumerate("abc")}
    found = tables([*op.process(together(*(samples(n, x) for n, x in waves.items()))), *closed(op, *"abc")])["states"]
    for name, x_LC in waves.items():
        wanted = segment(load_network(checkpoint), torch.from_numpy(x_LC)).state_L
        assert final_states(found, name) == dict(enumerate(wanted.tolist()))


@pytest.mark.heavy
@pytest.mark.parametrize("cut", [pytest.param(1, marks=pytest.mark.slow), 64, pytest.param(197, marks=pytest.mark.slow)])
def test_cuts_change_no_row(cut: int, tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(300)
    whole, pieces = operator(checkpoint), operator(checkpoint)
    wanted = tables([*whole.process(samples("a", x_LC)), *closed(whole, "a")])
    parts = [one for i in range(0, len(x_LC), cut) for one in pieces.process(samples("a", x_LC[i : i + cut], i))]
    found = tables([*parts, *closed(pieces, "a")])
    for name in wanted:
        exact = [c for c in wanted[name].column_names if not pa.types.is_floating(wanted[name].schema.field(c).type)]
        assert found[name].select(exact).equals(wanted[name].select(exact)), name


def test_rows_of_a_short_history_name_their_own_samples_however_many_come_at_once(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(40)
    whole, pieces = (operator(checkpoint, history=16, stride=1, min_segment=5) for _ in range(2))
    wanted = tables([each for i in range(40) for each in pieces.process(samples("a", x_LC[i : i + 1], i))])
    found = tables(whole.process(samples("a", x_LC)))
    for name in wanted:
        exact = [c for c in wanted[name].column_names if not pa.types.is_floating(wanted[name].schema.field(c).type)]
        assert found[name].select(exact).equals(wanted[name].select(exact)), name


def test_a_first_segment_that_is_told_late_begins_with_the_first_sample(tmp_path: Path) -> None:
    """No run of 12 samples comes before more samples than the history holds."""
    checkpoint, x_LC = network(tmp_path), wave(130)
    for cut in (7, 130):
        op = operator(checkpoint, history=64, min_segment=12)
        parts = [one for i in range(0, len(x_LC), cut) for one in op.process(samples("a", x_LC[i : i + cut], 5 + i))]
        first, *_ = [row for row in tables(parts)["segments"].to_pylist() if row["segment_id"] == 0]
        assert first["n_samples"] > 64
        assert (first["sequence"], first["event_time"].timestamp()) == (5, 5 * STEP_US / 1e6)


def test_a_snapshot_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    op = operator(network(tmp_path))
    op.process(samples("a", wave(20)))
    state = op.snapshot()
    del state.dense["first"]
    with pytest.raises(RecoveryError, match="written by an earlier version of this operator, which did not keep"):
        op.restore(state)


def test_a_stream_of_less_than_a_window_has_no_states_unless_it_is_padded(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(9)
    plain = operator(checkpoint)
    assert not plain.process(samples("a", x_LC)) and not closed(plain, "a")
    padding = operator(checkpoint, pad_short=True)
    padding.process(samples("a", x_LC))
    found = tables(closed(padding, "a"))
    padded = torch.from_numpy(np.concatenate([np.repeat(x_LC[:1], 7, axis=0), x_LC]))
    assert final_states(found["states"]) == dict(enumerate(segment(load_network(checkpoint), padded).state_L[7:].tolist()))
    assert set(found["states"]["status"].to_pylist()) == {"padded"}
    assert sum(row["n_samples"] for row in found["segments"].to_pylist() if row["final"]) == 9
    assert not closed(operator(checkpoint), "never came")


def test_a_missing_number_is_held_and_nothing_else_changes(tmp_path: Path) -> None:
    checkpoint, hole = network(tmp_path), wave(80)
    hole[30:34, 1] = np.nan
    held = hole.copy()
    held[30:34, 1] = held[29, 1]
    op, plain = operator(checkpoint), operator(checkpoint)
    found = tables(op.process(together(samples("a", hole), samples("b", wave(80, 1)))))["states"]
    wanted = tables(plain.process(together(samples("a", held), samples("b", wave(80, 1)))))["states"]
    assert found.drop(["status"]).equals(wanted.drop(["status"]))
    marked = [(r["stream_id"], r["sequence"]) for r in found.to_pylist() if r["status"] == "held" and r["final"]]
    assert marked == [("a", i) for i in range(30, 34)]


def test_infinities_are_held_like_missing_numbers(tmp_path: Path) -> None:
    checkpoint, hole, wild = network(tmp_path), wave(40), wave(40)
    hole[20], wild[20] = np.nan, [np.inf, -np.inf]
    found, wanted = (tables(operator(checkpoint).process(samples("a", x))) for x in (wild, hole))
    assert found["states"].equals(wanted["states"])


def test_samples_that_no_whole_window_has_get_no_state(tmp_path: Path) -> None:
    checkpoint, hole = network(tmp_path), wave(120)
    hole[40:70, 0] = np.nan  # held for 16 samples, missing for 14
    op = operator(checkpoint)
    found = tables([*op.process(samples("a", hole)), *closed(op, "a")])["states"]
    state = final_states(found)
    wanted = segment(load_network(checkpoint), torch.from_numpy(hole[:40])).state_L
    assert [state[i] for i in range(20)] == wanted[:20].tolist()
    none = [row["sequence"] for row in found.to_pylist() if row["status"] == "no_state" and row["final"]]
    assert none == list(range(56, 72))  # windows from 44 to 68 see a missing sample
    assert all(state[i] == -1 for i in none) and all(state[i] >= 0 for i in range(120) if i not in none)


def test_a_channel_that_never_comes_gives_no_state_and_no_error(tmp_path: Path) -> None:
    x_LC = wave(40)
    x_LC[:, 1] = np.nan
    found = tables(operator(network(tmp_path)).process(samples("a", x_LC)))["states"]
    assert set(found["status"].to_pylist()) == {"no_state"} and set(found["state"].to_pylist()) == {-1}


def test_a_flat_channel_has_states(tmp_path: Path) -> None:
    found = tables(operator(network(tmp_path)).process(samples("a", np.ones((40, 2), np.float32))))["states"]
    assert found.num_rows and pc.min(found["state"]).as_py() >= 0 and np.isfinite(found["confidence"].to_numpy()).all()


def test_rows_with_other_channels_and_late_rows_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(40)
    good = samples("a", x_LC)
    wrong = samples("a", np.ones((1, 3), np.float32), 20)
    late = samples("a", x_LC[5:6], 5)
    again = samples("a", x_LC[19:20], 19)
    rows = pa.Table.from_batches([good.slice(0, 20), wrong, late, again, good.slice(20)]).combine_chunks().to_batches()[0]
    found = tables(operator(checkpoint).process(rows))["states"]
    refused = [(r["sequence"], r["status"], r["error"]) for r in found.to_pylist() if r["state"] is None]
    assert [r[:2] for r in refused] == [(20, "rejected_corrupt"), (5, "late"), (19, "duplicate")]
    assert refused[0][2] == "the row has 3 values; 2 channels are needed, in their order"
    plain = tables(operator(checkpoint).process(good))["states"]
    assert found.filter(found["state"].is_valid()).equals(plain)


@pytest.mark.parametrize("cut", [pytest.param(1, marks=pytest.mark.slow), 7, 1000])
def test_samples_out_of_order_are_put_where_they_belong(cut: int, tmp_path: Path) -> None:
    checkpoint, x_LC, rng = network(tmp_path), wave(103), np.random.default_rng(0)
    whole = samples("a", x_LC)
    # Within spans of a stride behind the first window: no window has run over a place when its sample comes.
    order = np.concatenate([np.arange(16), *(rng.permutation(np.arange(n, min(n + 4, 103))) for n in range(16, 103, 4))])
    mixed = whole.take(pa.array(order))
    op = operator(checkpoint, lateness_s=0.1)
    out = [each for first in range(0, 103, cut) for each in op.process(mixed.slice(first, cut))]
    found = tables([*out, *closed(op, "a")])["states"]
    wanted = segment(load_network(checkpoint), torch.from_numpy(x_LC)).state_L.tolist()
    assert final_states(found) == dict(enumerate(wanted)) and set(found["status"].to_pylist()) == {"ok"}


def test_a_second_sample_of_one_time_counts_and_one_whose_place_a_window_has_seen_is_refused(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(60)
    op, other = operator(checkpoint, lateness_s=0.05), wave(60, 1)
    out = [*op.process(samples("a", x_LC[:38])), *op.process(samples("a", other[37:38], 37))]
    out += op.process(samples("a", other[36:37], 36))  # the last window ends with sample 35
    out += [*op.process(samples("a", other[34:36], 34)), *op.process(samples("a", x_LC[38:], 38))]
    found = tables([*out, *closed(op, "a")])["states"]
    x_LC[36:38] = other[36:38]
    assert final_states(found) == dict(enumerate(segment(load_network(checkpoint), torch.from_numpy(x_LC)).state_L.tolist()))
    refused = [(r["sequence"], r["status"], r["error"]) for r in found.to_pylist() if r["error"]]
    assert [(sequence, status) for sequence, status, _ in refused] == [(34, "late"), (35, "late")]
    assert refused[0][2] == "event_time is 0.030000 s before the last row's, and a window or a gap is there already"
    too_late = tables(op.process(samples("b", x_LC)) + op.process(samples("b", x_LC[50:51], 50)))["states"]
    assert [r["status"] for r in too_late.to_pylist() if r["error"]] == ["late"]


def test_a_gap_ends_the_segment_and_windows_start_over(tmp_path: Path) -> None:
    checkpoint, x_LC, other = network(tmp_path), wave(43), wave(40, 3)
    op = operator(checkpoint, max_gap_s=0.5)
    found = tables([*op.process(samples("a", x_LC)), *op.process(samples("a", other, 200)), *closed(op, "a")])
    parts = [segment(load_network(checkpoint), torch.from_numpy(x)).state_L.tolist() for x in (x_LC, other)]
    assert final_states(found["states"]) == dict(enumerate(parts[0])) | dict(enumerate(parts[1], 200))
    reset = [r for r in found["states"].to_pylist() if r["status"] == "reset"]
    assert [(r["sequence"], r["error"]) for r in reset] == [(200, "1.580 s since the last sample, max_gap_s is 0.5")]
    segments = final_segments(found["segments"])
    assert {42, 239} <= {end for _, end, _ in segments} and {0, 200} <= {start for start, _, _ in segments}
    ids = [r["segment_id"] for r in found["segments"].to_pylist()]
    assert all(0 <= i < 83 for i in ids) and 43 in ids


def test_a_stream_at_another_rate_is_told(tmp_path: Path) -> None:
    checkpoint = network(tmp_path, rate_hz=100.0)
    right = tables(operator(checkpoint).process(samples("a", wave(100))))["states"]
    assert "wrong_rate" not in right["status"].to_pylist()
    wrong = tables(operator(checkpoint).process(samples("a", wave(100), step_us=20_000)))["states"]
    told = [row for row in wrong.to_pylist() if row["error"]]
    assert len(told) == 1 and told[0]["status"] == "wrong_rate" and "sampled at 50 Hz" in told[0]["error"]
    assert wrong["status"].to_pylist().count("wrong_rate") > 20


def test_a_stream_at_another_rate_gets_no_states_where_that_is_wanted(tmp_path: Path) -> None:
    op = operator(network(tmp_path, rate_hz=100.0), wrong_rate="reject")
    found = tables([*op.process(samples("a", wave(200), step_us=20_000)), *closed(op, "a")])["states"].to_pylist()
    wrong = [row for row in found if row["error"]]
    assert [row["status"] for row in wrong] == ["wrong_rate"] and "sampled at 50 Hz" in wrong[0]["error"]
    final = {row["sequence"]: row["status"] for row in found if row["final"]}
    assert {final[n] for n in range(100, 200)} == {"no_state"} and final[20] == "ok"


def test_weights_of_the_released_axis_see_each_window_alone(tmp_path: Path) -> None:
    checkpoint = network(tmp_path, encoder_axis="batch")
    op, waves = operator(checkpoint), {name: wave(60, n) for n, name in enumerate("ab")}
    found = tables(op.process(together(*(samples(n, x) for n, x in waves.items()))))["states"]
    for name, x_LC in waves.items():
        alone = tables(operator(checkpoint).process(samples(name, x_LC)))["states"]
        assert final_states(found, name) == final_states(alone, name)


def test_lengths_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    checkpoint = network(tmp_path)
    for options, words in (
        ({"stride": 17}, "stride 17 leaves samples out; it must be at most the window, 16"),
        ({"history": 10}, r"history 10 is shorter than a window \(16\)"),
        ({"granularities": [0, 0]}, r"granularities is \[0, 0\]"),
        ({"bank_gib": 1e-6}, "the budget is"),
    ):
        with pytest.raises(ConfigError, match=words):
            operator(checkpoint, **options)  # type: ignore[arg-type]


def test_memory_is_what_the_budget_says(tmp_path: Path) -> None:
    checkpoint = network(tmp_path)
    for levels in ([0], [0, 1]):
        one = operator(checkpoint, granularities=levels, max_streams=3, capacity=5)
        config = network_config(checkpoint)
        geometry = Geometry.of(one.options, config, "states")
        assert one.metrics()["bank_bytes"] == 3 * stream_bytes(geometry, config, 5, len(levels))


def test_a_snapshot_of_other_weights_or_lengths_is_refused(tmp_path: Path) -> None:
    checkpoint = network(tmp_path)
    state = operator(checkpoint).snapshot()
    with pytest.raises(RecoveryError, match="settings Geometry"):
        operator(checkpoint, stride=8).restore(state)
    (tmp_path / "other").mkdir()
    with pytest.raises(RecoveryError, match="weights memprompttss-"):
        operator(network(tmp_path / "other", seed=1)).restore(state)


def test_streams_beyond_the_slots_make_room_or_are_refused(tmp_path: Path) -> None:
    checkpoint = network(tmp_path)
    evicting = operator(checkpoint, max_streams=1)
    rows = [*evicting.process(samples("a", wave(20))), *evicting.process(samples("b", wave(20)))]
    rows += evicting.process(samples("a", wave(60)[20:], 20))
    found = tables(rows)["states"].to_pylist()
    assert [(r["stream_id"], r["sequence"]) for r in found if r["status"] == "reset"] == [("a", 20)]
    rejecting = operator(checkpoint, max_streams=1, on_streams_full="reject")
    rejecting.process(samples("a", wave(20)))
    refused = tables(rejecting.process(samples("b", wave(3))))["states"].to_pylist()
    assert [r["status"] for r in refused] == ["rejected_full"] * 3


def test_no_row_gives_no_row(tmp_path: Path) -> None:
    assert operator(network(tmp_path)).process(samples("a", wave(1)).slice(0, 0)) == []
    assert records.schema_name(operator(network(tmp_path)).outputs["states"]) == "states.v1"
