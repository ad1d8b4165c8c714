"""Runs on a cluster of three nodes: one is lost, a run is stopped, resumed on fewer nodes, submitted as a job, watched."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine_workload import PATIENCE_S, ROOT, committed, hurry, pipeline, run_here, staged_files, write_lines
from ray_nodes import BIN, QUICK, Nodes

from pipelines.runtime.manifest import Manifest, read_manifests

pytestmark = [pytest.mark.ray]

ROWS = 3000
FILES = 3
GRACE_S = 10.0
"""Time to commit and end after SIGTERM or `ray job stop`."""
RECOVERY_S = 60.0
"""From the loss of a node to the next commit, without a person."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes(QUICK)
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "lines"
    write_lines(folder, ROWS, FILES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, ...]]]:
    run = tmp_path_factory.mktemp("undisturbed")
    run_here(pipeline(lines, run))
    return committed(run)


def spread(lines: Path, run: Path, shards: int = 3, **changes: Any) -> dict[str, Any]:
    """Sources, operator and sink in several tasks each, on all nodes; fourteen seconds of work, less after ``hurry``."""
    values = pipeline(lines, run, epoch_s=0.5, operators__mean__slow_s=0.3, operators__mean__max_batch=64, **changes)
    values["placement"] = "spread"
    values["sources"]["events"]["parallelism"] = shards
    values["operators"]["mean"] |= {"shards": shards, "num_cpus": 0.5}  # two nodes have room for three, too
    values["sinks"]["rows"]["shards"] = 2
    return values


def start(nodes: Nodes, values: dict[str, Any], run: Path, *options: str) -> subprocess.Popen[str]:
    """Start `streambank run` on the cluster, in a process of its own."""
    (run / "means.yaml").write_text(yaml.safe_dump(values))
    command = [str(BIN / "streambank"), "run", str(run / "means.yaml"), "--runner", "ray", *options]
    output = (run / "output.txt").open("w")
    return subprocess.Popen(command, cwd=ROOT, env=nodes.env, stdout=output, stderr=subprocess.STDOUT, text=True)


def newest(run: Path) -> Manifest | None:
    return next(iter(read_manifests(run / "state")), None)


def await_that(met: Callable[[], bool], run: Path, driver: subprocess.Popen[str] | None, seconds: float = PATIENCE_S) -> float:
    """Return how long it took until ``met``."""
    began = time.monotonic()
    while not met():
        assert time.monotonic() - began < seconds, (run / "output.txt").read_text()
        if driver is not None:
            assert driver.poll() is None, (run / "output.txt").read_text()
        time.sleep(0.05)
    return time.monotonic() - began


def at_epoch(run: Path, epoch: int) -> Callable[[], bool]:
    return lambda: (manifest := newest(run)) is not None and manifest.epoch >= epoch


def lose_a_node(nodes: Nodes, how: str, lines: Path, run: Path) -> float:
    """Lose a node at a random moment of a run; return the seconds to the next commit. The run goes on to its end on its own."""
    driver = start(nodes, spread(lines, run), run)
    await_that(at_epoch(run, 1), run, driver)
    time.sleep(random.uniform(0.0, 1.0))
    before = newest(run)
    assert before is not None
    nodes.lose(random.randrange(2), how)
    recovery_s = await_that(lambda: (now := newest(run)) is not None and now.attempt > before.attempt, run, driver)
    print(f"\nlost a node ({how}): next commit after {recovery_s:.1f} s")
    hurry(run)
    assert driver.wait(PATIENCE_S) == 0, (run / "output.txt").read_text()
    assert "2 attempts" in (run / "output.txt").read_text()
    return recovery_s


@pytest.mark.slow
def test_a_run_that_loses_a_node_goes_on_by_itself(nodes: Nodes, lines: Path, undisturbed: Any, tmp_path: Path) -> None:
    assert lose_a_node(nodes, "remove", lines, tmp_path) < RECOVERY_S
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []
    nodes.add()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["remove", "raylet"])
