"""Claim: operators give the same rows as in another checkout, bit for bit, and the engine is not slower by more than 5 %.

Both checkouts run the same workloads, each in a process of its own with its own code and the Python that runs this. The rows
must be equal in every bit, in the same order; ``error`` may say the same in other words, columns of timings are left out, and
options, columns and statuses that were renamed count as equal (tables in ``worker.py``).

    python -m benchmarks.versions OTHER_CHECKOUT [--only NAME ...] [--keep FOLDER]
    python -m benchmarks.versions OTHER_CHECKOUT --speed [--repeat 5] [--scale 1.0] [--only keyed decode kafka]

With ``--speed`` keyed running mean, decoding and Kafka (where Java is available) of both versions take turns in one go.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import machine
from benchmarks.versions import speed, workloads
from benchmarks.versions.rows import Comparison, compare

HERE = Path(__file__).resolve().parents[2]


def checkout_environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which a process runs the code of a checkout, and only that."""
    return {**os.environ, "PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def run_workload(checkout: Path, folder: Path, run: Path) -> tuple[pa.Table | None, float, str]:
    """Run one workload in a checkout; return its rows, the seconds, and the end of what it said where it failed."""
    run.mkdir(parents=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(folder), str(run)],
        cwd=checkout,
        env=checkout_environment(checkout),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        return None, seconds, "\n".join(done.stderr.strip().splitlines()[-12:])
    with pa.OSFile(str(run / "rows.arrow"), "rb") as file:
        return pa.ipc.open_file(file).read_all(), seconds, ""


def report(name: str, comparison: Comparison) -> None:
    """Print one line of the table, and below it what differs."""
    verdict = "same" if comparison.same else "differs, as intended" if name in workloads.INTENDED else "DIFFERS"
    reworded = f"  ({comparison.reworded} errors reworded)" if comparison.reworded else ""
    print(f"{name:28}{comparison.rows[0]:8}{comparison.rows[1]:8}  {verdict}{reworded}", flush=True)
    for problem in comparison.problems:
        print(f"    {problem}")
    for column, rows in comparison.columns.items():
        print(f"    {column}: {rows} of {comparison.rows[1]} rows")
    if comparison.first is not None:
        print(f"    first: {str(comparison.first)[:600]}")


def results(other: Path, names: list[str], keep: Path | None) -> bool:
    """Compare all workloads, print the table, write the JSON where all were run; return whether all are the same."""
    entries: dict[str, Any] = {}
    print(f"{'workload':28}{'old rows':>8}{'new rows':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        root = keep or Path(scratch)
        for name in names:
            folder = root / name
            folder.mkdir(parents=True)
            workloads.write(name, folder)
            tables: dict[str, pa.Table] = {}
            for side, checkout in (("old", other), ("new", HERE)):
                table, _, said = run_workload(checkout, folder, folder / side)
                if table is None:
                    print(f"{name:28}{'':16}  FAILED in {'the other checkout' if side == 'old' else 'this checkout'}\n{said}")
                    entries[name] = {"same": False, "failed": side, "message": said.splitlines()[-1:]}
                    break
                tables[side] = table
            else:
                comparison = compare(tables["old"], tables["new"])
                report(name, comparison)
                entries[name] = {
                    "same": comparison.same,
                    "rows": comparison.rows[1],
                    "problems": comparison.problems,
                    "columns": comparison.columns,
                    "errors_reworded": comparison.reworded,
                }
    intended = {name: reason for name, reason in workloads.INTENDED.items() if name in entries and not entries[name]["same"]}
    different = [name for name, entry in entries.items() if not entry["same"] and name not in intended]
    same = not different
    for name, reason in intended.items():
        print(f"{name} differs as intended: {reason}")
    kept = "all other rows" if intended else "all rows"
    print(f"{kept} are the same bit for bit" if same else f"NOT the same: {', '.join(different)}")
    if set(names) == set(workloads.NAMES):
        document = {"same": same, "intended": intended, "commits": _commits(other), "workloads": entries}
        print("written:", _write("workloads", document).name)
    return same


def speeds(other: Path, arguments: argparse.Namespace) -> bool:
    """Measure both versions in turns, print the table, write the JSON; return whether none is slower than allowed."""
    measured, held = speed.measure(other, HERE, arguments.only or list(speed.NAMES), arguments.repeat, arguments.scale)
    if arguments.scale == 1.0 and not arguments.only:
        entry = {"held": held, "commits": _commits(other), "repeat": arguments.repeat, "cases": measured}
        print("written:", _write("speed", entry).name)
    return held


def _write(part: str, entry: dict[str, Any]) -> Path:
    """Replace one part of ``versions.json``; the other keeps what it has."""
    path = machine.RESULTS / "versions.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    parts = {name: kept[name] for name in ("workloads", "speed") if name in kept}
    return machine.write("versions", parts | {part: entry})


def _commits(other: Path) -> dict[str, str]:
    """Return what both checkouts are at, where git knows."""
    found = {}
    for side, checkout in (("old", other), ("new", HERE)):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[side] = done.stdout.strip()
    return found


def main() -> int:
    """Compare or measure; return 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="the version to compare with, the older one")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="workloads whose names begin so; with --speed cases")
    parser.add_argument("--keep", type=Path, help="leave inputs and rows in this new folder")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each side of --speed")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads of --speed")
    arguments = parser.parse_args()
    other = arguments.other.resolve()
    if not (other / "operators" / "base.py").is_file():
        parser.error(f"{arguments.other} is no checkout of this project: it has no operators/base.py")
    if arguments.speed:
        unknown = set(arguments.only or ()) - set(speed.NAMES)
        if unknown:
            parser.error(f"--only {' '.join(sorted(unknown))}: with --speed choose among {', '.join(speed.NAMES)}")
        return 0 if speeds(other, arguments) else 1
    names = [name for name in workloads.NAMES if not arguments.only or name.startswith(tuple(arguments.only))]
    if not names:
        parser.error(f"--only {' '.join(arguments.only)}: no workload begins so; there are {', '.join(workloads.NAMES)}")
    return 0 if results(other, names, arguments.keep) else 1


if __name__ == "__main__":
    sys.exit(main())
