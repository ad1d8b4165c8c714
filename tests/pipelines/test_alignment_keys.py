"""The keys ``align_s`` and ``align_wait_s`` of a pipeline file, and what a resumed run may change of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.errors import ConfigError
from pipelines.file import load_spec
from pipelines.runtime.recovery import options_of
from pipelines.spec import OperatorSpec, PipelineSpec

TWO = """\
name: two
state: state
sources:
  a: {type: video, path: "*.mp4"}
operators:
  first: {type: "null", input: a, FIRST}
  between: {type: "null", input: first}
  second: {type: "null", inputs: [between, a], SECOND}
sinks:
  rows: {type: parquet, input: second, path: rows}
"""


def load(tmp_path: Path, first: str, second: str) -> PipelineSpec:
    path = tmp_path / "p.yaml"
    path.write_text(TWO.replace(", FIRST", first and f", {first}").replace(", SECOND", second and f", {second}"))
    return load_spec(path)


def test_rows_are_handed_over_as_they_arrive_unless_asked_otherwise(tmp_path: Path) -> None:
    spec = load(tmp_path, "", "")
    assert [(node.align_s, node.align_wait_s) for node in spec.operators] == [(None, None)] * 3


@pytest.mark.parametrize(("first", "second"), [("0", "0.5"), ("2", "2"), ("0.25", "1")])
def test_an_operator_may_align_as_finely_as_its_inputs_or_more_coarsely(first: str, second: str, tmp_path: Path) -> None:
    spec = load(tmp_path, f"align_s: {first}", f"align_s: {second}, align_wait_s: 30")
    last = spec.node("second")
    assert isinstance(last, OperatorSpec)
    assert (last.align_s, last.align_wait_s) == (float(second), 30.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("", "align_s: -1", "operators.second.align_s: must be at least 0 (s), got -1"),
        ("", "align_s: 1, align_wait_s: 0", "operators.second.align_wait_s: must be above 0 (s), got 0"),
        ("", "align_wait_s: 5", "operators.second.align_wait_s: does nothing without align_s; give align_s too, or remove it"),
        (
            "align_s: 2",
            "align_s: 3",
            "operators.second.align_s: is 3, but rows come from 'first' in spans of 2 s; give a whole multiple of that",
        ),
        (
            "align_s: 2",
            "align_s: 0",
            "operators.second.align_s: is 0, but rows come from 'first' in spans of 2 s; give a whole multiple of that",
        ),
    ],
)
def test_a_mistake_in_the_keys_of_alignment(first: str, second: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, first and f"{first}", second)
    assert message in str(caught.value)


def test_several_inputs_are_aligned_where_they_meet_first(tmp_path: Path) -> None:
    text = TWO.replace(", FIRST", "").replace("input: first}", "input: first, control: a}").replace("SECOND", "align_s: 1")
    (tmp_path / "p.yaml").write_text(text.replace('"null", input: first', '"aligned_workload:Ledger", input: first'))
    with pytest.raises(ConfigError) as caught:
        load_spec(tmp_path / "p.yaml")
    message = "operators.between: 'second' aligns its rows, and it has several inputs; give it an align_s too"
    assert message in str(caught.value)


def test_align_s_must_stay_on_resume_and_align_wait_s_may_change(tmp_path: Path) -> None:
    plain = options_of(load(tmp_path, "", ""))
    aligned = options_of(load(tmp_path, "", "align_s: 1"))
    assert {key: value for key, value in aligned.items() if plain.get(key) != value} == {"second.align_s": 1.0}
    assert options_of(load(tmp_path, "", "align_s: 1, align_wait_s: 5")) == aligned
