"""Claim: memory does not grow with the length of a stream.

Replay of a table of 1,000,000 rows leaves resident memory flat after warm-up (a tenth of the rows); two minutes of 720p video
replayed in real time grow the process by less than 300 MB. Both in ``local``, each in a process of its own.

    python -m benchmarks.memory_flat [--rows 1000000] [--seconds 120]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.keyed_stream import write_events
from benchmarks.machine import write

_FLAT_BYTES = 32 << 20
_VIDEO_BYTES = 300 << 20
_FPS = 30
_ROOT = Path(__file__).resolve().parents[1]

_RUN = """
import json, sys, psutil
from pipelines import Pipeline
process, seen = psutil.Process(), []
def watch(progress):
    seen.append((progress.seconds, progress.rows_read, process.memory_info().rss))
pipeline = Pipeline.from_dict(json.loads(sys.argv[1]))
before = process.memory_info().rss
report = pipeline.run(on_progress=watch).report
print(json.dumps({"before": before, "seen": seen, "seconds": report.seconds, "rows": report.rows_committed["rows"]}))
"""


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Run a pipeline in a fresh process; return resident memory over its course."""
    command = [sys.executable, "-W", "ignore", "-c", _RUN, json.dumps(values)]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table_replay(folder: Path, rows: int) -> dict[str, Any]:
    """Replay JSON lines at full speed through a keyed operator into Parquet."""
    write_events(folder / "events.jsonl", rows)
    result = measure(
        {
            "name": "table",
            "state": str(folder / "state"),
            "epoch_s": 1.0,
            "sources": {
                "events": {
                    "type": "jsonl",
                    "path": str(folder / "events.jsonl"),
                    "stream_id": "k",
                    "event_time": "t",
                    "event_time_unit": "s",
                    "columns": {"v": "double"},
                    # Slow enough for a dozen readings and epochs.
                    "pace": rows / 30 / 12,
                }
            },
            "operators": {"mean": {"type": "pipelines.testing.running_mean:RunningMean", "input": "events", "max_batch": 4096}},
            "sinks": {"rows": {"type": "parquet", "input": "mean", "path": str(folder / "rows")}},
        }
    )
    warm = [rss for _, read, rss in result["seen"] if read >= rows / 10]
    return {
        "rows": result["rows"],
        "seconds": round(result["seconds"], 1),
        "readings": len(result["seen"]),
        "rss_after_warm_up_bytes": warm[0],
        "rss_peak_bytes": max(warm),
        "growth_bytes": max(warm) - warm[0],
        "limit_bytes": _FLAT_BYTES,
    }


def video_replay(folder: Path, seconds: int) -> dict[str, Any]:
    """Replay a 720p clip in real time through the null operator into Parquet."""
    (folder / "clips").mkdir()
    write_clip(folder / "clips" / "clip.mp4", seconds * _FPS)
    result = measure(
        {
            "name": "video",
            "state": str(folder / "state"),
            "epoch_s": 5.0,
            "sources": {"clips": {"type": "video", "path": str(folder / "clips"), "pace": "realtime"}},
            "operators": {"nothing": {"type": "null", "input": "clips"}},
            "sinks": {"rows": {"type": "parquet", "input": "nothing", "path": str(folder / "rows")}},
        }
    )
    peak = max(rss for _, _, rss in result["seen"])
    return {
        "frames": result["rows"],
        "seconds": round(result["seconds"], 1),
        "rss_before_bytes": result["before"],
        "rss_peak_bytes": peak,
        "growth_bytes": peak - result["before"],
        "limit_bytes": _VIDEO_BYTES,
    }


def write_clip(path: Path, frames: int) -> None:
    """Write a moving texture of 1280x720 at 30 frames/s."""
    texture = cv2.resize(np.random.default_rng(1).integers(0, 255, (90, 640, 3), dtype=np.uint8), (2560, 720))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), float(_FPS), (1280, 720))
    for number in range(frames):
        shift = 3 * number % 1280
        writer.write(np.ascontiguousarray(texture[:, shift : shift + 1280]))
    writer.release()


def main() -> int:
    """Measure both, print the table, write the JSON; return 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=120, help="Of video, replayed in real time.")
    options = parser.parse_args()
    results = {}
    for name, run, size in (("table", table_replay, options.rows), ("video", video_replay, options.seconds)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = run(Path(folder), size)
        results[name]["held"] = results[name]["growth_bytes"] < results[name]["limit_bytes"]
        growth, limit = (results[name][key] / 2**20 for key in ("growth_bytes", "limit_bytes"))
        verdict = "held" if results[name]["held"] else "NOT held"
        print(f"{name}: grew {growth:.1f} MiB in {results[name]['seconds']:.0f} s (limit {limit:.0f} MiB): {verdict}")
    write("memory_flat", results)
    return 0 if all(result["held"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
