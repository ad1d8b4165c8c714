"""Operators that answer, killed while encoding, answering and at points of an epoch: resumed, answers are the same bits."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answering_faults_workload import OWN, QUESTIONS, pipeline, write_films
from engine_workload import run_here, run_process
from qwen_models import model_folder

from connectors.sinks.read import read_committed

Make = Callable[..., dict[str, Any]]

VALUES: dict[str, tuple[Any, ...]] = {
    "what": ("encoding", "answering"),
    "point": ("before_snapshot:epoch=1", "after_prepare:epoch=0", "after_manifest:epoch=1"),
    "answerers": (1,),
    "shards": (3,),
}


def of_both(name: str, *normal: tuple[str, Any]) -> pytest.MarkDecorator:
    """Parametrize by method and ``name``: what is not ``normal`` is of the slow suite."""
    cases = [(method, what) for what in VALUES[name] for method in OWN]
    marked = [pytest.param(*case, marks=() if case in normal else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("make", name), marked, indirect=["make"])


@pytest.fixture(scope="module")
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a pipeline of each method over the same films, for a folder of a run."""
    folder = tmp_path_factory.mktemp("films")
    write_films(folder)
    if request.param == "rekv_qwen_vl":
        model_folder(folder / "qwen", "qwen2_5_vl")
    return partial(pipeline, request.param, folder)


@pytest.fixture(scope="module")
def undisturbed(make: Make, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = tmp_path_factory.mktemp("whole")
    run_here(make(run))
    rows = answers(run)
    assert len(rows) == 2 * len(QUESTIONS)
    # VideoStreaming: the question about the second second comes when that clip has ended, and no other had by then.
    assert {row["status"] for row in rows} <= {"ok", "unsure", "no_video"}
    assert [row["status"] for row in rows].count("no_video") in (0, 2)
    return rows


def answers(run: Path) -> list[dict[str, Any]]:
    rows = read_committed(run / "rows").drop_columns(["lag_s"]).to_pylist()
    return sorted(rows, key=lambda row: row["question_id"])


@of_both("what", ("rekv", "answering"), ("videostreaming", "encoding"))
def test_a_kill_while_working_changes_no_bit_of_any_answer(
    what: str, make: Make, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    (tmp_path / f"kill-{what}").touch()
    assert run_process(make(tmp_path)) == -signal.SIGKILL
    run_here(make(tmp_path), resume=True)
    assert answers(tmp_path) == undisturbed


@of_both("point")  # the suite has them with other operators, and kills of these while they work
def test_a_kill_at_the_points_of_an_epoch_changes_no_answer(
    point: str, make: Make, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    assert run_process(make(tmp_path), fault=point) == -signal.SIGKILL
    run_here(make(tmp_path), resume=True)
    assert answers(tmp_path) == undisturbed


@of_both("answerers")  # the suite has tests/operators/test_answers.py
def test_answers_of_other_processes_are_committed_once_whatever_is_killed(
    answerers: int, make: Make, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    (tmp_path / "kill-answering").touch()
    values = make(tmp_path, answerers=answerers)
    assert run_process(values) == -signal.SIGKILL
    run_here(values, resume=True)
    assert answers(tmp_path) == undisturbed


@of_both("shards")
def test_more_shards_give_the_same_answers(shards: int, make: Make, tmp_path: Path, undisturbed: list[dict[str, Any]]) -> None:
    run_here(make(tmp_path, shards=shards))
    assert answers(tmp_path) == undisturbed
