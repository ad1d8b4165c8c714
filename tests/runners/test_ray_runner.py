"""The same pipelines on Ray: equal rows, recovery on its own, devices that are not there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_workload import PATIENCE_S, ROOT, committed, hurry, pipeline, run_here, staged_files, write_lines
from ray_actors import Actors

from connectors.errors import ContractError, DeviceError, RecoveryError, StreambankError
from pipelines.api import Pipeline
from pipelines.runners import Progress, run
from pipelines.runners.transport import CREDIT
from pipelines.runtime.manifest import read_manifests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]

ROWS = 4000
FILES = 3
SLOW = {"operators__mean__slow_s": 0.1, "epoch_s": 0.3}
"""Some five seconds of work, and many epochs."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "lines"
    write_lines(folder, ROWS, FILES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    run = tmp_path_factory.mktemp("undisturbed")
    run_here(pipeline(lines, run))
    rows = committed(run)
    assert sum(map(len, rows.values())) == ROWS * FILES
    return rows


def on_ray(values: dict[str, Any], **options: Any) -> Any:
    return run(Pipeline.from_dict(values).spec, runner="ray", **options)


class When:
    """Calls ``act`` once, when an epoch and some rows have been committed."""

    def __init__(self, act: Callable[[], None], epoch: int = 0) -> None:
        self.act = act
        self.epoch = epoch
        self.done = False

    def __call__(self, reading: Progress) -> None:
        if not self.done and reading.epoch >= self.epoch and reading.rows_committed.get("rows"):
            self.done = True
            self.act()


def test_ray_gives_the_same_rows_in_the_same_order_of_each_stream(lines: Path, undisturbed: Any, tmp_path: Path) -> None:
    values = pipeline(lines, tmp_path, operators__mean__shards=2, sources__events__parallelism=2, sinks__rows__shards=2)
    report = on_ray(values)
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []
    assert report.status == "finished"
    assert report.attempts == 1
    assert report.rows_committed == {"events": ROWS * FILES, "rows": ROWS * FILES}
    taken = {stats.task.node: 0 for stats in report.tasks}
    for stats in report.tasks:
        taken[stats.task.node] += stats.rows_in
    assert taken == {"events": ROWS * FILES, "mean": ROWS * FILES, "rows": ROWS * FILES}


@pytest.mark.parametrize(
    "kind",
    ["OperatorActor", pytest.param("SourceActor", marks=pytest.mark.slow), pytest.param("SinkActor", marks=pytest.mark.slow)],
)
def test_a_killed_actor_is_replaced_and_nothing_is_lost_or_doubled(
    kind: str, lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    actors = Actors()

    def kill() -> None:
        assert actors.kill(kind)
        hurry(tmp_path)

    when = When(kill)
    report = on_ray(pipeline(lines, tmp_path, **SLOW), on_progress=when)
    assert when.done
    assert report.attempts == 2
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


@pytest.mark.slow
def test_a_source_that_shares_its_actor_with_an_operator_is_recovered_with_it(
    lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    actors = Actors()

    def kill() -> None:
        assert actors.find("SourceActor") is None
        assert actors.kill("OperatorActor")
        hurry(tmp_path)

    values = pipeline(lines, tmp_path, sources__events__type="engine_workload:BulkyLines", **SLOW)
    report = on_ray(values, on_progress=When(kill))
    assert report.attempts == 2
    assert committed(tmp_path) == undisturbed
    assert {str(stats.task) for stats in report.tasks} == {"events[0]", "mean[0]", "rows[0]"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["between_renames:epoch=1", "after_snapshot:epoch=1"])
def test_an_actor_that_dies_at_a_fault_point_is_replaced(fault: str, lines: Path, undisturbed: Any, tmp_path: Path) -> None:
    values = pipeline(lines, tmp_path, **SLOW)

    def watch(reading: Progress) -> None:
        if reading.attempt > 1:
            hurry(tmp_path)

    report = on_ray(values, fault=fault, on_progress=watch)
    assert report.attempts == 2
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


@pytest.mark.slow  # the driver is killed on the local runner, an actor here
def test_a_killed_driver_is_resumed_from_its_state_folder(
    lines: Path, undisturbed: Any, tmp_path: Path, ray_address: str
) -> None:
    values = pipeline(lines, tmp_path, **SLOW)
    code = "import ast, sys; from engine_workload import run_here; run_here(ast.literal_eval(sys.argv[1]), runner='ray')"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, repr(values)],
        env={**os.environ, "PYTHONPATH": paths, "RAY_ADDRESS": ray_address},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not list((tmp_path / "rows").glob("part-*")) and time.monotonic() < deadline:
        with_timeout(driver, 0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait(PATIENCE_S)
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS * FILES
    hurry(tmp_path)
    on_ray(values, resume=True)
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


def with_timeout(driver: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return
    raise AssertionError(f"the driver ended on its own with {driver.returncode}")


@pytest.mark.slow
def test_one_shard_stopped_in_local_and_resumed_on_ray_with_three_gives_the_same_rows(
    lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    stop = threading.Event()
    values = pipeline(lines, tmp_path, **SLOW)
    spec = Pipeline.from_dict(values).spec
    assert run(spec, runner="local", stop=stop, on_progress=When(stop.set)).status == "stopped"
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS * FILES
    with pytest.raises(RecoveryError, match="Go on with --resume"):
        on_ray(values)
    hurry(tmp_path)
    values["operators"]["mean"]["shards"] = 3
    assert on_ray(values, resume=True).status == "finished"
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []
    assert len(read_manifests(tmp_path / "state")[0].operators["mean"]) == 3
    assert on_ray(values, resume=True).status == "already finished"


@pytest.mark.slow
def test_a_finished_run_on_ray_reads_files_that_came_later_and_one_that_follows_is_never_finished(tmp_path: Path) -> None:
    stop = threading.Event()
    folder = tmp_path / "lines"
    write_lines(folder, 100)
    values = pipeline(folder, tmp_path)
    assert on_ray(values).status == "finished"
    write_lines(tmp_path / "more", 100, 2)
    (tmp_path / "more" / "part1.jsonl").rename(folder / "part1.jsonl")
    with (folder / "part1.jsonl").open("a") as file:
        file.write('{"k": "x", "v": null, "t": 1}\nno row\n')
    again = on_ray(values, resume=True)
    assert (again.status, again.rows_committed["rows"]) == ("finished", 202)
    assert again.tallies["events"].statuses == {"with an error": 1}
    assert again.tallies["mean"].statuses == {"ok": 200, "bad_value": 2}  # over both runs
    assert not again.all_ok
    values["sources"]["events"] |= {"follow": True, "settle_s": 0.0}
    (tmp_path / "more" / "part0.jsonl").rename(folder / "part2.jsonl")

    def idle(reading: Progress) -> None:
        if reading.rows_committed["rows"] == 302:
            stop.set()

    report = on_ray(values, resume=True, stop=stop, on_progress=idle)
    assert (report.status, report.rows_committed["rows"]) == ("stopped", 302)
    assert report.tallies["mean"].statuses == {"ok": 300, "bad_value": 2}
    assert not read_manifests(tmp_path / "state")[0].finished


@pytest.mark.slow  # the suite has the signal to the command line, in tests/pipelines/test_cli.py
def test_a_stop_on_ray_commits_and_can_be_resumed(lines: Path, undisturbed: Any, tmp_path: Path) -> None:
    stop = threading.Event()
    values = pipeline(lines, tmp_path, **SLOW)
    assert on_ray(values, stop=stop, on_progress=When(stop.set)).status == "stopped"
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS * FILES
    assert staged_files(tmp_path) == []
    hurry(tmp_path)
    run_here(values, resume=True)
    assert committed(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_slow_sink_slows_the_source_down(lines: Path, tmp_path: Path) -> None:
    batch = 50
    ahead: list[int] = []
    stop = threading.Event()

    def watch(reading: Progress) -> None:
        # Readings of two tasks are half a second apart, on a busy machine two and a half: 25 batches of the sink.
        ahead.append(reading.rows_read - reading.rows_written)
        if len(ahead) >= 4:
            stop.set()

    values = pipeline(
        lines,
        tmp_path,
        operators__mean__max_batch=batch,
        sinks__rows__type="engine_workload:SlowSink",
        epoch_s=60,
    )
    on_ray(values, on_progress=watch, stop=stop)
    under_way = (CREDIT + 2) + 3 + (CREDIT + 2) + 1  # edges with what is in hand, the batcher, the sink's own
    assert max(ahead) <= (under_way + 25) * batch
    assert max(ahead) < ROWS * FILES / 3


def test_a_gpu_that_is_not_in_the_cluster_is_a_quick_clear_error(lines: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"operators\.mean: device 'cuda' asks for 1 GPU, the Ray cluster has 0; add GPU"):
        on_ray(pipeline(lines, tmp_path / "a", operators__mean__device="cuda"))
    values = pipeline(lines, tmp_path / "b", operators__mean__device="cuda", operators__mean__num_gpus=0.5)
    values["operators"]["mean"]["shards"] = 4
    with pytest.raises(DeviceError, match=r"asks for 2 GPU \(4 shards of 0\.5\), the Ray cluster has 0"):
        on_ray(values)
    assert time.monotonic() - began < 60


def test_what_can_never_fit_onto_the_cluster_is_said_clearly(
    lines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = pipeline(lines, tmp_path, operators__mean__num_cpus=64, resources_wait_s=1)
    with pytest.raises(
        StreambankError, match=r"can never fit .* one actor asks for 64 CPUs, and no node has more than 4.*Add nodes"
    ):
        on_ray(values)
    assert "waiting for nodes to join, 1 s at most" in caplog.text


@pytest.mark.slow
def test_who_breaks_a_contract_on_ray_is_named_and_not_tried_again(lines: Path, tmp_path: Path) -> None:
    values = pipeline(lines, tmp_path, operators__mean__type="engine_workload:Forgetful")
    with pytest.raises(ContractError, match=r"^operator 'mean' \(engine_workload:Forgetful\) returned rows .*'n'"):
        on_ray(values)
    assert (tmp_path / "state" / "attempt").read_text() == "1"


@pytest.mark.slow  # as the broken contract above
def test_an_error_in_an_operator_ends_the_run_and_is_not_tried_again(lines: Path, tmp_path: Path) -> None:
    values = pipeline(lines, tmp_path, operators__mean__type="engine_workload:Broken")
    with pytest.raises(ZeroDivisionError) as raised:
        on_ray(values)
    assert any("in operator mean[0], process of" in note for note in raised.value.__notes__)
    assert (tmp_path / "state" / "attempt").read_text() == "1"


@pytest.mark.parametrize("breaks", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_operators_are_closed_when_the_run_ends_also_after_another_has_failed(
    breaks: bool, lines: Path, tmp_path: Path
) -> None:
    values = pipeline(lines, tmp_path)
    noting = {"type": "engine_workload:Noting", "input": "events", "notes": str(tmp_path)}
    values["operators"] = {"other": noting, "mean": {**noting, "breaks": breaks}}
    values["sinks"]["more"] = {"type": "jsonl", "input": "other", "path": str(tmp_path / "more")}
    with pytest.raises(ValueError, match="told to break") if breaks else contextlib.nullcontext():
        on_ray(values)
    assert (tmp_path / "other").exists()
    assert (tmp_path / "mean").exists()


@pytest.mark.slow
def test_a_pipeline_whose_actor_always_dies_is_given_up(lines: Path, tmp_path: Path) -> None:
    values = pipeline(lines, tmp_path, operators__mean__type="engine_workload:Deadly", max_attempts=2)
    with pytest.raises(StreambankError, match=r"gave up after 2 attempts in a row without a committed epoch"):
        on_ray(values)
    assert (tmp_path / "state" / "attempt").read_text() == "2"
