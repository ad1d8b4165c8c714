"""The command line: what it prints, its exit status, and that it starts fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import cli
from pipelines.commands.train import methods
from pipelines.registry import entries

ROOT = Path(__file__).resolve().parents[2]

COPY = """\
name: copy
state: state
sources:
  events: {type: jsonl, path: events.jsonl, stream_id: k, event_time: t, event_time_unit: s}
sinks:
  rows: {type: parquet, input: events, path: rows, partition_by: []}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with 100 events and a pipeline that copies them to Parquet."""
    lines = [json.dumps({"k": f"k{n % 3}", "v": n / 8, "t": n}) for n in range(100)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "copy.yaml").write_text(COPY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def python(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe)


# run


def test_run_writes_the_rows_and_says_where(folder: Path) -> None:
    result = call("run", "copy.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("copy: finished after ")
    assert f"  rows             100 rows  {folder}/rows\n" in result.stdout
    assert result.stderr == ""
    assert pq.read_table(folder / "rows")["v"].to_pylist() == [n / 8 for n in range(100)]


def test_quiet_says_nothing(folder: Path) -> None:
    result = call("run", "copy.yaml", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_set_changes_a_key(folder: Path) -> None:
    assert call("run", "copy.yaml", "--set", "rows.path=elsewhere", "--set", "epoch_s=1").exit_code == 0
    assert pq.read_table(folder / "elsewhere").num_rows == 100


def test_a_second_run_without_resume_fails_and_with_it_does_nothing(folder: Path) -> None:
    assert call("run", "copy.yaml").exit_code == 0
    again = call("run", "copy.yaml")
    assert again.exit_code == 1
    assert again.stderr.startswith(f"error: state folder {folder}/state holds a run of pipeline 'copy' that is finished")
    resumed = call("run", "copy.yaml", "--resume")
    assert resumed.exit_code == 0
    assert resumed.stdout == "copy: already finished at epoch 0; nothing has come since\n"
    assert pq.read_table(folder / "rows").num_rows == 100


def test_a_finished_run_of_a_folder_reads_what_has_come_since(folder: Path) -> None:
    (folder / "days").mkdir()
    line = json.dumps({"k": "a", "v": 1.0, "t": 1}) + "\n"
    (folder / "days" / "monday.jsonl").write_text(line)
    days = ("--set", "events.path=days")
    assert call("run", "copy.yaml", *days).exit_code == 0
    (folder / "days" / "tuesday.jsonl").write_text(line)
    again = call("run", "copy.yaml", "--resume", *days)
    assert (again.exit_code, again.stderr) == (0, "")
    assert pq.read_table(folder / "rows").num_rows == 2
    for path in (folder / "days").iterdir():
        path.unlink()
    moved = call("run", "copy.yaml", "--resume", *days)
    assert (moved.exit_code, moved.stdout) == (0, "copy: already finished at epoch 1; nothing has come since\n")
    (folder / "days").rmdir()
    lost = call("run", "copy.yaml", "--resume", *days)
    assert lost.exit_code == 2
    assert f"no such file or folder: '{folder}/days'" in lost.stderr


def test_a_bad_file_has_status_2_and_no_stack_trace(folder: Path) -> None:
    (folder / "copy.yaml").write_text(COPY.replace("state: state", "stat: state").replace("jsonl,", "json,"))
    result = call("run", "copy.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error:",
        "  copy.yaml  state: is missing; Folder of epochs and snapshots; on a cluster one that all machines share. "
        "Allowed: a path",
        "  copy.yaml:2:1  stat: unknown key 'stat' (did you mean 'state'?); allowed: epoch_s, max_attempts, name, operators, "
        "placement, resources_wait_s, runner, seed, sinks, sources, state",
        "  copy.yaml:4:12  sources.events.type: unknown source type 'json' (did you mean 'jsonl'?); "
        f"allowed: {', '.join(entry.name for entry in entries('source'))}, or module:Class of your own",
    ]


def test_everything_that_is_missing_is_told_before_the_run_begins(folder: Path) -> None:
    (folder / "blocked").touch()
    result = call("run", "copy.yaml", "--set", "events.path=event.jsonl", "--set", "rows.path=blocked/rows")
    assert result.exit_code == 2
    assert "copy.yaml  sources.events: no such file or folder: " in result.stderr
    assert "copy.yaml  sinks.rows.path: " in result.stderr
    assert not (folder / "state").exists()


def test_debug_shows_the_stack_trace(folder: Path) -> None:
    result = call("run", "none.yaml", "--debug")
    assert type(result.exception).__name__ == "ConfigError"
    assert call("run", "?").stderr.startswith("error: no such pipeline file: ?; ready pipelines: ")


def test_logs_are_json_where_asked_for(folder: Path) -> None:
    result = call("run", "copy.yaml", "--log-level", "info", "--log-format", "json")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert lines
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


@pytest.mark.parametrize(
    ("runner", "number"),
    [
        pytest.param("local", signal.SIGINT, marks=pytest.mark.slow),
        ("local", signal.SIGTERM),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.ray),  # `ray.init` puts a handler of its own in place
    ],
)
@pytest.mark.heavy
def test_a_signal_stops_with_status_0_and_resume_goes_on(folder: Path, runner: str, number: signal.Signals) -> None:
    arguments = ["-m", "pipelines.cli", "run", "copy.yaml", "--runner", runner, "--log-level", "info"]
    process = python([*arguments, "--set", "events.pace=0.01", "--set", "epoch_s=0.2"], folder)  # minutes
    assert process.stderr is not None
    for line in process.stderr:  # the run has started once it logs its attempt
        if "attempt=1" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.startswith("copy: stopped after ")
    assert out.endswith("go on with --resume\n")
    assert call("run", "copy.yaml", "--resume", "--set", "events.pace=max").exit_code == 0
    assert sorted(pq.read_table(folder / "rows")["v"].to_pylist()) == [n / 8 for n in range(100)]


# check, list, describe, inspect


def test_check_says_what_it_found_and_touches_nothing(folder: Path) -> None:
    result = call("check", "copy.yaml")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "ok      sources.events: jsonl, 1 split (all), rows of [stream_id, sequence, event_time, v, error]",
        f"ok      sinks.rows: parquet into {folder}/rows",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["copy.yaml", "events.jsonl"]


def test_check_prints_a_resolved_pipeline_that_runs(folder: Path) -> None:
    result = call("check", "copy.yaml", "--print", "--set", "epoch_s=3")
    (folder / "resolved.yaml").write_text(result.stdout)
    assert "epoch_s: 3.0\n" in result.stdout
    assert call("run", "resolved.yaml").exit_code == 0
    assert pq.read_table(folder / "rows").num_rows == 100


def test_check_of_a_bad_reference_has_status_2(folder: Path) -> None:
    result = call("check", "copy.yaml", "--set", "events.path=none.jsonl")
    assert result.exit_code == 2
    assert result.stderr.startswith("error   sources.events: no such file or folder: ")


def test_list_and_describe(folder: Path) -> None:
    assert "\noperators\n  mamba " in call("list").stdout
    assert call("describe", "jsonl").stdout.startswith("jsonl (source): one JSON object per line\n")
    assert call("describe", "pipeline").stdout.startswith("keys of a pipeline file\n  name: text; required\n")
    assert call("describe", "jsnl").exit_code == 2


def test_inspect_shows_epoch_positions_and_rows(folder: Path) -> None:
    assert call("run", "copy.yaml").exit_code == 0
    text = call("inspect", "state").stdout
    assert text.startswith("pipeline    copy, finished\nepoch       0, committed 20")
    assert "source      events: 100 rows, 1 of 1 splits at their end\n" in text
    assert "sink        rows: 100 rows; in this epoch 100 rows, " in text
    found = json.loads(call("inspect", "state", "--json").stdout)
    assert (found["epoch"], found["finished"], found["running"]) == (0, True, False)
    assert found["sinks"]["rows"]["epoch_files"] == ["part-000000-000-0000.parquet"]


def test_inspect_of_no_state_folder(folder: Path) -> None:
    result = call("inspect", ".")
    assert (result.exit_code, result.stderr) == (1, "error: . holds no readable manifest; it is not a state folder\n")
    assert call("inspect", "none").stderr == "error: none is no folder; give the 'state' of a pipeline file\n"


def test_view_writes_a_report_and_says_where(folder: Path) -> None:
    assert call("run", "copy.yaml").exit_code == 0
    result = call("view", "rows")
    assert result.exit_code == 0
    assert Path(result.stdout.strip()).read_text().lstrip().startswith("<!doctype html>")
    empty = call("view", "state")
    assert (empty.exit_code, empty.stderr.startswith("error: state holds no committed rows")) == (1, True)


# train


def test_train_lists_methods_and_their_options() -> None:
    assert f"Methods: {', '.join(methods())}" in call("train", "--help").stdout
    text = call("train", "mamba", "--help").stdout
    assert "  recipe: one of 'shapes'" in text
    assert "  annotations: " in text
    text = call("train", "reloop2", "--help").stdout
    assert "Usage: streambank train reloop2 (--recipe NAME | --data FILE)" in text
    assert "  categorical: " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mambo"], f"error: no method 'mambo' can be trained (did you mean 'mamba'?); allowed: {', '.join(methods())}\n"),
        (["mamba", "shapes"], "error: train: 'shapes' is no option; write --key value\n"),
        (["mamba", "--recipe"], "error: train: --recipe has no value; write --recipe value\n"),
        (["mamba", "--seed=x"], "error: train mamba: --seed: must be a whole number, at least 0, got 'x'\n"),
        (["mamba", "--seed", "1", "--seed", "2"], "error: train: --seed is given twice; remove one\n"),
    ],
)
def test_mistakes_in_the_arguments_of_a_training(arguments: list[str], message: str) -> None:
    result = call("train", *arguments)
    assert (result.exit_code, result.stderr) == (2, message)


def test_all_wrong_options_of_a_training_are_told_at_once() -> None:
    result = call("train", "mamba", "--annotatoins", "x.json", "--iterations", "0", "--recipe", "shape")
    lines = result.stderr.splitlines()
    assert result.exit_code == 2
    assert any("--annotatoins: unknown option 'annotatoins' (did you mean 'annotations'?)" in line for line in lines)
    assert any("--iterations: must be at least 1" in line for line in lines)
    assert any("--recipe: must be one of 'shapes'" in line for line in lines)


def test_a_training_that_a_signal_stopped_says_where_and_goes_on(tmp_path: Path) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    rows = pa.table({"item": [f"item {i % 7}" for i in range(60)], "click": [i % 2 for i in range(60)]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    arguments = ["--data", str(tmp_path / "rows.parquet"), "--categorical", "[item]", "--out", str(tmp_path / "out")]
    arguments += ["--epochs", "2", "--batch", "20"]
    handle = register_optimizer_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        stopped = call("train", "reloop2", *arguments)
    finally:
        handle.remove()
    assert (stopped.exit_code, stopped.stdout) == (0, "reloop2: stopped at fit 1/6; go on with --resume\n")
    refused = call("train", "reloop2", *arguments)
    assert refused.exit_code == 2
    assert "a training was stopped here at fit, update 1" in refused.stderr
    differing = call("train", "reloop2", "--resume", *arguments, "--patience", "5")
    assert "is of another training: patience was 2, is 5" in differing.stderr
    done = call("train", "reloop2", *arguments, "--resume")
    assert done.exit_code == 0 and "validation_logloss" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "previews", "training.json"]


# Start-up


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], ["describe", "pipeline"]])
def test_light_commands_import_neither_torch_nor_ray(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pipelines.cli import cli\n"
        f"cli({arguments!r}, standalone_mode=False)\n"
        "heavy = [name for name in ('torch', 'ray', 'cv2', 'decord', 'kafka') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    process = python(["-c", code], tmp_path)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
