"""Standing questions in runs that are killed: each rising edge is told once, by the same row as in a run that was not."""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from answering_faults_workload import OWN, pipeline
from engine_workload import run_here, run_process

from connectors.sinks.read import read_committed
from models.films import Film, make_film, write_mp4
from models.memprompttss.two_frequencies import two_frequencies

STREAMS = "ab"
SECONDS = 90


@cache
def film(stream: str) -> Film:
    return make_film(ord(stream), length=SECONDS, events=4)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    (folder / "films").mkdir()
    lines = []
    for stream in STREAMS:
        write_mp4(film(stream), folder / "films" / f"{stream}.mp4", scale=2)
        lines += [
            {"stream_id": stream, "t": 0.5, "question_id": f"{stream}{n}", "question": f"when did the {event.shape} appear?"}
            for n, event in enumerate(film(stream).events)
        ]
    (folder / "questions.jsonl").write_text("".join(json.dumps({**line, "standing": True}) + "\n" for line in lines))
    return folder


def watching(method: str, folder: Path, run: Path) -> dict[str, Any]:
    own = {"type": OWN[method]["type"], **({"sample_fps": 1} if method == "rekv" else {"batch_clips": 1})}
    values = pipeline(method, folder, run)
    kept = ("input", "control", "align_s", "batch_frames", "batch_questions", "max_batch", "max_streams", "device_gib")
    watch = values["operators"]["watch"]
    values["operators"]["watch"] = {
        **{name: watch[name] for name in kept},
        **own,
        "disk_path": str(run / "blocks"),
        "disk_gib": 0.01,
    }
    values["sources"]["questions"]["columns"] = {
        "question_id": "string", "question": "string", "at": "timestamp[us, UTC]", "max_tokens": "int32", "standing": "bool",
    }  # fmt: skip
    return values


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = read_committed(run / "rows").drop_columns(["lag_s"]).to_pylist()
    return sorted((row for row in rows if row["match"] is not None), key=lambda row: (row["stream_id"], row["sequence"]))


@pytest.fixture(scope="module")
def undisturbed(request: pytest.FixtureRequest, films: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = tmp_path_factory.mktemp("whole")
    run_here(watching(request.param, films, run))
    rows = rows_of(run)
    told = {(row["question_id"], row["sequence"]) for row in rows}
    assert len(told) == len(rows)
    events = [(f"{stream}{n}", event) for stream in STREAMS for n, event in enumerate(film(stream).events)]
    found = [any(id == asked and event.start < at < event.stop for asked, at in told) for id, event in events]
    assert sum(found) >= len(found) - 2  # not every event is seen
    return rows


@pytest.mark.parametrize(
    ("undisturbed", "method"),
    [("rekv", "rekv"), ("videostreaming", "videostreaming")],
    indirect=["undisturbed"],
)
@pytest.mark.slow
def test_a_kill_while_one_is_answered_changes_no_row(
    method: str, films: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "kill-answering").touch()
    values = watching(method, films, tmp_path)
    assert run_process(values) == -signal.SIGKILL
    run_here(values, resume=True)
    assert rows_of(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("undisturbed", "method"),
    [("rekv", "rekv"), ("videostreaming", "videostreaming")],
    indirect=["undisturbed"],
)
@pytest.mark.slow
@pytest.mark.timeout(3600)  # 21 processes, one after the other
def test_twenty_kills_change_no_row(method: str, films: Path, undisturbed: list[dict[str, Any]], tmp_path: Path) -> None:
    values = watching(method, films, tmp_path)
    values["sources"]["films"]["pace"] = 6.0  # 15 s, so that there are epochs enough
    points = [
        f"{point}:epoch={epoch}" for epoch in range(7) for point in ("before_snapshot", "after_prepare", "after_manifest")
    ]
    for number, point in enumerate(points[:20]):
        assert run_process(values, fault=point, resume=number > 0) == -signal.SIGKILL
    assert run_process(values, resume=True) == 0
    assert rows_of(tmp_path) == undisturbed


SAMPLES, RATE = 1500, 100


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two signals of two states each, a remark about each, and what is to be told of them."""
    folder = tmp_path_factory.mktemp("signals")
    lines = []
    for number, stream in enumerate(STREAMS):
        x_BLC, state_BL = two_frequencies(1, SAMPLES, torch.Generator().manual_seed(number + 3))
        values = "\n".join(f"{value:.4f}" for value in x_BLC[0, :, 0].tolist())
        (folder / f"{stream}.csv").write_text(f"pressure\n{values}\n")
        about = {"stream_id": stream, "t": 0.0}
        lines += [{**about, "prompt_id": f"{stream}{n}", "kind": "tell", "state": n} for n in range(2)]
        remark = {"kind": "label", "at_offset_s": 2.0, "state": int(state_BL[0, 2 * RATE])}
        lines.append({**about, "t": 3.0, "prompt_id": f"{stream} said", **remark})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def telling(folder: Path, run: Path) -> dict[str, Any]:
    columns = {"prompt_id": "string", "kind": "string", "at_offset_s": "double", "state": "int32"}
    sensors = {"type": "csv", "path": str(folder / "*.csv"), "event_time_unit": "rows", "row_rate": RATE, "channels": "all"}
    prompts = {"type": "jsonl", "path": str(folder / "prompts.jsonl"), "event_time": "t", "event_time_unit": "s"}
    segment = {
        "type": "memprompttss",
        "input": "sensors",
        "control": "prompts",
        "align_s": 1.0,
        "device": "cpu",
        "max_batch": 64,
    }
    return {
        "name": "telling",
        "state": str(run / "state"),
        "epoch_s": 0.3,
        "runner": "local",
        "sources": {"sensors": sensors, "prompts": {**prompts, "columns": columns}},
        "operators": {"segment": segment},
        "sinks": {"rows": {"type": "parquet", "input": "segment.alerts", "path": str(run / "rows")}},
    }


def alerts_of(run: Path) -> list[dict[str, Any]]:
    rows = read_committed(run / "rows").to_pylist()
    return sorted(rows, key=lambda row: (row["stream_id"], row["sequence"], row["prompt_id"]))


@pytest.mark.slow
def test_twenty_kills_change_no_alert(signals: Path, tmp_path: Path) -> None:
    run_here(telling(signals, tmp_path / "whole"))
    undisturbed = alerts_of(tmp_path / "whole")
    assert {row["prompt_id"] for row in undisturbed} == {"a0", "a1", "b0", "b1"} and len(undisturbed) >= 6
    values = telling(signals, tmp_path / "killed")
    values["sources"]["sensors"]["pace"] = 1.0
    points = [
        f"{point}:epoch={epoch}" for epoch in range(7) for point in ("before_snapshot", "after_prepare", "after_manifest")
    ]
    for number, point in enumerate(points[:20]):
        assert run_process(values, fault=point, resume=number > 0) == -signal.SIGKILL
    assert run_process(values, resume=True) == 0
    assert alerts_of(tmp_path / "killed") == undisturbed
