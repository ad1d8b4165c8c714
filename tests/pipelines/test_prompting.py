"""Telling a pipeline that runs what is so: every kind of prompt, what comes back, what is refused before anything is put."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking_workload import Run, running, telling
from click.testing import CliRunner, Result

from connectors.errors import ConfigError
from connectors.sinks.read import read_committed
from pipelines.api import Pipeline
from pipelines.asking.prompts import prompt
from pipelines.cli import cli

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return telling(tmp_path_factory.mktemp("telling"))


@pytest.fixture(scope="module")
def run(values: dict[str, Any]) -> Iterator[Run]:
    """A run that has read everything, and stays."""
    with running(values) as run:
        yield run


def call(values: dict[str, Any], folder: Path, *arguments: str) -> Result:
    file = folder / "telling.yaml"
    file.write_text(yaml.safe_dump(values))
    return CliRunner().invoke(cli, ["prompt", str(file), *arguments])


def said(result: Result) -> list[dict[str, Any]]:
    """What the operator was told, by the rows of ``--json``."""
    return [json.loads(json.loads(line)["said"]) for line in result.stdout.splitlines()]


AT, LATER = "2019-01-01 00:00:05+00:00", "2019-01-01 00:00:09+00:00"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["label", "7"], {"kind": "label", "state": 7}),
        (["label", "0", "--at", "2019-01-01T00:00:05Z"], {"kind": "label", "state": 0, "at": AT}),
        (
            ["label", "7", "--incorrect", "--at", "-3s"],
            {"kind": "label", "state": 7, "aspect": "incorrect", "at_offset_s": -3.0},
        ),
        (
            ["label", "7", "--at", "2019-01-01T00:00:05Z", "--until", "1546300809"],
            {"kind": "label", "state": 7, "at": AT, "at_end": LATER},
        ),
        (["boundary", "--at", "00:00:05"], {"kind": "boundary", "boundary": True, "at_offset_s": 5.0}),
        (["boundary", "yes", "--incorrect"], {"kind": "boundary", "boundary": True, "aspect": "incorrect"}),
        (["boundary", "no", "--granularity", "1"], {"kind": "boundary", "boundary": False, "granularity": 1}),
        (["retract", "p1", "--author", "ada"], {"kind": "retract", "target": "p1", "author": "ada"}),
        (["pin", "p1"], {"kind": "pin", "target": "p1"}),
        (["pin", "p1", "--off"], {"kind": "pin", "target": "p1", "pinned": False}),
        (["reset", "--granularity", "0"], {"kind": "reset", "granularity": 0}),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_every_kind_of_prompt_comes_to_the_operator_as_it_was_meant(
    arguments: list[str], wanted: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    result = call(values, tmp_path, *arguments, "--stream", "a", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert said(result) == [wanted]


@pytest.mark.usefixtures("run")
def test_what_becomes_of_a_prompt_is_told_with_its_id_for_each_stream(values: dict[str, Any], tmp_path: Path) -> None:
    result = call(values, tmp_path, "label", "3", "--stream", "b", "--stream", "a", "--id", "mine")
    assert result.exit_code == 0
    text = '  prompt_id  mine\n  said  {"kind": "label", "state": 3}\n'
    assert result.stdout == f"b: write\n{text}a: write\n{text}"
    refused = call(values, tmp_path, "label", "12", "--stream", "a")
    assert refused.exit_code == 1
    assert refused.stdout.startswith("a: reject (rejected_prompt: state is above 9)\n  prompt_id  ")


@pytest.mark.usefixtures("run")
def test_python_prompts_with_one_call(values: dict[str, Any]) -> None:
    answer = Pipeline.from_dict(values).prompt("label", 4, stream="a", at="-1s", correct=False, granularity=1)
    assert answer.ok
    assert answer.row is not None
    assert (answer.row["op"], answer.row["prompt_id"]) == ("write", answer.id)
    assert json.loads(answer.row["said"]) == {
        "kind": "label", "at_offset_s": -1.0, "state": 4, "aspect": "incorrect", "granularity": 1,
    }  # fmt: skip
    rows = read_committed(values["sinks"]["bank"]["path"]).to_pylist()
    assert [row["op"] for row in rows if row["prompt_id"] == answer.id] == ["write"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lable", "7"], "'lable' is no kind of prompt (did you mean 'label'?); allowed: label, boundary, retract, pin, reset"),
        (["label"], "label needs the number of a state, such as `label 7`; got None"),
        (["label", "walking"], "label needs the number of a state, such as `label 7`; got 'walking'"),
        (["label", "99999999999"], "label: 99999999999 is no int32"),
        (["boundary", "maybe"], "boundary takes yes (a segment begins there; the default) or no (none does); got 'maybe'"),
        (["retract"], "retract needs the id of a prompt, as `streambank prompt` has printed it; got None"),
        (["reset", "p1"], "reset takes no value, got 'p1'; to take back one prompt, retract it by its id"),
        (["reset", "--at", "-1s"], "--at: has no meaning for reset; leave it out"),
        (["pin", "p1", "--incorrect"], "--incorrect: has no meaning for pin; leave it out"),
        (["label", "7", "--off"], "--off: has no meaning for label; leave it out"),
        (["boundary", "--until", "5"], "--until: has no meaning for boundary; leave it out"),
        (["label", "7", "--until", "1546300809"], "--until: a range needs two absolute times; give --at and --until"),
        (["label", "7", "--at", "-3s", "--until", "1546300809"], "--until: a range needs two absolute times"),
        (["label", "7", "--at", "5", "--until", "noon"], "--until: 'noon' is no time; write ISO 8601 such as"),
        (["label", "7", "--at", "noon"], "--at: 'noon' is no time"),
        (["label", "7", "--granularity", "300"], "--granularity: 300 is no int8"),
        (["label", "7", "--id", " "], "--id: is empty; leave it out, or name the prompt"),
        (["label", "7", "--column", "state=3"], "--column state: this column is filled already; leave it out"),
        (["label", "7", "--column", "colour=3"], "--column colour: operator 'count' takes no such column; allowed: aspect, "),
        (["label", "7", "--timeout", "0"], "--timeout: must be above 0 seconds, got 0"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_put(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = call(telling(tmp_path), tmp_path, *arguments, "--stream", "a")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "prompts").exists()


def test_a_prompt_needs_a_stream_and_a_way(tmp_path: Path) -> None:
    values = telling(tmp_path)
    assert "--stream: is missing; name the stream that the prompt is about" in call(values, tmp_path, "reset").stderr
    spec = Pipeline.from_dict(values).spec
    with pytest.raises(ConfigError, match="--until: nan is no time"):
        prompt(spec, "label", 7, streams=["a"], at=3.0, until=float("nan"))
    columns = {
        name: kind for name, kind in values["sources"]["prompts"]["columns"].items() if name not in ("target", "at_offset_s")
    }
    values["sources"]["prompts"]["columns"] = columns
    found = call(values, tmp_path, "retract", "p1", "--stream", "a").stderr
    assert "sources.prompts.columns: lacks target, so it would be left out; add it there" in " ".join(found.split())
    found = call(values, tmp_path, "label", "7", "--at", "-3s", "--stream", "a").stderr
    assert "sources.prompts.columns lacks at_offset_s" in " ".join(found.split())
    del values["sinks"]["bank"]
    found = call(values, tmp_path, "label", "7", "--stream", "a").stderr
    assert "sinks: answers: {type: jsonl, input: count.bank, path: answers}" in " ".join(found.split())
    del values["operators"]["count"]["control"], values["sources"]["prompts"]
    found = call(values, tmp_path, "label", "7", "--stream", "a").stderr
    assert "prompts: {type: requests, path: prompts, stay: true, columns: {prompt_id: string, kind: string" in " ".join(
        found.split()
    )
