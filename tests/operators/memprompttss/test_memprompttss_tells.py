"""Prompts that stand: a row of alerts each time that a stream comes into a state."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from memprompttss_streams import STEP_US, closed, network, operator, prompts, samples, tables, wave

STATES = range(4)


def tell(state: int, **more: Any) -> dict[str, Any]:
    return {"stream_id": "a", "said": 8, "kind": "tell", "state": state, "prompt_id": f"p{state}"} | more


def alerts(found: dict[str, pa.Table]) -> list[tuple[str, int, int]]:
    return (
        [(row["prompt_id"], row["state"], row["sequence"]) for row in found["alerts"].to_pylist()] if "alerts" in found else []
    )


def begun(found: dict[str, pa.Table], *states: int) -> list[tuple[str, int, int]]:
    rows = [row for row in found["segments"].to_pylist() if not row["final"]]
    return [(f"p{row['state']}", row["state"], row["sequence"]) for row in rows if row["state"] in states]


def test_an_alert_comes_with_each_segment_of_a_state_that_is_waited_for(tmp_path: Path) -> None:
    one, x_LC = operator(network(tmp_path)), wave(300)
    out = one.process(samples("a", x_LC[:8]))
    out += one.control(prompts(*(tell(state) for state in STATES)))
    out += one.process(samples("a", x_LC[8:], 8))
    found = tables([*out, *closed(one, "a")])
    assert alerts(found) == begun(found, *STATES) and len(alerts(found)) > 6
    acknowledged = found["bank"].to_pylist()
    assert [(row["op"], row["prompt_id"]) for row in acknowledged] == [("tell", f"p{state}") for state in STATES]
    segments = {row["segment_id"]: row for row in found["segments"].to_pylist() if not row["final"]}
    for row in found["alerts"].to_pylist():
        assert row["known_at"] == segments[row["segment_id"]]["end_time"] and 0 < row["mean_confidence"] <= 1


@pytest.mark.heavy
def test_alerts_are_the_same_however_rows_are_cut_and_the_operator_restored(tmp_path: Path) -> None:
    checkpoint, x_LC = network(tmp_path), wave(200)
    one = operator(checkpoint)
    one.control(prompts(tell(1), tell(2, debounce_s=100 * STEP_US / 1e6)))
    whole = tables([*one.process(samples("a", x_LC)), *closed(one, "a")])
    cut, out = operator(checkpoint), []
    cut.control(prompts(tell(1), tell(2, debounce_s=100 * STEP_US / 1e6)))
    for start in range(0, 200, 9):
        out += cut.process(samples("a", x_LC[start : start + 9], start))
        if start % 27 == 0:
            state, cut = cut.snapshot(), operator(checkpoint)
            cut.restore(state)
    found = tables([*out, *closed(cut, "a")])
    assert alerts(found) == alerts(whole)
    often = begun(whole, 2)
    assert 0 < len([row for row in alerts(whole) if row[0] == "p2"]) < len(often)  # debounced
    assert [row for row in alerts(whole) if row[0] == "p1"] == begun(whole, 1)


def test_a_retracted_one_tells_no_more_and_one_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    one, x_LC = operator(network(tmp_path)), wave(120)
    out = one.process(samples("a", x_LC[:8]))
    out += one.control(prompts(tell(1), tell(2), tell(9), tell(3, prompt_id=None), tell(3, at=4)))
    out += one.control(prompts({"stream_id": "a", "said": 8, "kind": "retract", "target": "p1", "prompt_id": "r"}))
    out += one.process(samples("a", x_LC[8:], 8))
    found = tables([*out, *closed(one, "a")])
    assert alerts(found) == begun(found, 2)
    assert [(row["op"], row["error"] is None) for row in found["bank"].to_pylist()] == [
        ("tell", True),
        ("tell", True),
        ("reject", False),
        ("reject", False),
        ("reject", False),
        ("retract", True),
    ]
