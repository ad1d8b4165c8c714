"""Claim: ``kill -9`` of any actor, of the driver, or of everything, at 30 random moments per runner, loses and doubles nothing.

A real command line (``streambank run --resume``) is killed again and again: in ``local`` the process; on ``ray`` in turn one of
the actors (the run must go on), the driver, or driver, cluster and actors together. Then the run is finished, and its
rows are compared with those of an undisturbed run, stream by stream and in order; no staged file may be left.

    python -m benchmarks.fault_soak [--kills 30] [--runners local,ray] [--seed 0] [--rows 400000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.machine import write
from connectors.sinks.read import read_committed
from pipelines.runtime.manifest import read_manifests

_ROOT = Path(__file__).resolve().parents[1]
_ROWS_PER_S = 6_000
_STREAMS = 6
_ACTORS = ("SourceActor", "OperatorActor", "SinkActor")
_KINDS = {"local": ("driver",), "ray": ("actor", "driver", "everything")}
_LONGEST_S = {"local": 6.0, "ray": 12.0}
"""Kills fall at random within this time after the run has started (for an actor: after all of them are there)."""


def write_lines(folder: Path, rows: int) -> None:
    """Write two files of JSON lines; event time runs so that pace 1.0 brings ``_ROWS_PER_S`` rows a second."""
    folder.mkdir()
    draw = random.Random(3)
    for number in range(2):
        with (folder / f"part{number}.jsonl").open("w") as file:
            for i in range(rows // 2):
                key = f"{number}.{draw.randrange(_STREAMS)}"
                file.write(f'{{"k": "{key}", "v": {draw.random():.3f}, "t": {(number * (rows // 2) + i) / _ROWS_PER_S:.6f}}}\n')


def pipeline(lines: Path, run: Path) -> Path:
    """Write the pipeline file: two shards, a Parquet folder per stream, so that a commit is many renames."""
    run.mkdir()
    values = {
        "name": "soak",
        "state": "state",
        "epoch_s": 0.4,
        "max_attempts": 10,
        "sources": {
            "events": {
                "type": "jsonl",
                "path": str(lines),
                "stream_id": "k",
                "event_time": "t",
                "event_time_unit": "s",
                "columns": {"v": "double"},
                "pace": "realtime",
            }
        },
        "operators": {
            "mean": {
                "type": "pipelines.testing.running_mean:RunningMean",
                "input": "events",
                "shards": 2,
                "max_batch": 512,
                "max_wait_ms": 5,
            }
        },
        "sinks": {"rows": {"type": "parquet", "input": "mean", "path": "rows", "partition_by": ["stream"]}},
    }
    file = run / "soak.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def start(file: Path, runner: str, *, pace: str = "realtime") -> subprocess.Popen[bytes]:
    """Start the command in a session of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", "run", str(file), "--runner", runner, "--resume", "-q"]
    log = (file.parent / "log.txt").open("ab")
    return subprocess.Popen(
        [*command, "--set", f"sources.events.pace={pace}"], cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
    )


