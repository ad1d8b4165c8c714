"""What prompts do: to the bank, to the past, to what comes; and what is said of those that cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memprompttss_streams import (
    STEP_US,
    closed,
    final_segments,
    final_states,
    network,
    operator,
    prompts,
    samples,
    tables,
    together,
    wave,
)

from connectors.errors import SchemaError
from models.memprompttss.checkpoint import load_network
from models.memprompttss.model import MemPromptTSS, Prompts
from models.memprompttss.offline import segment
from operators.memprompttss import windows
from operators.memprompttss.operator import MemPromptTSSOperator
from pipelines.testing._compare import state_difference


def token(model: MemPromptTSS, x_LC: np.ndarray, at: int, state: int = 0, *, incorrect: int = 0, kind: int = 0) -> torch.Tensor:
    """Return the memory token of a prompt, with its whole context."""
    start = at - model.config.context // 2
    context = torch.from_numpy(x_LC[start : start + model.config.context])[None]
    parts = (torch.tensor([part]) for part in (kind, state, kind, incorrect))
    return model.remember(Prompts(*parts), context)[0]


def events(found: dict[str, pa.Table]) -> list[tuple[str, str, int]]:
    return [(row["op"], row["prompt_id"], row["n_valid"]) for row in found["bank"].to_pylist()] if "bank" in found else []


def rejections(found: dict[str, pa.Table]) -> dict[str, str]:
    return {row["prompt_id"]: row["error"] for row in found["bank"].to_pylist() if row["op"] == "reject"}


def run(op: MemPromptTSSOperator, x_LC: np.ndarray, *said: tuple[int, list[dict[str, Any]]]) -> dict[str, pa.Table]:
    """Run a stream to its end, with prompts after so many samples."""
    out, done = [], 0
    for number, rows in said:
        out += op.process(samples("a", x_LC[done:number], done))
        out += op.control(prompts(*rows))
        done = number
    out += op.process(samples("a", x_LC[done:], done))
    return tables([*out, *closed(op, "a")])


@pytest.mark.parametrize("stride", [4, 16])
def test_a_prompt_changes_what_comes_and_the_past_that_is_remembered_and_names_itself(stride: int, tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(300)
    model = load_network(checkpoint)
    found = run(operator(checkpoint, stride=stride, history=80), x_LC, (200, [{"at": 180, "state": 1, "prompt_id": "p"}]))
    before = segment(model, torch.from_numpy(x_LC), stride=stride).state_L.tolist()
    after = segment(model, torch.from_numpy(x_LC), token(model, x_LC, 180, 1)[None], stride=stride).state_L.tolist()
    # The tick after 200 samples; the newest 80 samples of it are revised, or a window's stride more.
    tick = (200 - 16) // stride * stride + 16 + stride
    kept = -(-80 // stride) * stride
    first = tick - kept
    assert final_states(found["states"]) == dict(enumerate(before[:first] + after[first:]))
    revised = [row for row in found["states"].to_pylist() if row["revision"]]
    settled = tick - 16
    assert [row["sequence"] for row in revised] == [i for i in range(first, settled) if before[i] != after[i]] and revised
    assert all(row["caused_by"] == ["p"] and row["final"] and row["revision"] == 1 for row in revised)
    assert events(found) == [("write", "p", 1)]


@pytest.mark.heavy
def test_segments_after_a_revision_are_those_of_the_states_that_count(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(300)
    for history in (300, 90):
        op = operator(checkpoint, history=history, min_segment=5)
        said = [(110, [{"at": 90, "state": 1, "prompt_id": "p"}]), (190, [{"at": 170, "state": 2, "prompt_id": "q"}])]
        found = run(op, x_LC, *said, (240, [{"kind": "retract", "target": "p", "prompt_id": "r"}]))
        state = final_states(found["states"])
        machine_states = np.array([state[i] for i in range(300)], np.int64)
        assert final_segments(found["segments"]) == segments_of(machine_states, 5)
        rows = found["segments"].to_pylist()
        revised = [row for row in rows if row["caused_by"]]
        assert {name for row in revised for name in row["caused_by"]} == {"p", "q", "r"}
        assert all(row["revision"] for row in revised) and any(not row["n_samples"] for row in revised)


def segments_of(state_L: np.ndarray, min_segment: int) -> list[tuple[int, int, int]]:
    """Return the segments by the rule, sample by sample."""
    starts: list[tuple[int, int]] = []
    run_start = 0
    for i, state in enumerate(state_L.tolist()):
        if i and state != state_L[i - 1]:
            run_start = i
        if i + 1 - run_start >= min_segment and (not starts or state != starts[-1][1]):
            starts.append((run_start if starts else 0, state))
    ends = [start - 1 for start, _ in starts[1:]] + [len(state_L) - 1]
    return [(start, end, state) for (start, state), end in zip(starts, ends, strict=True)]


def test_the_token_is_encoded_again_once_the_samples_after_it_have_come(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    model, op = load_network(checkpoint), operator(checkpoint, history=160)
    found = run(op, x_LC, (60, [{"at": 59, "state": 2, "prompt_id": "p"}]))
    assert events(found) == [("write", "p", 1), ("reencode", "p", 1)]
    wanted = segment(model, torch.from_numpy(x_LC), token(model, x_LC, 59, 2)[None]).state_L
    assert final_states(found["states"]) == dict(enumerate(wanted.tolist()))


def test_a_prompt_about_what_will_come_waits_for_it(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    model, op = load_network(checkpoint), operator(checkpoint, history=160)
    out = [*op.process(samples("a", x_LC[:40])), *op.control(prompts({"at": 70, "state": 2, "prompt_id": "p"}))]
    out += op.process(samples("a", x_LC[40:70], 40))
    assert op.metrics()["waiting"] == 1 and "bank" not in tables(out)
    found = tables([*out, *op.process(samples("a", x_LC[70:], 70)), *closed(op, "a")])
    wanted = segment(model, torch.from_numpy(x_LC), token(model, x_LC, 70, 2)[None]).state_L
    assert final_states(found["states"]) == dict(enumerate(wanted.tolist()))


@pytest.mark.heavy
def test_the_newest_sample_and_seconds_can_be_named_in_place_of_a_time(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(80)
    given = [{"state": 1, "prompt_id": "newest"}, {"at": 59, "state": 1, "prompt_id": "newest"}]
    one, other = (run(operator(checkpoint), x_LC, (60, [row])) for row in given)
    assert final_states(one["states"]) == final_states(other["states"])
    for offset_s, at in ((-0.1, 49), (0.3, 30)):
        op = operator(checkpoint)
        out = op.process(samples("a", x_LC[:60]))
        out += op.control(prompts({"state": 1, "prompt_id": "p", "at_offset_s": offset_s}))
        found = tables([*out, *op.process(samples("a", x_LC[60:], 60)), *closed(op, "a")])
        named = run(operator(checkpoint), x_LC, (60, [{"at": at, "state": 1, "prompt_id": "p"}]))
        assert final_states(found["states"]) == final_states(named["states"])


def test_columns_that_a_prompt_does_not_use_may_be_missing(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    whole, op = prompts({"at": 59, "state": 1, "prompt_id": "p"}), operator(checkpoint)
    out = [
        *op.process(samples("a", x_LC[:60])),
        *op.control(whole.select(["stream_id", "sequence", "event_time", "prompt_id", "kind", "at", "state"])),
    ]
    found = tables([*out, *op.process(samples("a", x_LC[60:], 60)), *closed(op, "a")])
    named = run(operator(checkpoint), x_LC, (60, [{"at": 59, "state": 1, "prompt_id": "p"}]))
    assert final_states(found["states"]) == final_states(named["states"]) and events(found) == events(named)
    with pytest.raises(SchemaError, match="column 'kind'"):
        op.control(whole.select(["stream_id", "sequence", "event_time", "prompt_id"]))


def test_retracting_brings_back_the_states_from_before(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(200)
    plain = run(operator(checkpoint, history=240), x_LC)
    said = [(80, [{"at": 40, "state": 1, "prompt_id": "p"}]), (140, [{"kind": "retract", "target": "p", "prompt_id": "r"}])]
    found = run(operator(checkpoint, history=240), x_LC, *said)
    assert events(found) == [("write", "p", 1), ("retract", "r", 0)]
    assert final_states(found["states"]) == final_states(plain["states"])
    assert final_segments(found["segments"]) == final_segments(plain["segments"])
    twice = [row for row in found["states"].to_pylist() if row["revision"] == 2]
    assert twice and all(row["caused_by"] == ["r"] for row in twice)


def test_more_prompts_than_rows_keep_the_last_ones_and_those_with_a_pin(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(100)
    op = operator(checkpoint, capacity=8, history=100)
    given = [{"at": 10 + 4 * n, "state": n % 4, "prompt_id": f"p{n}", "pinned": n == 1} for n in range(12)]
    found = run(op, x_LC, (90, given[:11]), (98, given[11:]))
    evicted = [name for kind, name, _ in events(found) if kind == "evict"]
    assert evicted == ["p0", "p2", "p3", "p4"]
    # Those that stay are read: the same as only them.
    only = run(
        operator(checkpoint, capacity=8, history=100), x_LC, (90, [given[n] for n in (1, 5, 6, 7, 8, 9, 10)]), (98, given[11:])
    )
    assert final_states(found["states"]) == final_states(only["states"])


@pytest.mark.heavy
@pytest.mark.parametrize(("said", "rows"), [(80, 64), pytest.param(300, 256, marks=pytest.mark.slow)])
def test_of_many_prompts_in_fewer_rows_the_last_ones_are_read(said: int, rows: int, tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(said + 140)
    given = [{"at": 20 + n, "state": n % 4, "prompt_id": f"p{n}"} for n in range(said)]
    op = operator(checkpoint, capacity=rows, history=said + 160, provisional=False)
    found = run(op, x_LC, (said + 130, given))
    model = load_network(checkpoint)
    bank = torch.stack([token(model, x_LC, 20 + n, n % 4) for n in range(said - rows, said)])
    wanted = segment(model, torch.from_numpy(x_LC), bank).state_L
    assert final_states(found["states"]) == dict(enumerate(wanted.tolist()))
    assert [name for kind, name, _ in events(found) if kind == "evict"] == [f"p{n}" for n in range(said - rows)]


def test_a_prompt_that_is_too_old_is_forgotten_unless_it_is_pinned(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    given: list[dict[str, Any]] = [
        {"at": 30, "said": 40, "state": 1, "prompt_id": "p"},
        {"at": 33, "said": 40, "state": 2, "prompt_id": "pin", "pinned": True},
    ]
    found = run(operator(checkpoint, history=140, max_age_s=0.4), x_LC, (40, given))
    assert events(found) == [("write", "p", 1), ("write", "pin", 2), ("expire", "p", 1)]
    only = run(operator(checkpoint, history=140), x_LC, (40, given[1:]))
    assert final_states(found["states"]) == final_states(only["states"])
    expired = [row["sequence"] for row in found["states"].to_pylist() if row["caused_by"] == ["p"]]
    assert max(expired) < 80 < min(row["sequence"] for row in found["states"].to_pylist()[-30:])


def test_a_bank_full_of_pins_takes_no_more_and_says_so(tmp_path: Path) -> None:
    op = operator(network(tmp_path), capacity=2)
    given = [{"at": 10 * n, "state": 1, "prompt_id": f"p{n}", "pinned": True} for n in (2, 3, 4)]
    found = run(op, wave(100), (60, given), (70, [{"kind": "pin", "target": "p2", "pinned": False, "prompt_id": "off"}]))
    assert "all prompts of the bank are pinned" in rejections(found)["p4"]
    assert events(found)[-1] == ("pin", "off", 2)


def test_the_same_again_replaces_and_a_contradiction_replaces_but_what_is_not_so_adds_up(tmp_path: Path) -> None:
    op = operator(network(tmp_path))
    given = [
        {"at": 30, "state": 1, "prompt_id": "one"},
        {"at": 30, "state": 1, "prompt_id": "same"},
        {"at": 30, "state": 2, "prompt_id": "other"},
        {"at": 30, "state": 3, "aspect": "incorrect", "prompt_id": "not 3"},
        {"at": 30, "state": 0, "aspect": "incorrect", "prompt_id": "not 0"},
        {"at": 31, "kind": "boundary", "prompt_id": "here"},
        {"at": 31, "kind": "boundary", "boundary": False, "prompt_id": "not here"},
        {"at": 40, "state": 1, "prompt_id": "other"},
    ]
    found = run(op, wave(80), (60, given))
    assert events(found) == [
        ("write", "one", 1),
        ("replace", "same", 1),
        ("replace", "other", 1),
        ("write", "not 3", 2),
        ("write", "not 0", 3),
        ("write", "here", 4),
        ("replace", "not here", 4),
        ("replace", "other", 4),
    ]


def test_a_range_becomes_a_prompt_for_each_context(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    model, op = load_network(checkpoint), operator(checkpoint, history=160)
    found = run(op, x_LC, (100, [{"at": 20, "at_end": 49, "state": 2, "prompt_id": "range"}]))
    assert [kind for kind, _, _ in events(found)] == ["write"] * 3
    bank = torch.stack([token(model, x_LC, at, 2) for at in (25, 35, 45)])
    wanted = segment(model, torch.from_numpy(x_LC), bank).state_L
    assert final_states(found["states"]) == dict(enumerate(wanted.tolist()))


def test_what_has_left_the_history_is_refused_unless_it_brings_its_samples(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(300)
    model = load_network(checkpoint)
    op = operator(checkpoint)
    context = x_LC[14:26].ravel().tolist()
    given = [{"at": 20, "state": 1, "prompt_id": "old"}, {"at": 20, "state": 1, "prompt_id": "own", "context": context}]
    found = run(op, x_LC, (250, given))
    assert "too old: the history begins" in rejections(found)["old"]
    assert ("write", "own", 1) in events(found)
    wanted = segment(model, torch.from_numpy(x_LC), token(model, x_LC, 20, 1)[None]).state_L.tolist()
    state = final_states(found["states"])
    assert [state[i] for i in range(240, 300)] == wanted[240:]


def test_prompts_that_make_no_sense_are_refused_with_a_reason(tmp_path: Path) -> None:
    op = operator(network(tmp_path, granularities=(0, 1)), granularities=[0, 1], max_waiting=30)
    rows: dict[str, tuple[dict[str, Any], str]] = {
        "kind": ({"kind": "lable"}, "kind is 'lable'; it must be one of label"),
        "state": ({"state": 4}, "state is 4; the network has the states 0 to 3"),
        "none": ({"state": None}, "state is None"),
        "level": ({"state": 1, "granularity": 7}, "granularity is 7; there are 0, 1"),
        "aspect": ({"state": 1, "aspect": "wrong"}, "aspect is 'wrong'; it must be correct or incorrect"),
        "target": ({"kind": "retract", "target": "nothing"}, "the bank holds no prompt 'nothing'"),
        "range": ({"state": 1, "at": 9, "at_end": 3}, "at_end needs an earlier at"),
        "edge": ({"kind": "boundary", "at": 0}, "nothing can be said of a boundary at the first sample"),
        "end": ({"kind": "boundary", "at": 5, "at_end": 9}, "a boundary is at one time"),
        "context": ({"state": 1, "context": [1.0]}, "context has 1 values; 12 samples of 2 channels are 24"),
        "wild": ({"state": 1, "context": [float("nan")] * 24}, "context has values that are no numbers"),
        "before": ({"state": 1, "at": -5}, "too old: the stream or its part after the last gap begins"),
        "x" * 65: ({"state": 1}, "prompt_id has 65 bytes; at most 64"),
    }
    given = [{**row, "prompt_id": name} for name, (row, _) in rows.items()]
    found = run(op, wave(60), (40, given))
    told = rejections(found)
    assert told.keys() == rows.keys()
    for name, (_, words) in rows.items():
        assert words in told[name], name
    assert not any(row["revision"] for row in found["states"].to_pylist())
    assert set(found["bank"]["status"].to_pylist()) == {"rejected_prompt"}


def test_only_so_many_prompts_wait(tmp_path: Path) -> None:
    op = operator(network(tmp_path), max_waiting=2)
    op.process(samples("a", wave(20)))
    told = rejections(tables(op.control(prompts(*({"at": 99, "state": 1, "prompt_id": f"p{n}"} for n in range(3))))))
    assert told == {"p2": "2 prompts of this stream wait already (max_waiting)"}


def test_a_prompt_about_a_stream_that_has_not_come_waits_for_it_but_not_forever(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(120)
    model, op = load_network(checkpoint), operator(checkpoint, history=160, prompt_ttl_s=10.0)
    out = op.control(
        prompts({"at": 20, "state": 2, "prompt_id": "p"}, {"stream_id": "b", "at": 20, "state": 2, "prompt_id": "q"})
    )
    assert not out
    found = tables([*op.process(samples("a", x_LC)), *closed(op, "a")])
    wanted = segment(model, torch.from_numpy(x_LC), token(model, x_LC, 20, 2)[None]).state_L
    assert final_states(found["states"]) == dict(enumerate(wanted.tolist()))
    assert not op.advance(10 * 1_000_000)
    told = rejections(tables(op.advance(11 * 1_000_000)))
    assert told == {"q": "nothing of this stream came for 10 s (prompt_ttl_s)"}
    late = operator(checkpoint, prompt_ttl_s=0.1)
    late.control(prompts({"at": 20, "state": 2, "prompt_id": "p"}))
    assert "nothing of this stream came" in rejections(tables(late.process(samples("a", x_LC[:30], 100))))["p"]
    full = operator(checkpoint, max_streams=1)
    full.process(samples("b", x_LC))
    assert "all slots are taken" in rejections(tables(full.control(prompts({"at": 20, "state": 2, "prompt_id": "p"}))))["p"]


@pytest.mark.heavy
def test_prompts_of_one_stream_and_level_leave_the_others_alone(tmp_path: Path) -> None:
    checkpoint = network(tmp_path, granularities=(0, 1))
    waves = together(samples("a", wave(100)), samples("b", wave(100, 1)))
    more = together(samples("a", wave(40, 5), 100), samples("b", wave(40, 6), 100))
    plain, told = (operator(checkpoint, granularities=[0, 1]) for _ in range(2))
    wanted = tables([*plain.process(waves), *plain.process(more)])["states"]
    out = told.process(waves)
    out += told.control(prompts({"stream_id": "a", "at": 80, "state": 1, "granularity": 1, "prompt_id": "p"}))
    found = tables([*out, *told.process(more)])["states"]
    assert final_states(found, "b", 0) == final_states(wanted, "b", 0)
    assert final_states(found, "b", 1) == final_states(wanted, "b", 1)
    assert final_states(found, "a", 0) == final_states(wanted, "a", 0)
    assert final_states(found, "a", 1) != final_states(wanted, "a", 1)


def test_a_prompt_stays_through_a_gap_and_is_forgotten_by_a_reset(tmp_path: Path) -> None:
    checkpoint, x_LC, other = network(tmp_path), wave(60), wave(60, 3)
    model, op = load_network(checkpoint), operator(checkpoint, max_gap_s=0.5, history=80)
    out = [*op.process(samples("a", x_LC)), *op.control(prompts({"at": 30, "state": 1, "prompt_id": "p"}))]
    out += op.process(samples("a", other, 200))
    found = tables([*out, *closed(op, "a")])
    bank = token(model, x_LC, 30, 1)[None]
    state = final_states(found["states"])
    for x, first in ((x_LC, 0), (other, 200)):
        wanted = segment(model, torch.from_numpy(x), bank).state_L.tolist()
        assert [state[first + i] for i in range(60)] == wanted
    cleared = run(operator(checkpoint, history=80), x_LC, (40, [{"at": 20, "state": 1, "prompt_id": "p"}, {"kind": "reset"}]))
    assert events(cleared) == [("write", "p", 1), ("reset", None, 0)]
    assert final_states(cleared["states"]) == dict(enumerate(segment(model, torch.from_numpy(x_LC)).state_L.tolist()))


def test_a_prompt_where_numbers_were_missing_is_refused(tmp_path: Path) -> None:
    x_LC = wave(120)
    x_LC[40:80, 0] = np.nan
    found = run(operator(network(tmp_path), history=160), x_LC, (100, [{"at": 70, "state": 1, "prompt_id": "p"}]))
    assert "a channel has no number around it" in rejections(found)["p"]


def test_prompts_of_one_tick_are_one_revision(tmp_path: Path) -> None:
    given = [{"at": 30, "state": 1, "prompt_id": "p"}, {"at": 40, "state": 2, "prompt_id": "q"}]
    found = run(operator(network(tmp_path), history=120), wave(100), (60, given))
    revised = [row for row in found["states"].to_pylist() if row["revision"]]
    assert revised and all(row["caused_by"] == ["p", "q"] and row["revision"] == 1 for row in revised)


def test_prompts_that_wait_end_with_their_stream(tmp_path: Path) -> None:
    found = run(operator(network(tmp_path)), wave(60), (50, [{"at": 90, "state": 1, "prompt_id": "p"}]))
    assert rejections(found) == {"p": "the stream has ended"}
    times = found["bank"]["event_time"].cast(pa.int64()).to_pylist()
    assert times == [90 * STEP_US]


def test_prompts_about_a_stream_that_has_paused_are_applied_at_the_second_flush(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(122)
    op = operator(checkpoint, history=160)
    out = op.process(samples("a", x_LC))
    out += op.control(prompts({"at": 60, "state": 2, "prompt_id": "p"}))
    assert not op.flush()
    late = op.flush()
    assert events(tables(late)) == [("write", "p", 1)]
    assert not op.flush()
    wanted = segment(load_network(checkpoint), torch.from_numpy(x_LC[:120]), token(load_network(checkpoint), x_LC, 60, 2)[None])
    rows = tables([*out, *late])["states"].to_pylist()
    state = {row["sequence"]: row["state"] for row in rows}
    assert [state[i] for i in range(120)] == wanted.state_L.tolist()
    told = [row for row in tables(late)["states"].to_pylist() if not row["final"]]
    assert [row["sequence"] for row in told] == list(range(108, 120)) and all(row["caused_by"] == ["p"] for row in told)
    found = tables([*out, *late, *op.process(samples("a", wave(160)[122:], 122)), *closed(op, "a")])
    assert sorted(final_states(found["states"])) == list(range(160))


@pytest.mark.parametrize(
    "behind", [0, pytest.param(6, marks=pytest.mark.slow), 10, pytest.param(13, marks=pytest.mark.slow), 15]
)
def test_a_paused_stream_is_revised_wherever_its_last_window_ends(behind: int, tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(208 + behind)
    for history in (80, 96):
        op = operator(checkpoint, stride=16, history=history, min_segment=9)
        out = op.process(samples("a", x_LC))
        for number, at in enumerate(range(len(x_LC) - history + 17, len(x_LC), 11)):
            out += [*op.flush(), *op.control(prompts({"at": at, "state": number % 3, "prompt_id": f"p{number}"})), *op.flush()]
        out += op.flush()
        found = tables([*out, *closed(op, "a")])
        assert any(row["revision"] for row in found["states"].to_pylist())
        state = final_states(found["states"])
        assert final_segments(found["segments"]) == segments_of(np.array([state[i] for i in range(len(x_LC))], np.int64), 9)


def test_all_windows_of_a_call_settled_at_once_give_what_they_give_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, length = network(tmp_path), 96  # a ring of 41 samples goes round twice
    said = [{"at": at, "state": at % 4, "prompt_id": f"p{at}", "stream_id": "ab"[at % 2]} for at in range(9, length, 9)]
    rows = together(samples("a", wave(length)), samples("b", wave(length, 1)))
    found = []
    for most in (windows._MOST_BYTES, 0):
        monkeypatch.setattr(windows, "_MOST_BYTES", most)
        op = operator(checkpoint, history=32)
        found.append((tables([*op.control(prompts(*said)), *op.process(rows)]), op.snapshot()))
    (at_once, state), (in_turn, wanted) = found
    assert at_once == in_turn and state_difference(state, wanted) is None
    revised = {str(row["caused_by"]) for row in at_once["states"].to_pylist() if row["revision"]}
    assert len(revised) > 3 and at_once["bank"]["op"].to_pylist().count("write") == len(said)