def test_a_node_is_lost_with_the_health_checks_that_ray_has_by_default(
    how: str, lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    nodes = Nodes({})
    try:
        assert lose_a_node(nodes, how, lines, tmp_path) < RECOVERY_S
    finally:
        nodes.close()
    assert committed(tmp_path) == undisturbed
    assert staged_files(tmp_path) == []


@pytest.mark.slow
def test_a_run_on_three_nodes_is_stopped_in_time_and_resumed_with_two_shards_on_two_nodes(
    nodes: Nodes, lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    driver = start(nodes, spread(lines, tmp_path), tmp_path)
    await_that(at_epoch(tmp_path, 0), tmp_path, driver)
    began = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(GRACE_S) == 0
    print(f"\nSIGTERM: committed and ended after {time.monotonic() - began:.1f} s")
    assert "means: stopped after" in (tmp_path / "output.txt").read_text()
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS * FILES
    nodes.lose(0, "remove")
    hurry(tmp_path)
    driver = start(nodes, spread(lines, tmp_path, shards=2), tmp_path, "--resume")
    assert driver.wait(PATIENCE_S) == 0, (tmp_path / "output.txt").read_text()
    assert committed(tmp_path) == undisturbed
    last = newest(tmp_path)
    assert last is not None
    assert (last.finished, len(last.operators["mean"]), last.attempt) == (True, 2, 2)
    nodes.add()


@pytest.fixture
def head() -> Iterator[Nodes]:
    # One node: several on one machine share the folder into which Ray unpacks a job's files, and clean it up for each other.
    nodes = Nodes(QUICK, cpus=3, others=0)
    yield nodes
    nodes.close()


@pytest.mark.slow
def test_a_submitted_job_is_watched_and_stopped(
    head: Nodes, lines: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"  # what is uploaded: the pipeline and an operator of the user's own
    folder.mkdir()
    shutil.copy(ROOT / "pipelines" / "testing" / "running_mean.py", folder / "own_mean.py")
    values = spread(lines, tmp_path, operators__mean__type="own_mean:RunningMean")
    (folder / "means.yaml").write_text(yaml.safe_dump(values))
    wanted = ["streambank", "run", "means.yaml", "--runner", "ray", "--log-format", "json", "--log-level", "info"]
    submission = ["submit", "--no-wait", "--working-dir", str(folder), "--submission-id", "means", "--", *wanted]
    without_token = {name: value for name, value in head.env.items() if name != "RAY_AUTH_TOKEN"}
    refused = job(head, *submission, env={**without_token, "RAY_AUTH_MODE": "disabled"})
    assert refused.returncode != 0
    assert "nauthorized" in refused.stdout + refused.stderr or "Authentication" in refused.stdout + refused.stderr
    output = tmp_path / "output.txt"
    submitted = False
    while not submitted:  # "No available agent" until Ray has it up
        answer = job(head, *submission)
        output.write_text(answer.stdout + answer.stderr)
        submitted = answer.returncode == 0
        assert submitted or "No available agent" in answer.stderr, output.read_text()
    try:
        await_that(at_epoch(tmp_path, 1), tmp_path, None)
    except AssertionError:
        raise AssertionError(job(head, "logs", "means").stdout) from None

    wanted_metrics = {
        "ray_streambank_rows_in_total": {"node": "mean", "kind": "operator", "pipeline": "means"},
        "ray_streambank_rows_out_total": {"node": "events", "kind": "source", "shard": "0"},
        "ray_streambank_operator": {"node": "mean", "name": "streams"},
        "ray_streambank_last_epoch": {"node": "rows", "kind": "sink", "shard": "1"},
        "ray_streambank_attempts": {"pipeline": "means"},
        "ray_streambank_epoch_seconds": {"pipeline": "means"},
        "ray_streambank_epoch_age_seconds": {"pipeline": "means"},
        "ray_streambank_rows_committed": {"node": "rows", "pipeline": "means"},
    }
    deadline = time.monotonic() + 60
    while missing(wanted_metrics, seen := scrape(head)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert missing(wanted_metrics, seen) == [], sorted({(name, tags.get("node"), tags.get("shard")) for name, tags, _ in seen})
    ours = {"pipeline", "node", "kind", "shard", "reason", "name"}
    streams = {f"{file}.{key}" for file in range(FILES) for key in range(100)}
    for name, tags, value in seen:
        assert not streams & set(tags.values()), name
        theirs = {tag for tag in tags if tag[0].isupper() or tag.startswith("otel_")}  # Ray's own, on all metrics
        assert set(tags) - theirs <= ours, name
        assert float(value) >= 0 or name.endswith("epoch")

    (driver,) = [process for process in head.processes() if process.name() == "streambank"]
    assert job(head, "stop", "--no-wait", "means").returncode == 0
    driver.wait(2 * GRACE_S)
    ended = datetime.now(UTC)
    log = job(head, "logs", "means").stdout
    said = check_lines(log)
    (signalled,) = [line["time"] for line in said if line["message"].startswith("signal=SIGTERM")]
    stopped_s = (ended - datetime.fromisoformat(signalled)).total_seconds()
    print(f"\nray job stop: committed and ended {stopped_s:.1f} s after the signal")
    assert stopped_s < GRACE_S
    assert "means: stopped after" in log
    assert "go on with --resume" in log
    assert 0 < sum(map(len, committed(tmp_path).values())) < ROWS * FILES
    assert staged_files(tmp_path) == []

    monkeypatch.syspath_prepend(folder)
    hurry(tmp_path)
    run_here(values, resume=True)
    assert committed(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_job_with_relative_paths_is_refused_and_its_secrets_are_in_no_answer_of_the_dashboard(
    head: Nodes, lines: Path, undisturbed: Any, tmp_path: Path
) -> None:
    secret = "s3cr3t-t0ken-4711"
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "token").write_text(secret)
    values = spread(lines, tmp_path)
    live = {"type": "flight", "input": "mean", "port": 0, "token": {"file": str(tmp_path / "token")}}
    values["sinks"]["live"] = live
    (folder / "means.yaml").write_text(yaml.safe_dump(values))
    beside = {**values, "state": "state", "sinks": {"rows": {**values["sinks"]["rows"], "path": "rows"}}}
    (folder / "beside.yaml").write_text(yaml.safe_dump(beside))

    said = submit_and_wait(head, folder, "beside")
    for key in ("state", "path"):
        assert f"{key}: " in said
    assert "in the folder that Ray unpacks a job's files into and deletes; write an absolute path" in " ".join(said.split())
    assert "/mnt/streambank/rows" in said
    assert not (tmp_path / "state").exists()

    hurry(tmp_path)
    said = submit_and_wait(head, folder, "means", "--log-level", "debug")
    assert "means: finished after" in said
    assert committed(tmp_path) == undisturbed
    pages = {path: answer_of(head, path) for path in PAGES}
    assert "OperatorActor" in pages["/logical/actors"]
    assert "means" in pages["/api/jobs/"]
    files = {str(file): file.read_bytes() for file in head.session.rglob("*") if file.is_file()}
    assert len(files) > 20
    told = [place for place, text in {**pages, "said": said}.items() if secret in text]
    assert told + [place for place, text in files.items() if secret.encode() in text] == []


PAGES = (
    "/api/jobs/", "/api/jobs/means", "/api/jobs/means/logs", "/logical/actors", "/nodes?view=summary", "/api/cluster_status",
    "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1&limit=10000", "/api/v0/workers?detail=1",
    "/api/v0/runtime_envs?detail=1", "/api/v0/jobs?detail=1",
)  # fmt: skip
"""What a dashboard shows of jobs, actors, tasks and runtime environments."""


def answer_of(nodes: Nodes, path: str) -> str:
    asked = urllib.request.Request(nodes.jobs_url + path)
    asked.add_header("Authorization", f"Bearer {nodes.env['RAY_AUTH_TOKEN']}")
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error}: {error.read().decode()}") from error


def submit_and_wait(nodes: Nodes, folder: Path, name: str, *options: str) -> str:
    """Submit ``name.yaml`` of a folder; return what the job has said at its end."""
    wanted = ["streambank", "run", f"{name}.yaml", "--runner", "ray", *options]
    while True:  # "No available agent" until Ray has it up
        answer = job(nodes, "submit", "--working-dir", str(folder), "--submission-id", name, "--", *wanted)
        if "No available agent" not in answer.stderr:
            return answer.stdout + answer.stderr


def job(nodes: Nodes, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {**(env or nodes.env), "RAY_ADDRESS": nodes.jobs_url}
    return subprocess.run([str(BIN / "ray"), "job", *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE_S)


def scrape(nodes: Nodes) -> list[tuple[str, dict[str, str], str]]:
    """Name, tags and value of all samples of ours, on all nodes."""
    found = []
    for port in nodes.metrics_ports:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        asked.add_header("Authorization", f"Bearer {nodes.env['RAY_AUTH_TOKEN']}")
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            continue  # of the node that was lost
        for name, tags, value in re.findall(r"^(ray_streambank_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            found.append((name, dict(re.findall(r'(\w+)="([^"]*)"', tags)), value))
    return found


def missing(wanted: dict[str, dict[str, str]], seen: list[tuple[str, dict[str, str], str]]) -> list[str]:
    return [
        name
        for name, tags in wanted.items()
        if not any(other == name and tags.items() <= found.items() for other, found, _ in seen)
    ]


def check_lines(log: str) -> list[dict[str, Any]]:
    """Check that all lines of the driver and, behind Ray's mark of their process, of actors are JSON; return the driver's."""
    said: dict[str, list[dict[str, Any]]] = {"driver": [], "actor": []}
    for line in log.splitlines():
        found = re.match(r"^(?:\S*?\((\w+Actor) pid=[^)]*\)\S* )?(\{.*\})$", line)
        if found is not None:
            said["actor" if found[1] else "driver"].append(json.loads(found[2]))
    for lines in said.values():
        assert all({"time", "level", "logger", "message", "pipeline"} <= line.keys() for line in lines)
    assert {(line["pipeline"], line["attempt"]) for line in said["actor"]} == {("means", 1)}
    started = {line["task"] for line in said["actor"] if line["message"] == "started" and line["epoch"] == -1}
    assert started == {*(f"{node}[{shard}]" for node in ("events", "mean") for shard in range(3)), "rows[0]", "rows[1]"}
    return said["driver"]
