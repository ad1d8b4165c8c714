"""ReKV killed while encoding, while answering and at the points of an epoch: resumed, its answers are the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from engine_workload import run_here, run_process
from rekv_faults_workload import QUESTIONS, pipeline, write_films

from connectors.sinks.read import read_committed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_films(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = tmp_path_factory.mktemp("whole")
    run_here(pipeline(folder, run))
    rows = answers(run)
    assert len(rows) == 2 * len(QUESTIONS)
    assert {row["status"] for row in rows} <= {"ok", "unsure"}
    return rows


def answers(run: Path) -> list[dict[str, Any]]:
    rows = read_committed(run / "rows").drop_columns(["lag_s"]).to_pylist()
    return sorted(rows, key=lambda row: row["question_id"])


@pytest.mark.parametrize("what", ["encoding", "answering"])
def test_a_kill_while_working_changes_no_bit_of_any_answer(
    what: str, folder: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    (tmp_path / f"kill-{what}").touch()
    assert run_process(pipeline(folder, tmp_path)) == -signal.SIGKILL
    run_here(pipeline(folder, tmp_path), resume=True)
    assert answers(tmp_path) == undisturbed


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("before_snapshot:epoch=1", marks=pytest.mark.slow),
        pytest.param("after_prepare:epoch=0", marks=pytest.mark.slow),
        "after_manifest:epoch=1",
    ],
)
def test_a_kill_at_the_points_of_an_epoch_changes_no_answer(
    point: str, folder: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    assert run_process(pipeline(folder, tmp_path), fault=point) == -signal.SIGKILL
    run_here(pipeline(folder, tmp_path), resume=True)
    assert answers(tmp_path) == undisturbed


def test_answers_of_other_processes_are_committed_once_whatever_is_killed(
    folder: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    (tmp_path / "kill-answering").touch()
    values = pipeline(folder, tmp_path, answerers=1)
    assert run_process(values) == -signal.SIGKILL
    run_here(values, resume=True)
    assert answers(tmp_path) == undisturbed
