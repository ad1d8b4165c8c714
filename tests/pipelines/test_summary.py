"""The last lines of a run: what became of the rows, what was not read, and the exit status of --strict."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipelines import Pipeline
from pipelines.cli import cli
from pipelines.commands.summary import facts, problem_text, report_text
from pipelines.runners.report import RunReport
from pipelines.runtime.tally import Tally


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def report(**changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "status": "finished", "runner": "local", "seconds": 2.5, "startup_s": 0.5, "attempts": 1, "epoch": 0, "epochs": 1,
        "rows_committed": {}, "tasks": (), **changes,
    }  # fmt: skip
    return RunReport(**values)


def test_the_report_tells_rows_folders_and_how_to_go_on() -> None:
    ended = report(
        status="stopped",
        runner="ray",
        seconds=75.0,
        startup_s=5.25,
        attempts=2,
        epochs=8,
        rows_committed={"clips": 1234, "rows": 1234},
    )
    assert report_text("cameras", ended, {"rows": "/out/rows"}).splitlines() == [
        "cameras: stopped after 1:15 (start-up 5.2 s) on ray, 8 epochs, 2 attempts",
        "  clips         1,234 rows",
        "  rows          1,234 rows  /out/rows",
        "  go on with --resume",
    ]


def test_statuses_reasons_and_everything_that_was_lost_are_told_per_node() -> None:
    evicted = "the memory of this stream was evicted to make room; raise max_streams to avoid that"
    tallies = {
        "clips": Tally(
            rows=250,
            statuses=Counter({"with an error": 1}),
            not_ok=1,
            reasons={"with an error": "c.mp4: the file ends 80 bytes early"},
            dropped=Counter({"queue full": 7}),
            unread={"c.mp4": "the file ends 80 bytes early"},
            unread_files=1,
        ),
        "detect": Tally(
            rows=250,
            statuses=Counter(reset=39, ok=211),
            not_ok=39,
            reasons={"reset": evicted, "evictions": "streams lost their memory"},
            late_rows=4,
            losses=Counter(evictions=12),
        ),
    }
    ended = report(rows_committed={"clips": 250, "rows": 250}, tallies=tallies)
    assert report_text("cameras", ended, {"rows": "/out"}).splitlines()[1:] == [
        "  clips            250 rows: 249 ok, 1 with an error (c.mp4: the file ends 80 bytes early)",
        "          7 rows dropped: queue full",
        "          1 file was not read, or not to the end:",
        "            c.mp4: the file ends 80 bytes early",
        f"  detect           250 rows: 211 ok, 39 reset ({evicted})",
        "          4 late rows: they came behind the watermark of their input; a longer align_s gives them their place",
        "          12 evictions: streams lost their memory",
        "  rows             250 rows  /out",
    ]
    assert not ended.all_ok
    assert problem_text(ended) == ("clips: 1 not ok, 7 dropped, 1 unread files; detect: 39 not ok, 4 late rows, 12 losses")
    again = report(status="already finished", tallies=tallies)
    assert report_text("cameras", again, {}).splitlines()[0] == "cameras: already finished at epoch 0; nothing has come since"
    assert "39 reset" in report_text("cameras", again, {})


def test_each_output_has_a_line_and_the_operator_one_where_there_is_something_to_tell() -> None:
    outputs = {"states": Tally(rows=90, statuses=Counter(ok=80, late=10), not_ok=10), "segments": Tally(rows=3)}
    segment = Tally(outputs=outputs, losses=Counter(evictions=2), reasons={"evictions": "lost memory"})
    ended = report(tallies={"segment": segment})
    assert report_text("p", ended, {}).splitlines()[1:3] == [
        "  segment",
        "                    2 evictions: lost memory",
    ]
    assert report_text("p", report(tallies={"segment": Tally(outputs=outputs)}), {}).splitlines()[1:] == [
        "  segment.states              90 rows: 80 ok, 10 late",
        "  segment.segments             3 rows",
    ]
    assert problem_text(ended) == "segment: 2 losses; segment.states: 10 not ok"
    assert facts([segment]) == {"not_ok": 10, "losses": 2}
    assert Tally.from_json(json.loads(json.dumps(segment.to_json()))) == segment
    twice = Tally.sum([segment, segment])
    assert twice.outputs["states"].rows == 180
    assert segment.outputs["states"].rows == 90
    assert segment.after(segment).outputs["segments"].rows == 6


def test_few_of_many_files_are_named() -> None:
    unread = {f"{n}.png": "the file is empty" for n in range(50)}
    tally = Tally(rows=60, unread=unread, unread_files=60)
    lines = report_text("p", report(tallies={"images": tally}), {}).splitlines()
    assert lines[2].strip() == "60 files were not read, or not to the end:"
    assert [line.strip() for line in lines[3:]] == [
        *(f"{n}.png: the file is empty" for n in range(5)),
        "and 55 more; inspect names up to 50",
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of a camera, one of them damaged, and a pipeline over it."""
    (tmp_path / "cam").mkdir()
    for n in range(4):
        cv2.imwrite(str(tmp_path / "cam" / f"i{n}.png"), np.full((4, 4, 3), n, np.uint8))
    (tmp_path / "cam" / "i2.png").write_bytes(b"")
    (tmp_path / "p.yaml").write_text(
        "name: p\nstate: state\nsources:\n  frames: {type: images, path: cam}\n"
        "operators:\n  sizes: {type: 'null', input: frames}\n"
        "sinks:\n  rows: {type: parquet, input: sizes, path: rows}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_summary_of_a_run_is_that_of_all_runs_into_the_state_folder(folder: Path) -> None:
    first = call("run", "p.yaml")
    assert first.exit_code == 0
    assert first.stdout.splitlines()[1:] == [
        "  frames             4 rows: 3 ok, 1 with an error (i2.png: the file is empty)",
        "          1 file was not read, or not to the end:",
        "            cam/i2.png: the file is empty",
        "  sizes              4 rows: 3 ok, 1 rejected_corrupt (i2.png: the file is empty)",
        f"  rows               4 rows  {folder}/rows",
    ]
    cv2.imwrite(str(folder / "cam" / "i7.png"), np.zeros((4, 4, 3), np.uint8))
    seen = call("inspect", "state").stdout.splitlines()
    assert "              4 rows" not in seen
    assert "                cam/i2.png: the file is empty" in seen
    assert "              3 ok, 1 rejected_corrupt (i2.png: the file is empty)" in seen
    again = call("run", "p.yaml", "--resume", "--strict")
    assert again.exit_code == 3
    assert "  sizes              5 rows: 4 ok, 1 rejected_corrupt (i2.png: the file is empty)\n" in again.stdout
    assert again.stderr == "not ok: frames: 1 not ok, 1 unread files; sizes: 1 not ok\n"
    third = call("run", "p.yaml", "--resume", "--strict", "--quiet")
    assert (third.exit_code, third.stdout) == (3, "")
    assert third.stderr == again.stderr


def test_rows_that_json_could_not_hold_whole_are_told_of_the_sink(folder: Path) -> None:
    times = pa.array([0, 1 << 60, -(1 << 60), 1], pa.timestamp("us"))  # of the years 1970 and 36,000 before and after it
    pq.write_table(pa.table({"k": ["a"] * 4, "t": range(4), "due": times}), folder / "in.parquet")
    (folder / "p.yaml").write_text(
        "name: p\nstate: state\nsources:\n  events: {type: parquet, path: in.parquet, stream_id: k, event_time: t, "
        "event_time_unit: s}\nsinks:\n  rows: {type: jsonl, input: events, path: rows}\n"
    )
    result = call("run", "p.yaml", "--strict")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[2:] == [
        f"  rows               4 rows  {folder}/rows",
        "          2 rows hold null for a value that JSON cannot hold",
    ]
    assert result.stderr.endswith("\nnot ok: rows: 2 incomplete\n")
    assert "2 rows hold null for a value that JSON cannot hold" in call("inspect", "state").stdout
    again = call("run", "p.yaml", "--resume", "--strict")
    assert (again.exit_code, again.stderr) == (3, "not ok: rows: 2 incomplete\n")


def test_strict_is_satisfied_where_everything_is_ok(folder: Path) -> None:
    (folder / "cam" / "i2.png").unlink()
    result = call("run", "p.yaml", "--strict")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  sizes              3 rows: 3 ok\n" in result.stdout


def test_progress_and_report_hold_the_same_facts(folder: Path) -> None:
    readings: list[Any] = []
    result = Pipeline.load("p.yaml").run(on_progress=readings.append)
    assert readings[-1].tallies == result.report.tallies
    assert json.loads(json.dumps(result.report.tallies["sizes"].to_json()))["statuses"] == {"ok": 3, "rejected_corrupt": 1}
