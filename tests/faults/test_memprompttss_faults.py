"""MemPromptTSS in whole runs: shards, cuts and kills change no state, no segment and no event of a bank."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine_workload import run_here, run_process
from memprompttss_streams import network, samples, together, wave

from connectors.sinks.read import read_committed

STREAMS = "abcde"
COLUMNS = {
    "prompt_id": "string", "kind": "string", "at": "timestamp[us, UTC]", "state": "int32", "aspect": "string",
    "target": "string",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensors")
    network(folder)
    rows = together(*(samples(name, wave(150 + 7 * n, n)) for n, name in enumerate(STREAMS)))
    values = pa.Table.from_batches([rows])
    pq.write_table(values, folder / "sensors.parquet")
    said = []
    for n, name in enumerate(STREAMS):
        for number, (second, kind, more) in enumerate(
            [
                (0.3, "label", {"at": 0.2, "state": n % 4}),
                (0.7, "label", {"at": 0.69, "state": 1, "aspect": "incorrect"}),
                (0.7, "boundary", {"at": 0.5}),
                (0.9, "label", {"at": 1.2, "state": 2}),
                (1.1, "retract", {"target": f"{name}0"}),
                (0.4, "tell", {"state": 1}),
            ]
        ):
            times = {key: f"1970-01-01T00:00:{more.pop(key):09.6f}Z" for key in ("at",) if key in more}
            row = {"stream_id": name, "event_time": f"1970-01-01T00:00:{second:09.6f}Z", "kind": kind, **times, **more}
            said.append((second, {**row, "prompt_id": f"{name}{number}"}))
    lines = [json.dumps(row) for _, row in sorted(said, key=lambda pair: pair[0])]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def pipeline(data: Path, run: Path, *, pace: str | float = "max", shards: int = 1, max_batch: int = 64) -> dict[str, Any]:
    return {
        "name": "machines",
        "state": str(run / "state"),
        "epoch_s": 0.2,
        "sources": {
            "sensors": {"type": "parquet", "path": str(data / "sensors.parquet"), "pace": pace},
            "prompts": {
                "type": "jsonl", "path": str(data / "prompts.jsonl"), "pace": pace, "columns": COLUMNS,
            },
        },
        "operators": {
            "segment": {
                "type": "memprompttss", "input": "sensors", "control": "prompts", "checkpoint": str(data / "tiny.safetensors"),
                "max_streams": 8, "history": 64, "align_s": 0.1, "shards": shards, "max_batch": max_batch, "bank_gib": 0.5,
            }
        },
        "sinks": {
            name: {"type": "parquet", "input": f"segment.{name}", "path": str(run / name)}
            for name in ("states", "segments", "bank", "alerts")
        },
    }  # fmt: skip


def tables(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of each output in the order of their streams; confidences rounded, since kernels differ by batches."""
    found = {}
    for name in ("states", "segments", "bank", "alerts"):
        rows = read_committed(run / name).to_pylist()
        for row in rows:
            for key, value in row.items():
                row[key] = round(value, 3) if isinstance(value, float) else tuple(value) if isinstance(value, list) else value
        order = sorted(range(len(rows)), key=lambda i: (rows[i]["stream_id"], i))
        found[name] = [tuple(rows[i].values()) for i in order]
    return found


@pytest.fixture(scope="module")
def wanted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    run = tmp_path_factory.mktemp("whole")
    run_here(pipeline(data, run))
    found = tables(run)
    assert len(found["states"]) > 1500 and len(found["segments"]) > 50
    assert len(found["bank"]) > 25 and len(found["alerts"]) > 10
    return found


@pytest.mark.parametrize(
    ("shards", "max_batch"), [(3, 64), pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(1, 997, marks=pytest.mark.slow)]
)
@pytest.mark.heavy
def test_shards_and_cuts_change_no_row(
    shards: int, max_batch: int, data: Path, wanted: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    run_here(pipeline(data, tmp_path, shards=shards, max_batch=max_batch))
    assert tables(tmp_path) == wanted


@pytest.mark.parametrize(
    "point",
    [
        "after_manifest:epoch=1",
        pytest.param("before_snapshot:epoch=1", marks=pytest.mark.slow),
        pytest.param("after_prepare:epoch=0", marks=pytest.mark.slow),
    ],
)
@pytest.mark.heavy
def test_a_kill_changes_no_row(point: str, data: Path, wanted: dict[str, list[tuple[Any, ...]]], tmp_path: Path) -> None:
    values = pipeline(data, tmp_path, pace=1.0)
    assert run_process(values, fault=point) == -signal.SIGKILL
    assert run_process(values, resume=True) == 0
    assert tables(tmp_path) == wanted
