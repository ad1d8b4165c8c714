"""Claim: ReLoop2 runs over 10 million impressions with flat memory; ``kill -9`` changes no prediction and no bit of the bank.

Impressions and delayed labels are replayed by the command line (``streambank run``, runner ``local``), aligned by event time.
First all of them, with resident memory read along the way; then a smaller replay, once undisturbed and once killed at random
moments and resumed until it is through: rows and the final bank of the two must be the same bits.

    python -m benchmarks.reloop2_soak [--rows 10000000] [--kill-rows 400000] [--kills 8] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from impressions import impressions_pipeline, write_impressions, write_model

from benchmarks.machine import write
from connectors.sinks.read import read_committed
from operators.state import State
from pipelines.runtime.manifest import read_manifests
from pipelines.runtime.snapshots import read_chain
from pipelines.testing._compare import state_difference

_ROOT = Path(__file__).resolve().parents[1]
_READ_EVERY_S = 0.5
_WARM = 0.1
"""Share of the rows after which memory must not grow: its peaks in the first and second half of the rest are compared. Peaks,
since a full snapshot copies the sketch for a moment."""

_FLAT_BYTES = 64 << 20
_LONGEST_S = 6.0
"""Kills fall at random within this time after a run has taken up its state."""


def prepare(folder: Path, rows: int, seed: int) -> None:
    write_impressions(folder, rows, seed=seed)
    write_model(folder / "model.safetensors", seed=seed)


def start(folder: Path, run: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line, or go on with what is there."""
    run.mkdir(exist_ok=True)
    file = run / "soak.yaml"
    file.write_text(yaml.safe_dump({**impressions_pipeline(folder, run), **options}, sort_keys=False))
    log = (run / "log.txt").open("ab")
    command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", "run", str(file), "--resume", "-q"]
    return subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=log)


def must_have_ended_well(process: subprocess.Popen[bytes], run: Path) -> None:
    if process.wait() != 0:
        raise SystemExit((run / "log.txt").read_text(errors="replace")[-3000:])


def rows_in(run: Path) -> int:
    manifests = read_manifests(run / "state")
    return manifests[0].rows["impressions"] if manifests else 0


def memory(folder: Path, rows: int) -> dict[str, Any]:
    """Replay all rows; return the rate, and resident memory by committed rows."""
    run = folder / "whole"
    process = start(folder, run)
    watched = psutil.Process(process.pid)
    began = time.monotonic()
    seen: list[tuple[int, int]] = []
    while process.poll() is None:
        time.sleep(_READ_EVERY_S)
        try:
            seen.append((rows_in(run), watched.memory_info().rss))
        except psutil.NoSuchProcess:
            break
    must_have_ended_well(process, run)
    seconds = time.monotonic() - began
    if rows_in(run) != rows:
        raise SystemExit(f"{rows_in(run)} of {rows} impressions are committed")
    warm = [(done, rss) for done, rss in seen if done >= _WARM * rows]
    half = [[rss for done, rss in warm if (done < (1 + _WARM) / 2 * rows) == first] for first in (True, False)]
    if not all(half):
        raise SystemExit(f"{len(seen)} readings are too few for {rows} rows; give more --rows")
    growth = max(half[1]) - max(half[0])
    at = {f"{share:.0%}": next(rss for done, rss in seen if done >= share * rows) for share in (0.1, 0.5, 0.9)}
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "impressions_per_s": round(rows / seconds),
        "readings": len(seen),
        "rss_bytes_at": at,
        "rss_peak_bytes": {"first half": max(half[0]), "second half": max(half[1])},
        "growth_bytes": growth,
        "limit_bytes": _FLAT_BYTES,
        "held": growth < _FLAT_BYTES,
    }


def kills(folder: Path, rows: int, times: int, seed: int) -> dict[str, Any]:
    """Replay undisturbed and killed; return whether rows and bank are the same."""
    whole, killed = folder / "whole", folder / "killed"
    must_have_ended_well(start(folder, whole, epoch_s=1.0), whole)
    draw = random.Random(seed)
    at: list[int] = []
    while len(at) < times:
        process = start(folder, killed, epoch_s=0.5)
        while attempts(killed) == len(at) and process.poll() is None:
            time.sleep(0.05)
        try:
            process.wait(draw.uniform(0.0, _LONGEST_S))
            break  # it was through before all kills were made
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            at.append(rows_in(killed))
    must_have_ended_well(start(folder, killed, epoch_s=0.5), killed)
    rows_whole, rows_killed = (read_committed(run / "rows") for run in (whole, killed))
    difference = state_difference(bank(whole), bank(killed))
    return {
        "rows": rows,
        "kills": len(at),
        "committed_at_kills": at,
        "attempts": attempts(killed),
        "rows_committed": rows_killed.num_rows,
        "rows_equal": rows_whole.equals(rows_killed),
        "bank_difference": difference,
        "held": rows_whole.equals(rows_killed)
        and difference is None
        and rows_whole.num_rows >= rows
        and any(0 < done < rows for done in at),
    }


def attempts(run: Path) -> int:
    counter = run / "state" / "attempt"
    return int(counter.read_text()) if counter.exists() else 0


def bank(run: Path) -> State:
    """Return the operator's state at the end of a run."""
    manifest = read_manifests(run / "state")[0]
    assert manifest.finished
    [shard] = manifest.operators["correct"]
    return read_chain(run / "state", shard.chain)


def main() -> int:
    """Run both, print the table, write the JSON; return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kill-rows", type=int, default=400_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        folder = Path(temporary)
        prepare(folder, options.kill_rows, options.seed)
        killed = kills(folder, options.kill_rows, options.kills, options.seed)
    verdict = "the same bits" if killed["held"] else "NOT the same"
    print(f"killed {killed['kills']} times in {killed['rows']:,} impressions: predictions and bank are {verdict}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        folder = Path(temporary)
        prepare(folder, options.rows, options.seed)
        flat = memory(folder, options.rows)
    read = ", ".join(f"{rss / 2**20:.0f} MiB at {share}" for share, rss in flat["rss_bytes_at"].items())
    verdict = "held" if flat["held"] else "NOT held"
    print(f"{flat['rows']:,} impressions: {flat['impressions_per_s']:,} a second, {read}: {verdict}")
    write("reloop2_soak", {"seed": options.seed, "memory": flat, "kills": killed})
    return 0 if flat["held"] and killed["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
