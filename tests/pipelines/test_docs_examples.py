"""The examples of the docs are run, and print what the docs say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from models import hub
from models.hub import shipped_names
from pipelines.cli import cli
from pipelines.commands.train import methods
from pipelines.file import load_spec

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOME = "/home/me"
# What differs from run to run: durations, times, sizes of files.
VARYING = ((r"\d+\.\d s\b", "0.0 s"), (r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME"), (r"[\d.]+ kB", "0.0 kB"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def steady(text: str) -> list[str]:
    for pattern, replacement in VARYING:
        text = re.sub(pattern, replacement, text)
    return text.splitlines()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of the page on the command line."""
    (tmp_path / "events.jsonl").write_text(blocks("command_line.md", "json")[0])
    (tmp_path / "copy.yaml").write_text(blocks("command_line.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("page", "text"), [(page, text) for page in ("pipeline_file.md", "command_line.md") for text in blocks(page, "yaml")]
)
def test_every_pipeline_file_of_the_docs_is_valid(page: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert load_spec(tmp_path / "p.yaml").sinks


def test_every_command_of_the_docs_prints_what_they_say(folder: Path) -> None:
    sessions = blocks("command_line.md", "console")
    assert sessions
    for session in sessions:
        for command, expected in re.findall(r"^\$ streambank (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            printed = CliRunner().invoke(cli, shlex.split(command)).output.replace(str(folder), HOME)
            assert steady(printed) == steady(expected), command


def test_the_python_of_the_docs_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("pipeline_file.md", "python")
    exec(compile(code, "pipeline_file.md", "exec"), {})
    assert capsys.readouterr().out == "3 finished 3\n"


def test_set_examples_of_the_docs_work(folder: Path) -> None:
    (folder / "cameras.yaml").write_text(blocks("pipeline_file.md", "yaml")[0])
    text = (DOCS / "pipeline_file.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^    streambank run (.*)$", text, re.MULTILINE)
    name, *options = shlex.split(line)
    spec = load_spec(name, sets=[option for option in options if option != "--set"])
    assert (spec.node("detect").max_batch, spec.epoch_s) == (8, 2.0)  # type: ignore[union-attr]
    [node] = re.findall(r"`--set '(sinks\.more=.*?)'`", text)
    assert load_spec(name, sets=[node]).node("more").type == "jsonl"


def test_each_method_names_the_public_weights_that_load() -> None:
    for method in methods():
        assert "**Public weights" in (DOCS / "operators" / f"{method}.md").read_text(encoding="utf-8"), method


def test_every_address_of_weights_in_the_docs_is_one() -> None:
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    found = {
        address for page in pages for address in re.findall(r"\b(?:hf|package)://[\w./@-]+", page.read_text(encoding="utf-8"))
    }
    form = {"hf://ORG/NAME", "hf://ORG/NAME@REVISION", "hf://ORG/NAME/FILE", "package://METHOD/NAME"}
    named = {address for address in found - form if address.startswith("package://")}
    assert named and named <= shipped_names().keys()
    assert all(hub._ADDRESS.fullmatch(address) for address in found - form - named)
