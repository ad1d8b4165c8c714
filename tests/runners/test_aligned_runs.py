"""Whole pipelines with ``align_s``: the same rows however they are cut, killed, resumed and wherever they run."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from aligned_workload import aligned_pipeline, committed_digests, expected_digests, write_inputs
from engine_workload import hurry, run_here, run_process
from ray_actors import Actors

from pipelines.api import Pipeline
from pipelines.runners import Progress, run
from pipelines.runtime import aligner
from pipelines.runtime.manifest import read_manifests

ROWS = 6000
TENTHS = 10
"""The span of the pipeline, one second."""

Times = dict[str, list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aligned") / "inputs"


@pytest.fixture(scope="module")
def times(folder: Path) -> Times:
    return write_inputs(folder, ROWS)


def test_rows_are_handed_over_by_event_time(folder: Path, times: Times, tmp_path: Path) -> None:
    report = run_here(aligned_pipeline(folder, tmp_path))
    assert committed_digests(tmp_path) == expected_digests(times, TENTHS)
    [stats] = [stats for stats in report.tasks if stats.task.node == "ledger"]
    assert (stats.rows_in, stats.held_rows, stats.late_rows) == (ROWS, 0, 0)
    assert stats.control_rows == sum(len(rows) for name, rows in times.items() if name.startswith("labels"))


@pytest.mark.parametrize(
    "changes",
    [
        {"operators__ledger__max_batch": 7, "epoch_s": 0.01},
        {"operators__ledger__max_batch": 4096, "sources__impressions__parallelism": 3, "sources__labels__parallelism": 2},
        {"operators__ledger__align_s": 0},
        {"operators__ledger__align_s": 60},
    ],
    ids=["small batches", "parallel sources", "exact", "long spans"],
)
@pytest.mark.heavy
def test_the_order_does_not_depend_on_batches_and_tasks(
    changes: dict[str, Any], folder: Path, times: Times, tmp_path: Path
) -> None:
    values = aligned_pipeline(folder, tmp_path, **changes)
    run_here(values)
    span = max(1, round(10 * values["operators"]["ledger"]["align_s"]))
    assert committed_digests(tmp_path) == expected_digests(times, span)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("before_snapshot", marks=pytest.mark.slow),
        pytest.param("after_snapshot", marks=pytest.mark.slow),
        "after_manifest",
    ],
)
@pytest.mark.heavy
def test_a_kill_and_a_resume_change_nothing(point: str, folder: Path, times: Times, tmp_path: Path) -> None:
    values = aligned_pipeline(folder, tmp_path, operators__ledger__align_s=20, operators__ledger__slow_s=0.03)
    assert run_process(values, fault=f"{point}:epoch=2") == -signal.SIGKILL
    before = read_manifests(tmp_path / "state")[0].operators["ledger"][0].alignment
    assert before is not None
    assert before.rows is not None  # rows were waiting
    assert run_process(values, resume=True, fault="after_manifest:epoch=4") == -signal.SIGKILL
    hurry(tmp_path)
    assert run_process(values, resume=True) == 0
    assert committed_digests(tmp_path) == expected_digests(times, 200)
    assert not list((tmp_path / "state").rglob("*.arrows"))[2:]  # files of older epochs have gone


def stop_when_committed(values: dict[str, Any]) -> None:
    stop = threading.Event()

    def watch(reading: Progress) -> None:
        if reading.rows_committed.get("rows"):  # the first epochs may be empty
            stop.set()

    assert run(Pipeline.from_dict(values).spec, runner="local", stop=stop, on_progress=watch).status == "stopped"


@pytest.mark.heavy
def test_one_shard_stopped_and_resumed_with_three_gives_the_same_rows(folder: Path, times: Times, tmp_path: Path) -> None:
    values = aligned_pipeline(
        folder, tmp_path, operators__ledger__type="aligned_workload:StreamLedger", operators__ledger__align_s=20
    )
    values["operators"]["ledger"]["slow_s"] = 0.05  # some five seconds in all
    values["sources"]["impressions"]["parallelism"] = 5
    stop_when_committed(values)
    assert 0 < len(committed_digests(tmp_path)) < ROWS
    hurry(tmp_path)
    values["operators"]["ledger"]["shards"] = 3
    values["sources"]["impressions"]["parallelism"] = 2  # each now with files that stand at different times
    report = run_here(values, resume=True)
    assert sum(stats.late_rows for stats in report.tasks) == 0
    assert committed_digests(tmp_path) == expected_digests(times, 200, per_stream=True)


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
@pytest.mark.heavy
def test_two_aligned_operators_that_share_an_input_do_not_wait_for_each_other(
    runner: str, folder: Path, times: Times, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if runner == "ray":
        request.getfixturevalue("ray_address")
    monkeypatch.setattr(aligner, "AHEAD_ROWS", aligner.AHEAD_ROWS)  # the operators set it
    values = aligned_pipeline(folder, tmp_path, operators__ledger__type="aligned_workload:TightLedger", epoch_s=0.2)
    second = {"type": "aligned_workload:TightEcho", "input": "ledger", "control": "labels", "align_s": 2, "max_batch": 16}
    values["operators"]["second"] = second
    values["operators"]["ledger"] |= {"max_batch": 16, "slow_s": 0.002}
    values["sinks"]["rows"]["input"] = "second"
    if runner == "ray":
        # The labels run ahead of the impressions as far as they may: their source is refused by the second ledger, and could
        # not send the barrier that the first one waits for.
        values["sources"]["impressions"]["pace"] = 40.0
    run_here(values, runner=runner)
    assert committed_digests(tmp_path) == expected_digests(times, 2 * TENTHS)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_on_ray_a_killed_operator_goes_on_with_the_rows_that_waited(folder: Path, times: Times, tmp_path: Path) -> None:
    actors = Actors()
    killed = False

    def watch(reading: Progress) -> None:
        nonlocal killed
        if not killed and reading.epoch >= 1:
            killed = actors.kill("OperatorActor")
            hurry(tmp_path)

    values = aligned_pipeline(folder, tmp_path, sources__impressions__parallelism=2, operators__ledger__slow_s=0.2, epoch_s=0.3)
    report = run(Pipeline.from_dict(values).spec, runner="ray", on_progress=watch)
    assert killed
    assert report.attempts == 2
    assert committed_digests(tmp_path) == expected_digests(times, TENTHS)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_address")
def test_stopped_in_local_and_resumed_on_ray_with_three_shards(folder: Path, times: Times, tmp_path: Path) -> None:
    values = aligned_pipeline(folder, tmp_path, operators__ledger__type="aligned_workload:StreamLedger")
    values["operators"]["ledger"]["slow_s"] = 0.05  # some five seconds in all
    stop_when_committed(values)
    assert 0 < len(committed_digests(tmp_path)) < ROWS
    hurry(tmp_path)
    values["operators"]["ledger"]["shards"] = 3
    run_here(values, resume=True, runner="ray")
    assert committed_digests(tmp_path) == expected_digests(times, TENTHS, per_stream=True)
