"""Claim: some twenty updates of every training end in the same bits when they are stopped by SIGKILL and resumed as when they
are not, and the same bits in this checkout as in another one, such as the one before a change.

Ten trainings: every recipe and every kind of own data of mamba, rekv and reloop2, on one thread. One hash goes over the
weights that were written, another over every update: learning rates, gradients, weights, optimizer state. Hashes depend on
processor and PyTorch, so both checkouts run here and now. The process is killed in the middle; there are checkpoints every
five updates.

    python -m benchmarks.training_hashes [OTHER_CHECKOUT]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.training_hashes_run import CASES

ROOT = Path(__file__).resolve().parents[1]
_KILLED = -9


def run(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cases with the code of a checkout in a process of its own."""
    script = ROOT / "benchmarks" / "training_hashes_run.py"
    command = [sys.executable, "-P", "-W", "ignore", str(script), str(folder.resolve()), *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def measure(checkout: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Return the hashes of all cases, or of those that are named."""
    folder.mkdir(exist_ok=True)
    done = run(checkout, folder, *arguments)
    if done.returncode:
        raise RuntimeError(f"{checkout}: the trainings ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_resumed(folder: Path, updates: dict[str, int]) -> dict[str, Any]:
    """Kill each case in the middle of its updates, resume it, and return the hashes."""
    folder.mkdir()
    for name in CASES:
        killed = run(ROOT, folder, name, "--kill", str(updates[name] // 2 + 3))
        if killed.returncode != _KILLED or not (folder / name / "training.pt").is_file():
            raise RuntimeError(f"{name}: ended with status {killed.returncode}, or left no checkpoint")
    return measure(ROOT, folder, "--resume")


def main() -> int:
    """Measure, compare, write the result; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, metavar="OTHER_CHECKOUT", help="a folder with other code of the project")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        here = measure(ROOT, Path(scratch) / "here")
        other = None if arguments.other is None else measure(arguments.other, Path(scratch) / "other")
        resumed = measure_resumed(Path(scratch) / "resumed", {name: case["updates"] for name, case in here.items()})
    rows, failures = {}, []
    for name, case in here.items():
        print(f"{name} ({case['updates']} updates)")
        print(f"  here      updates {case['updates_sha256']}  weights {case['weights_sha256']}")
        rows[name] = {"here": case, "resumed": resumed[name]}
        if other is not None:
            print(f"  other     updates {other[name]['updates_sha256']}  weights {other[name]['weights_sha256']}")
            rows[name]["other"] = other[name]
            failures += [f"{name}: not as in the other checkout"] if other[name] != case else []
        made = resumed[name]
        print(f"  resumed   {made['updates']} updates after the kill                   weights {made['weights_sha256']}")
        if made["updates"] >= case["updates"]:
            failures.append(f"{name}: all {case['updates']} updates were made again")
        if made["weights_sha256"] != case["weights_sha256"] or made["metrics"] != case["metrics"]:
            failures.append(f"{name}: resumed, it ends elsewhere")
    for failure in failures:
        print("FAILED:", failure)
    document = {"compared_with_other": other is not None, "cases": rows, "failures": failures, "holds": not failures}
    print("written:", machine.write("training_hashes", document))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
