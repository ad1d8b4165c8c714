"""The workload of the engine's tests: running means of keyed JSON lines, and runs in a process that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.options import REQUIRED, option
from connectors.sinks.jsonl import JsonlSink
from connectors.sources.jsonl import JsonlSource
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

ROOT = Path(__file__).resolve().parents[2]
KEYS = 23
PATIENCE_S = 240.0
"""How long to wait for what should take a second or two, on a machine that is busy with other things."""


def value_batch(keys: list[str], start: int = 0) -> pa.RecordBatch:
    """Rows for ``RunningMean``: sequence and time count up from ``start``, values are a function of them."""
    schema = RunningMean.input_schema
    count = range(start, start + len(keys))
    times = pa.array(count, pa.int64()).cast(schema.field("event_time").type)
    values = pa.array([random.Random(i).random() for i in count])
    return pa.RecordBatch.from_arrays([pa.array(keys), pa.array(count, pa.int64()), times, values], schema=schema)


class Broken(RunningMean):
    """Has a bug."""

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Divide by zero."""
        return [batch.slice(0, 1 // 0)]


class Forgetful(RunningMean):
    """Breaks the contract: its rows lack a column of its schema."""

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Leave out the counts."""
        return [out.drop_columns(["n"]) for out in super().process(batch)]


@dataclass(frozen=True, kw_only=True, slots=True)
class NotingOptions(RunningMeanOptions):
    """Options of :class:`Noting`."""

    notes: Path = option(REQUIRED, "Folder of the notes.")
    breaks: bool = option(False, "Fail at the first batch.")


class Noting(RunningMean):
    """Leaves a file when it is closed."""

    Options = NotingOptions

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Fail if told to."""
        if self.options.breaks:
            raise ValueError("told to break")
        return super().process(batch)

    def close(self) -> None:
        """Leave the note."""
        (self.options.notes / self.context.name).touch()


class Deadly(RunningMean):
    """Takes its process down."""

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Kill the process."""
        os.kill(os.getpid(), signal.SIGKILL)
        return []


class BulkyLines(JsonlSource):
    """JSON lines that are treated like frames: read in the actor of the operator."""

    bulky = True


class SlowSink(JsonlSink):
    """JSON lines, a tenth of a second per batch."""

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Take one's time."""
        time.sleep(0.1)
        super().write(source, batch)


def write_lines(folder: Path, rows: int, files: int = 1) -> None:
    """Write ``rows`` JSON lines of 23 keys into each of ``files`` files."""
    folder.mkdir(parents=True)
    for number in range(files):
        draw = random.Random(number)
        lines = [
            json.dumps({"k": f"{number}.{draw.randrange(KEYS)}", "v": round(draw.random(), 3), "t": i}) for i in range(rows)
        ]
        (folder / f"part{number}.jsonl").write_text("\n".join(lines) + "\n")


def pipeline(lines: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A pipeline over ``lines`` with state and rows below ``run``; ``changes`` have dotted names, ``__`` for the dot.

    A run that is to be disturbed in the middle is slow (``operators__mean__slow_s``) until ``hurry(run)``: it cannot be
    through before, however slow this machine is with epochs, and need not be slow afterwards.
    """
    values: dict[str, Any] = {
        "name": "means",
        "state": str(run / "state"),
        "epoch_s": 0.03,
        "sources": {
            "events": {
                "type": "jsonl",
                "path": str(lines),
                "stream_id": "k",
                "event_time": "t",
                "event_time_unit": "s",
                "columns": {"v": "double"},
            }
        },
        "operators": {
            "mean": {
                "type": "pipelines.testing.running_mean:RunningMean",
                "input": "events",
                "max_batch": 256,
                "max_wait_ms": 0,
                "slow_s": 0.0,
                "slow_until": str(run / "hurry"),
            }
        },
        "sinks": {"rows": {"type": "jsonl", "input": "mean", "path": str(run / "rows")}},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = values
        for key in path:
            place = place[key]
        place[last] = value
    return values


def hurry(run: Path) -> None:
    """Let the operator below ``run`` be slow no more."""
    (run / "hurry").touch()


def committed(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Stream → its committed rows in order."""
    from connectors.sinks.read import read_committed

    table = read_committed(run / "rows")
    streams: dict[str, list[tuple[Any, ...]]] = {}
    for row in zip(*(table.column(name).to_pylist() for name in ("stream_id", "sequence", "n", "m")), strict=True):
        streams.setdefault(row[0], []).append(row[1:])
    return streams


def staged_files(run: Path) -> list[Path]:
    """What is left of staging."""
    return [path for path in (run / "rows").rglob("*.staged")]


def run_here(values: dict[str, Any], *, resume: bool = False, runner: str = "local", fault: str | None = None) -> Any:
    """Run in this process; return the report."""
    from pipelines.api import Pipeline
    from pipelines.runners import run

    return run(Pipeline.from_dict(values).spec, runner=runner, resume=resume, fault=fault)


def start_process(values: dict[str, Any], **options: Any) -> Any:
    """Start a run in a process of its own. It is forked from a clean server that has everything imported already."""
    context = multiprocessing.get_context("forkserver")
    # Arrow asks pandas about the first list that it takes; importing it takes longer than such a run.
    context.set_forkserver_preload(
        ["pipelines.runners.local", "pipelines.api", "pipelines.testing.running_mean", "connectors.sinks.jsonl", "pandas"]
    )
    process = context.Process(target=run_here, args=(values,), kwargs=options)
    process.start()
    return process


def run_process(values: dict[str, Any], **options: Any) -> int:
    """Run in a process of its own; return its exit code, ``-9`` after a fault."""
    process = start_process(values, **options)
    process.join(PATIENCE_S)
    code: int = process.exitcode
    return code
