"""Starting over in the same folders: exactly what earlier runs wrote is listed and deleted, nothing of the user's."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from connectors.errors import ConfigError, RecoveryError
from pipelines import Pipeline
from pipelines.cli import cli

COPY = """\
name: copy
state: state
sources:
  events: {type: jsonl, path: events.jsonl, stream_id: k, event_time: t, event_time_unit: s}
sinks:
  rows: {type: parquet, input: events, path: out/rows, partition_by: [stream]}
  lines: {type: jsonl, input: events, path: out/lines}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder in which a pipeline has run once."""
    write_events(tmp_path, 20)
    (tmp_path / "copy.yaml").write_text(COPY)
    monkeypatch.chdir(tmp_path)
    assert Pipeline.load("copy.yaml").run().report.status == "finished"
    return tmp_path


def write_events(folder: Path, number: int) -> None:
    lines = [json.dumps({"k": f"k{n % 3}", "v": n, "t": n}) for n in range(number)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def call(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=answer)


def test_an_edited_input_is_run_again_in_the_same_folders(folder: Path) -> None:
    write_events(folder, 7)
    again = call("run", "copy.yaml", "--fresh")
    assert again.exit_code == 0, again.output
    assert Pipeline.load("copy.yaml").run(resume=True).table("rows").num_rows == 7
    listed = [line.split(":")[0] for line in again.stderr.splitlines() if line.startswith("  ")]
    assert listed == ["  state", "  sinks.rows", "  sinks.lines"]
    assert "sinks.rows: 3 files, " in again.stderr


def test_what_the_user_put_there_stays(folder: Path) -> None:
    mine = ["state/notes.txt", "out/rows/notes.txt", "out/rows/stream=k0/mine.parquet", "out/lines/part-0.jsonl", "out/x.py"]
    for name in mine:
        (folder / name).write_text("mine")
    wanted = files(folder)
    result = Pipeline.load("copy.yaml").run(fresh=True)
    assert result.table("rows").num_rows == 20
    assert files(folder) == wanted


def test_leftovers_are_all_that_a_run_adds_to_a_folder(tmp_path: Path, folder: Path) -> None:
    given = {"events.jsonl", "copy.yaml"}
    left = Pipeline.load("copy.yaml").leftovers()
    listed = {file.resolve().relative_to(folder).as_posix() for part in left for file in part.files}
    assert listed == files(folder) - given - {"state/lock"}
    assert sum(part.bytes for part in left) == sum((folder / name).stat().st_size for name in listed)


def test_a_first_run_may_be_fresh_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(tmp_path, 5)
    (tmp_path / "copy.yaml").write_text(COPY)
    monkeypatch.chdir(tmp_path)
    result = call("run", "copy.yaml", "--fresh")
    assert result.exit_code == 0 and "deletes" not in result.output


def test_folders_that_are_empty_then_are_gone(folder: Path) -> None:
    call("run", "copy.yaml", "--fresh", "--set", "rows.partition_by=[]")
    assert not list((folder / "out" / "rows").glob("stream=*"))


def test_in_a_terminal_it_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cli._in_terminal", lambda: True)
    before = files(folder)
    refused = call("run", "copy.yaml", "--fresh", answer="n\n")
    assert refused.exit_code == 2 and "nothing was deleted" in refused.output
    assert files(folder) == before
    assert call("run", "copy.yaml", "--fresh", answer="y\n").exit_code == 0
    assert call("run", "copy.yaml", "--fresh", "--yes").exit_code == 0


def test_a_run_that_goes_on_is_not_deleted(folder: Path) -> None:
    before = files(folder)
    with (folder / "state" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RecoveryError, match="in use by another run"):
            Pipeline.load("copy.yaml").run(fresh=True)
    assert files(folder) == before


def test_the_state_of_another_pipeline_is_not_deleted(folder: Path) -> None:
    before = files(folder)
    (folder / "copy.yaml").write_text(COPY.replace("name: copy", "name: other"))
    refused = call("run", "copy.yaml", "--fresh")
    assert refused.exit_code == 1 and "belongs to pipeline 'copy', this is 'other'" in refused.stderr
    assert files(folder) == before


def test_resume_and_fresh_exclude_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of the two"):
        Pipeline.load("copy.yaml").run(fresh=True, resume=True)
    assert call("run", "copy.yaml", "--fresh", "--resume").exit_code == 2


def test_without_fresh_the_error_says_so(folder: Path) -> None:
    assert "--fresh" in call("run", "copy.yaml").stderr
    for path in sorted((folder / "state").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert "start over with --fresh" in call("run", "copy.yaml").stderr  # of the sink, whose files no state knows
    assert call("run", "copy.yaml", "--fresh").exit_code == 0