def family(driver: int) -> list[psutil.Process]:
    """Return the driver and all its descendants."""
    try:
        process = psutil.Process(driver)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def actors(driver: int) -> list[psutil.Process]:
    """Return the processes that run one of our actors."""
    found = []
    for process in family(driver):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if any(f"ray::{kind}" in title for kind in _ACTORS):
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def soak(runner: str, folder: Path, lines: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill ``kills`` times, then run to the end; return counts."""
    longest = _LONGEST_S[runner]
    file = pipeline(lines, folder / runner)
    counted = dict.fromkeys(_KINDS[runner], 0)
    done = early = 0
    driver = start(file, runner)
    began = time.monotonic()
    while done < kills:
        kind = _KINDS[runner][done % len(_KINDS[runner])]
        if kind == "actor":
            wait_for_actors(driver, 4)
        wait = draw.uniform(0.0, longest / 4 if kind == "actor" else longest)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(wait)
        if driver.poll() is not None:
            log = (file.parent / "log.txt").read_text(errors="replace")
            if driver.returncode != 0:
                raise SystemExit(f"the run failed on its own with {driver.returncode} after {done} kills:\n{log[-3000:]}")
            early = kills - done
            break
        if kind == "actor":
            alive = actors(driver.pid)
            if not alive:
                continue
            kill([draw.choice(alive)])
        else:
            relatives, ours = family(driver.pid), actors(driver.pid)
            kill(relatives if kind == "everything" else relatives[:1])
            driver.wait(30)
            if psutil.wait_procs(ours, timeout=30)[1]:
                raise SystemExit("an actor outlived its driver by half a minute")
            kill(relatives)  # Ray's own agents take a minute to notice
            driver = start(file, runner)
        counted[kind] += 1
        done += 1
        print(f"\r{runner}: {done}/{kills} kills, {time.monotonic() - began:.0f} s", end="", flush=True)
    driver.send_signal(signal.SIGTERM)  # graceful, then the rest at full speed
    if driver.wait(120) not in (0, -signal.SIGTERM):
        raise SystemExit((file.parent / "log.txt").read_text(errors="replace")[-3000:])
    at_the_last_kill = rows_in(file.parent)
    if start(file, runner, pace="max").wait(300) != 0:
        raise SystemExit((file.parent / "log.txt").read_text(errors="replace")[-3000:])
    print()
    return {
        "kills": counted,
        "kills_not_made": early,
        "attempts": int((file.parent / "state" / "attempt").read_text()),
        "epochs": read_manifests(file.parent / "state")[0].epoch + 1,
        "rows_committed_before_the_last_run": at_the_last_kill,
        "seconds": round(time.monotonic() - began, 1),
    }


def wait_for_actors(driver: subprocess.Popen[bytes], number: int) -> None:
    deadline = time.monotonic() + 90
    while len(actors(driver.pid)) < number and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def rows_in(run: Path) -> int:
    manifests = read_manifests(run / "state")
    return manifests[0].rows["rows"] if manifests else 0


def streams(run: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return stream → its committed rows in order."""
    table = read_committed(run / "rows")
    result: dict[str, list[tuple[Any, ...]]] = {}
    for row in zip(*(table.column(name).to_pylist() for name in ("stream_id", "sequence", "n", "m")), strict=True):
        result.setdefault(row[0], []).append(row[1:])
    return result


def compare(run: Path, whole: dict[str, list[tuple[Any, ...]]]) -> dict[str, Any]:
    """Return what differs from the undisturbed run."""
    rows = streams(run)
    lost = sum(len(set(right) - set(rows.get(name, ()))) for name, right in whole.items())
    doubled = sum(len(seen) - len(set(seen)) for seen in rows.values())
    return {
        "rows": sum(map(len, rows.values())),
        "lost": lost,
        "doubled": doubled,
        "equal": rows == whole,
        "staged_files_left": len(list((run / "rows").rglob("*.staged"))),
    }


def main() -> int:
    """Soak, print the table, write the JSON; return 1 where a row is lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--runners", default="local,ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        folder = Path(temporary)
        lines = folder / "lines"
        write_lines(lines, options.rows)
        file = pipeline(lines, folder / "whole")
        if start(file, "local", pace="max").wait(600) != 0:
            raise SystemExit((file.parent / "log.txt").read_text(errors="replace")[-3000:])
        whole = streams(file.parent)
        for runner in options.runners.split(","):
            result = soak(runner, folder, lines, options.kills, random.Random(f"{options.seed}{runner}"))
            results[runner] = {**result, **compare(folder / runner, whole)}
    columns = ("attempts", "epochs", "rows", "lost", "doubled", "equal", "staged_files_left", "seconds")
    print(f"{'runner':8}{'kills':40}" + "".join(f"{name:>19}" for name in columns))
    for runner, result in results.items():
        kills = ", ".join(f"{number} {kind}" for kind, number in result["kills"].items())
        print(f"{runner:8}{kills:40}" + "".join(f"{result[name]!s:>19}" for name in columns))
    held = all(
        result["equal"] and not result["staged_files_left"] and not result["kills_not_made"] for result in results.values()
    )
    write("fault_soak", {"kills": options.kills, "seed": options.seed, "rows": options.rows, "runners": results, "held": held})
    print("held" if held else "NOT held: see benchmarks/results/fault_soak.json")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
