"""Claim: 500,000 keyed JSON lines → running mean per key → one JSON line per event runs at least 1.5 times as fast as bytewax
in ``local``, and not behind it on ``ray``, with an epoch each second on both sides.

All sides read the same file in one run, alternating, best of ``--repeat``; every output is compared with a plain Python loop.
Events/s count from the first event to the last commit; start-up is shown apart.

    python -m benchmarks.keyed_stream [--events 500000] [--repeat 3] [--sides local,ray,bytewax]
        [--bytewax-python PATH]   a Python that has bytewax, if this one has not (pip install 'streambank[bench]')
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write

_FLOOR = {"local": 1.5, "ray": 1.0}
_HERE = Path(__file__).resolve().parent


def write_events(path: Path, events: int) -> None:
    """Write ``{"k": "k042", "v": 0.844, "t": 17}`` lines: 100 keys at random, 30 events a second."""
    draw = random.Random(7)
    with path.open("w") as file:
        for i in range(events):
            file.write(f'{{"k": "k{draw.randrange(100):03d}", "v": {draw.random():.3f}, "t": {i // 30}}}\n')


def expected(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return key → (n, m) after each of its events."""
    sums: dict[str, float] = {}
    rows: dict[str, list[tuple[int, float]]] = {}
    for line in path.open():
        record = json.loads(line)
        key = record["k"]
        sums[key] = sums.get(key, 0.0) + record["v"]
        seen = rows.setdefault(key, [])
        seen.append((len(seen) + 1, sums[key] / (len(seen) + 1)))
    return rows


def read_rows(files: list[Path]) -> dict[str, list[tuple[int, float]]]:
    rows: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        for line in file.open():
            record = json.loads(line)
            rows.setdefault(record["k"], []).append((record["n"], record["m"]))
    return rows


def streambank(lines: Path, folder: Path, runner: str) -> tuple[float, float, list[Path]]:
    """Return seconds of the data, seconds of start-up, and the files written; in a process of its own."""
    code = (
        "import json, sys, time; began = time.time()\n"
        "from pipelines import Pipeline\n"
        "result = Pipeline.from_dict(json.loads(sys.argv[1])).run()\n"
        "print(json.dumps({'seconds': result.report.seconds, 'startup': time.time() - began - result.report.seconds,"
        " 'epochs': result.report.epochs}))"
    )
    values = {
        "name": "means",
        "state": str(folder / "state"),
        "runner": runner,
        "epoch_s": 1.0,
        "sources": {
            "events": {
                "type": "jsonl",
                "path": str(lines),
                "stream_id": "k",
                "event_time": "t",
                "event_time_unit": "s",
                "columns": {"v": "double"},
            }
        },
        "operators": {
            "mean": {
                "type": "pipelines.testing.running_mean:RunningMean",
                "input": "events",
                "max_batch": 16384,
                "max_wait_ms": 0,
            }
        },
        "sinks": {
            "rows": {
                "type": "jsonl",
                "input": "mean",
                "path": str(folder / "rows"),
                "columns": {"stream_id": "k", "n": "n", "m": "m"},
            }
        },
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(values)],
        cwd=_HERE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    return report["seconds"], report["startup"], sorted((folder / "rows").glob("part-*.jsonl"))


def bytewax(python: str, lines: Path, folder: Path) -> tuple[float, float, list[Path]]:
    """Return the same of bytewax, with recovery on and a snapshot each second."""
    recovery, out, times = folder / "recovery", folder / "out.jsonl", folder / "times.json"
    recovery.mkdir(parents=True)
    subprocess.run([python, "-m", "bytewax.recovery", str(recovery), "1"], check=True, capture_output=True)
    target = f"keyed_stream_bytewax:flow({str(lines)!r}, {str(out)!r}, {str(times)!r})"
    began = time.time()
    subprocess.run(
        [python, "-m", "bytewax.run", target, "-r", str(recovery), "-s", "1", "-b", "0"],
        cwd=_HERE,
        env={**os.environ, "PYTHONPATH": str(_HERE)},
        check=True,
        capture_output=True,
    )
    noted = json.loads(times.read_text())
    return noted["end"] - noted["first"], noted["first"] - began, [out]


def main() -> int:
    """Run all sides, print the table, write the JSON; return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sides", default="local,ray,bytewax")
    parser.add_argument("--bytewax-python", default=sys.executable)
    options = parser.parse_args()
    sides = options.sides.split(",")
    if "bytewax" in sides and options.bytewax_python == sys.executable and importlib.util.find_spec("bytewax") is None:
        print("bytewax is not installed: pip install 'streambank[bench]', or name a Python that has it: --bytewax-python PATH")
        sides.remove("bytewax")
    best: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        lines = root / "in.jsonl"
        write_events(lines, options.events)
        right = expected(lines)
        for _ in range(options.repeat):
            for side in sides:
                folder = root / "run"
                run = bytewax(options.bytewax_python, lines, folder) if side == "bytewax" else streambank(lines, folder, side)
                seconds, startup, files = run
                if read_rows(files) != right:
                    raise SystemExit(f"{side}: the output differs from that of a plain loop")
                shutil.rmtree(folder)
                if side not in best or seconds < best[side]["seconds"]:
                    best[side] = {
                        "seconds": round(seconds, 3),
                        "startup_s": round(startup, 3),
                        "events_per_s": round(options.events / seconds),
                    }
    print(f"{'':10}{'events/s':>12}{'seconds':>10}{'start-up s':>12}{'ratio':>8}")
    held = True
    for side, figures in best.items():
        ratio = figures["events_per_s"] / best["bytewax"]["events_per_s"] if "bytewax" in best else None
        if ratio is not None:
            figures["ratio_to_bytewax"] = round(ratio, 2)
            held &= ratio >= _FLOOR.get(side, 0)
        shown = f"{ratio:8.2f}" if ratio is not None else f"{'-':>8}"
        print(f"{side:10}{figures['events_per_s']:12,}{figures['seconds']:10.2f}{figures['startup_s']:12.2f}{shown}")
    path = write(
        "keyed_stream", {"events": options.events, "repeat": options.repeat, "sides": best, "floors": _FLOOR, "held": held}
    )
    print(f"{'held' if held else 'NOT held'}: local at least 1.5 and ray at least 1.0 times bytewax; {path.name}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
