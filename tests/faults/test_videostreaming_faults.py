"""VideoStreaming killed while encoding, answering and at a point of an epoch: resumed, its answers are the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from engine_workload import run_here, run_process
from rekv_faults_workload import QUESTIONS, write_films
from videostreaming_faults_workload import pipeline

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
    # The question about the second second comes when that clip has ended, and no other had by then.
    assert [row["status"] for row in rows].count("no_video") == 2 and {row["status"] for row in rows} == {"ok", "no_video"}
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


def test_a_kill_between_snapshot_and_manifest_changes_no_answer(
    folder: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    assert run_process(pipeline(folder, tmp_path), fault="after_prepare:epoch=0") == -signal.SIGKILL
    run_here(pipeline(folder, tmp_path), resume=True)
    assert answers(tmp_path) == undisturbed


def test_three_shards_give_the_same_rows(folder: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]) -> None:
    run_here(pipeline(folder, tmp_path, shards=3))
    assert answers(tmp_path) == undisturbed
