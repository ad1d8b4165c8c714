"""A pipeline dies between question and answer, and answers exactly once when it goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from asking_workload import counting, running
from engine_workload import PATIENCE_S, hurry, run_process, start_process

from connectors import faults
from connectors.sinks.read import read_committed
from connectors.sources.requests import put_requests
from pipelines.api import Pipeline


def put(folder: Path, *ids: str) -> None:
    put_requests(folder / "questions", [{"stream_id": "a", "question_id": id, "question": f"how many, {id}?"} for id in ids])


def committed(folder: Path) -> list[tuple[Any, ...]]:
    table = read_committed(folder / "answers")
    return [(row["question_id"], row["sequence"], row["status"]) for row in table.to_pylist()]


def go_on(values: dict[str, Any]) -> str:
    """Resume, ask once more, stop; return the id of that question."""
    with running(values, resume=True):
        answer = Pipeline.from_dict(values).ask("and now?", stream="a")
        assert answer.ok
    return answer.id


@pytest.mark.parametrize("point", faults.POINTS)
def test_a_kill_at_any_point_leaves_every_question_answered_once(point: str, tmp_path: Path) -> None:
    values = counting(tmp_path)
    put(tmp_path, "q0", "q1")
    assert run_process(values, fault=f"{point}:epoch=0") == -signal.SIGKILL
    put(tmp_path, "q2")
    last = go_on(values)
    rows = committed(tmp_path)
    assert [row[:2] for row in rows] == [("q0", 0), ("q1", 1), ("q2", 2), (last, 3)]
    assert {row[2] for row in rows[2:]} == {"ok"}


def test_a_kill_while_the_operator_thinks_about_the_answer_loses_nothing(tmp_path: Path) -> None:
    values = counting(tmp_path, slow_s=3600.0, slow_until=str(tmp_path / "hurry"))
    process = start_process(values)
    taken = tmp_path / "questions" / "taken"
    deadline = time.monotonic() + PATIENCE_S
    while not (tmp_path / "state" / "epochs" / "000001.json").exists() and time.monotonic() < deadline:
        process.join(0.01)
    put(tmp_path, "q0")
    while not list(taken.glob("*.jsonl")) and time.monotonic() < deadline:
        process.join(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE_S)
    assert not list((tmp_path / "answers").glob("part-*"))
    hurry(tmp_path)
    last = go_on(values)
    assert committed(tmp_path) == [("q0", 0, "ok"), (last, 1, "ok")]
