"""The page "from a file to Kafka to a cluster": its example runs, its files are one pipeline, its tables name all types."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from connectors.base import Source
from pipelines import registry
from pipelines.cli import cli
from pipelines.file import load_spec
from pipelines.spec import PipelineSpec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "production.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the operator and the data of the page."""
    (tmp_path / "means.py").write_text(blocks("python")[0])
    (tmp_path / "speeds.jsonl").write_text(blocks("json")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "means", raising=False)
    return tmp_path


def steps(folder: Path) -> list[PipelineSpec]:
    specs = []
    for text in blocks("yaml"):
        (folder / "means.yaml").write_text(text)
        specs.append(load_spec(folder / "means.yaml"))
    return specs


def test_the_first_step_prints_what_the_page_says(folder: Path) -> None:
    (folder / "means.yaml").write_text(blocks("yaml")[0])
    [session] = blocks("console")
    [(command, expected)] = re.findall(r"^\$ streambank ([^\n]*)\n(.*)", session, re.DOTALL)
    printed = CliRunner().invoke(cli, shlex.split(command)).output.replace(str(folder), "/home/me")
    assert re.sub(r"\d+\.\d s\b", "0.0 s", printed) == expected
    from connectors.sinks.read import read_committed

    assert read_committed(folder / "rows").column("mean").to_pylist() == [0.5, 0.75, 0.75]


def test_the_three_files_are_one_pipeline_whose_operators_stay(folder: Path) -> None:
    first, second, third = steps(folder)
    assert [spec.name for spec in (first, second, third)] == ["means"] * 3
    assert [spec.sources[0].type for spec in (first, second, third)] == ["jsonl", "kafka", "kafka"]
    assert [spec.runner for spec in (first, second, third)] == ["local", "local", "ray"]
    for spec in (second, third):
        assert [(node.name, node.type, node.inputs) for node in spec.operators] == [("mean", "means:Mean", ("speeds",))]
    assert third.operators[0].shards == 3
    assert (third.placement, third.resources_wait_s) == ("spread", 600.0)


def test_the_third_step_may_take_up_the_state_of_the_second(folder: Path) -> None:
    from pipelines.runtime.recovery import options_of

    _, second, third = steps(folder)
    assert options_of(second) == options_of(third)


def test_the_submitted_command_line_is_one_of_ours(folder: Path) -> None:
    [command] = re.findall(r"^ray job submit .* -- streambank (run .*)$", PAGE, re.MULTILINE)
    answer = CliRunner().invoke(cli, [*shlex.split(command), "--help"])
    assert answer.exit_code == 0
    name, *arguments = shlex.split(command)
    parsed = cli.commands[name].make_context(name, arguments)
    assert (parsed.params["runner"], parsed.params["resume"], parsed.params["file"]) == ("ray", True, "means.yaml")


def test_the_tables_name_every_source_and_sink_and_what_it_promises() -> None:
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", PAGE[PAGE.index("delivered how often") :], re.MULTILINE)
    promises = [(name, promise) for names, promise in rows for name in re.findall(r"`(\w+)`", names)]
    kinds = [entry for kind in ("source", "sink") for entry in registry.entries(kind)]
    assert sorted(name for name, _ in promises) == sorted(entry.name for entry in kinds)
    for entry in registry.entries("source"):
        source = registry.load("source", entry.name)
        assert issubclass(source, Source)
        assert (entry.name, "exactly once" if source.replayable else "at most once") in promises
