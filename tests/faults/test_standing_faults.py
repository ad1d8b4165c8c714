"""Standing questions in runs that are killed: each rising edge is told once, by the same row as in a run that was not."""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from answering_faults_workload import OWN, pipeline
from engine_workload import run_here, run_process

from connectors.sinks.read import read_committed
from models.films import Film, make_film, write_mp4

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
    [("rekv", "rekv"), pytest.param("videostreaming", "videostreaming", marks=pytest.mark.slow)],
    indirect=["undisturbed"],
)
@pytest.mark.heavy
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
