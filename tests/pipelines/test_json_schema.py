"""The JSON Schema of pipeline files: what an editor is told is what ``check`` takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.registry import ready_pipelines

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def validator() -> Any:
    printed = CliRunner().invoke(cli, ["schema"])
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.output)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def problems(validator: Any, text: str) -> list[str]:
    return sorted(error.message for error in validator.iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize("name", ready_pipelines())
def test_every_ready_pipeline_has_the_form(name: str, validator: Any) -> None:
    assert problems(validator, ready_pipelines()[name].read_text()) == []


@pytest.mark.parametrize("page", ["pipeline_file.md", "command_line.md"])
def test_every_pipeline_file_of_the_docs_has_the_form(page: str, validator: Any) -> None:
    texts = re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert texts
    for text in texts:
        assert problems(validator, text) == []


UNEXPECTED = "Additional properties are not allowed ('pth' was unexpected)"
FILE = """
name: copy
state: state
sources: {clips: {type: video, path: x.mp4}}
operators:
  detect: {type: mamba, input: clips}
  mine: {type: "my.module:Operator", input: clips, whatever: 3}
  pass: {type: null, input: clips}
sinks: {rows: {type: parquet, input: detect, path: out}}
"""


def test_types_of_the_users_own_take_any_options(validator: Any) -> None:
    assert problems(validator, FILE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "path: x.mp4",
            "pth: x.mp4",
            ["'path' is a required property", UNEXPECTED],
        ),
        ("state: state", "state: state, epoch_s: 0", None),
        ("type: mamba", "type: mambo", None),
        ("type: mamba", "type: mamba, max_batch: 0", ["0 is less than the minimum of 1"]),
        ("type: mamba", "type: mamba, levels: some", ["'some' is not one of ['all', 'instance', 'pixel']"]),
        ("rows: {", "1rows: {", None),
    ],
)
def test_what_check_refuses_by_form_is_marked(right: str, wrong: str, said: list[str] | None, validator: Any) -> None:
    text = FILE.replace(right, wrong) if "epoch_s" not in wrong else FILE + "epoch_s: 0"
    found = problems(validator, text)
    assert found and (said is None or found == sorted(said))


def test_options_are_told_with_unit_bounds_and_default(validator: Any) -> None:
    epoch_s = validator.schema["properties"]["epoch_s"]
    assert epoch_s["description"].endswith("(s)")
    assert (epoch_s["type"], epoch_s["exclusiveMinimum"], epoch_s["default"]) == ("number", 0, 10.0)
