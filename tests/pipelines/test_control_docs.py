"""The examples of docs/control.md run, and print what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from asking_workload import running
from click.testing import CliRunner

from connectors.sinks.read import read_committed
from pipelines.api import Pipeline
from pipelines.cli import cli
from pipelines.commands.describe import describe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "control.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the files of the page."""
    (tmp_path / "events.jsonl").write_text(blocks("json")[0])
    (tmp_path / "counter.py").write_text(blocks("python")[0])
    (tmp_path / "counting.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_session_prints_what_the_page_says_and_a_file_of_ones_own_is_answered(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(blocks("yaml")[0])
    [echo] = re.findall(r"^    echo '(.*)' > (questions/.*)$", PAGE, re.MULTILINE)
    [code] = re.findall(r"^    (answer = .*)\n    (print.*)$", PAGE, re.MULTILINE)
    with running(values | {"epoch_s": 0.05}, rows=3):
        Path(echo[1]).write_text(echo[0] + "\n")
        [session] = blocks("console")
        commands = re.findall(r"^\$ streambank (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
        assert len(commands) == 2
        for command, expected in commands:
            assert CliRunner().invoke(cli, shlex.split(command)).stdout == expected, command
        exec("\n".join(code), {"Pipeline": Pipeline})
    assert capsys.readouterr().out == "2 rows 1970-01-01 00:00:01+00:00\n"
    rows = read_committed("answers").to_pylist()
    assert [(row["stream_id"], row["answer"]) for row in rows if row["question_id"] == "17"] == [("m1", "2 rows")]
    assert len(rows) == 5


def test_the_other_pipeline_file_of_the_page_is_valid(folder: Path) -> None:
    (folder / "asked.yaml").write_text(blocks("yaml")[1])
    assert Pipeline.load("asked.yaml").spec.operators[0].control == ("questions",)


def test_options_of_the_page_are_those_of_the_command() -> None:
    table = re.findall(r"^\| `(--.*?) \|", PAGE, re.MULTILINE)
    named = set(re.findall(r"--[a-z]+", " ".join(table)))
    told = CliRunner().invoke(cli, ["ask", "--help"]).output
    assert named == set(re.findall(r"^  (--[a-z]+)", told, re.MULTILINE)) - {"--log", "--debug"} - {"--help"}


def test_the_source_is_described() -> None:
    assert "Folder that requests are put into" in describe("requests")
