"""The page on operators, sources and sinks of one's own: its files run as printed, and the operator keeps its promises."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines import Pipeline
from pipelines.cli import cli
from pipelines.testing import Crash, InjectedCrash

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = ("surprise", "ramp", "notes", "test_surprise")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page, in which the test works."""
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(code)
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "extended.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.heavy
def test_the_operator_of_the_page_keeps_the_promises_of_operators(folder: Path) -> None:
    importlib.import_module("test_surprise").test_it_keeps_the_promises_of_operators()


def test_the_pipeline_of_the_page_prints_and_writes_what_the_page_says(folder: Path) -> None:
    (session,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for command, expected in re.findall(r"^\$ streambank (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        done = CliRunner().invoke(cli, shlex.split(command))
        assert done.exit_code == 0, done.output
        if expected:
            assert done.output.replace(str(folder), "/home/me") == expected
    (line,) = re.findall(r"then holds `([^`]+)`", PAGE)
    notes = (folder / "notes" / "part-000000-000-0000.txt").read_text().splitlines()
    assert sorted(notes) == [line.replace("ramp0", f"ramp{n}") for n in range(3)]


def test_the_source_and_the_sink_of_the_page_go_on_where_a_run_was_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = importlib.import_module("ramp")
    overrides: dict[str, Any] = {"epoch_s": 0.01, "sources.ramps.rows": 60, "sources.ramps.jump_at": 40}
    whole = {
        "state": str(folder / "w" / "state"),
        "sinks.notes.path": str(folder / "w" / "notes"),
        "sinks.rows.path": str(folder / "w" / "rows"),
    }
    wanted = (
        Pipeline.load("extended.yaml", overrides=overrides | whole)
        .run()
        .table("rows")
        .sort_by([("stream_id", "ascending"), ("sequence", "ascending")])
    )
    read, crash = ramp.RampReader.read, Crash()

    def reads(self: Any, max_rows: int, max_bytes: int) -> Any:
        if self.row >= 30 and not crash.fired:
            crash.fired = True
            raise InjectedCrash
        return read(self, min(max_rows, 5), max_bytes)

    monkeypatch.setattr(ramp.RampReader, "read", reads)
    pipeline = Pipeline.load("extended.yaml", overrides=overrides)
    with pytest.raises(Exception):  # noqa: B017 (whatever the runner makes of it)
        pipeline.run()
    got = pipeline.run(resume=True).table("rows").sort_by([("stream_id", "ascending"), ("sequence", "ascending")])
    for name in ("stream_id", "sequence", "deviations"):
        assert got.column(name).to_pylist() == wanted.column(name).to_pylist()
    notes = [line for path in sorted((folder / "notes").glob("*.txt")) for line in path.read_text().splitlines()]
    assert len(notes) == 3
