"""The local runner dies at every named point and goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from engine_workload import (
    PATIENCE_S,
    committed,
    hurry,
    pipeline,
    run_here,
    run_process,
    staged_files,
    start_process,
    write_lines,
)

from connectors import faults
from connectors.errors import ConfigError

ROWS = 12_000
SLOW = {"operators__mean__slow_s": 0.05}
"""Some two seconds of work, and many epochs."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "lines"
    write_lines(folder, ROWS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    run = tmp_path_factory.mktemp("undisturbed")
    assert run_process(pipeline(lines, run)) == 0
    rows = committed(run)
    assert sum(map(len, rows.values())) == ROWS
    return rows


@pytest.mark.parametrize("point", faults.POINTS)
def test_a_kill_at_any_point_loses_nothing_and_doubles_nothing(
    point: str, lines: Path, undisturbed: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path, **SLOW)
    assert run_process(values, fault=f"{point}:epoch=2") == -signal.SIGKILL
    before = committed(tmp_path)
    assert 0 < sum(map(len, before.values())) < ROWS
    hurry(tmp_path)
    assert run_process(values, resume=True) == 0
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(
    lines: Path, undisturbed: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path, **SLOW)
    for epoch, point in [(0, "before_manifest"), (0, "after_manifest"), (1, "after_prepare"), (2, "between_renames")]:
        assert run_process(values, resume=True, fault=f"{point}:epoch={epoch}") == -signal.SIGKILL
    hurry(tmp_path)
    assert run_process(values, resume=True) == 0
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


def test_a_kill_before_the_first_commit_leaves_nothing_visible_and_can_be_resumed(
    lines: Path, undisturbed: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path)
    assert run_process(values, fault="after_prepare:epoch=0") == -signal.SIGKILL
    assert list((tmp_path / "rows").glob("part-*")) == []
    assert run_process(values, resume=True) == 0
    assert committed(tmp_path) == undisturbed


def test_a_kill_between_the_last_manifest_and_its_commit_is_finished_by_resume(
    lines: Path, undisturbed: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path, epoch_s=60)  # one epoch: the last
    assert run_process(values, fault="after_manifest:epoch=0") == -signal.SIGKILL
    assert list((tmp_path / "rows").glob("part-*")) == []
    assert run_process(values, resume=True) == 0
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_commit_and_it_can_be_resumed(
    number: int, lines: Path, undisturbed: dict[str, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path, **SLOW)
    process = start_process(values)
    deadline = time.monotonic() + PATIENCE_S
    while not list((tmp_path / "rows").glob("part-*")) and time.monotonic() < deadline:
        process.join(0.01)
    os.kill(process.pid, number)
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS
    assert staged_files(tmp_path) == []
    hurry(tmp_path)
    assert run_process(values, resume=True) == 0
    assert committed(tmp_path) == undisturbed


def test_the_environment_arms_a_fault_point(lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setenv(faults.VARIABLE, "after_manifest:epoch=0")
    monkeypatch.setattr(faults.os, "kill", lambda process, number: killed.append(number))
    try:
        run_here(pipeline(lines, tmp_path))
    finally:
        faults.arm(None)
    assert killed == [signal.SIGKILL]


def test_an_unknown_fault_point_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'after_prepar' is no fault point \\(did you mean 'after_prepare'\\?\\)"):
        faults.arm("after_prepar:epoch=1")
    with pytest.raises(ConfigError, match="write <point>:epoch=<n>"):
        faults.arm("after_prepare:epoche=1")
