"""Pipelines from Python: run, read the rows, stop and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from connectors.errors import ConfigError, RecoveryError
from pipelines import Pipeline
from pipelines.runners.report import Progress

ROOT = Path(__file__).resolve().parents[2]


def events(folder: Path, rows: int, pace: str | float = "max") -> Pipeline:
    """A pipeline that copies ``rows`` events of three streams into two sinks."""
    lines = (json.dumps({"k": f"k{n % 3}", "v": n, "t": n}) for n in range(rows))
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return Pipeline.from_dict(
        {
            "name": "copy",
            "state": "state",
            "epoch_s": 0.1,
            "sources": {
                "events": {
                    "type": "jsonl",
                    "path": "events.jsonl",
                    "stream_id": "k",
                    "event_time": "t",
                    "event_time_unit": "s",
                    "pace": pace,
                }
            },
            "sinks": {
                "rows": {"type": "parquet", "input": "events", "path": "rows"},
                "lines": {"type": "jsonl", "input": "events", "path": "lines"},
            },
        },
        base=folder,
    )


def test_a_run_gives_its_rows_and_figures(tmp_path: Path) -> None:
    result = events(tmp_path, 50).run()
    assert (result.report.status, result.report.rows_committed) == ("finished", {"events": 50, "rows": 50, "lines": 50})
    assert sorted(result.table("rows")["v"].to_pylist()) == list(range(50))
    assert [path.suffix for path in result.files("lines")] == [".jsonl"]
    assert result.metrics["events[0]"]["rows_in"] == 50


def test_a_sink_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    result = events(tmp_path, 5).run()
    with pytest.raises(ConfigError, match=r"^say which sink; this pipeline has: rows, lines$"):
        result.table()
    with pytest.raises(
        ConfigError, match=r"^there is no sink 'row' \(did you mean 'rows'\?\); this pipeline has: rows, lines$"
    ):
        result.table("row")


def test_a_run_that_is_stopped_goes_on_with_resume(tmp_path: Path) -> None:
    stop = threading.Event()
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if progress.rows_read:
            stop.set()

    stopped = events(tmp_path, 40, pace=0.05).run(on_progress=on_progress, stop=stop)
    assert stopped.report.status == "stopped"
    assert seen
    with pytest.raises(RecoveryError, match="Go on with --resume"):
        events(tmp_path, 40).run()


def test_resume_gives_the_rows_of_an_undisturbed_run(tmp_path: Path) -> None:
    stop = threading.Event()
    pipeline = events(tmp_path, 40, pace=0.05)
    pipeline.run(on_progress=lambda progress: stop.set() if progress.rows_read else None, stop=stop)
    slow = {**pipeline.spec.to_dict()}
    slow["sources"]["events"]["pace"] = "max"
    result = Pipeline.from_dict(slow).run(resume=True)
    assert result.report.status == "finished"
    assert sorted(result.table("rows")["v"].to_pylist()) == list(range(40))


def test_an_unknown_runner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^runner: 'rai' is not a runner \(did you mean 'ray'\?\); allowed: local, ray$"):
        events(tmp_path, 1).run(runner="rai")


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, pipelines\npipelines.Pipeline\n"
        "heavy = [name for name in ('torch', 'ray', 'cv2') if name in sys.modules]\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


@pytest.mark.heavy
def test_own_types_are_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from operators.null import NullOperator\n\nclass Mine(NullOperator):\n    '''Mine.'''\n")
    code = "import sys\nsys.argv = ['streambank', 'describe', 'mine:Mine']\nfrom pipelines.cli import main\nmain()"
    # -P: without the current folder on the path, as in an installed command.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.startswith("mine:Mine (operator)\n\nMine.\n"), done.stderr
