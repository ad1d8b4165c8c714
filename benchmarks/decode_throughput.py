"""Claim: decode → null operator → Parquet keeps at least 0.8 of a bare OpenCV loop's frames/s in ``local``, 0.6 on ``ray``.

Both sides read the same generated clips in one run with as many decoder threads, alternating, best of ``--repeat``. The
pipeline's time is that of its data (first to last row committed); start-up, Ray's above all, is shown apart.

    python -m benchmarks.decode_throughput [--frames 1500] [--repeat 3] [--runners local,ray]

``--frames`` counts those of a 720p clip; a 360p clip has four times as many, for about the same decoding work.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import write

_SIZES = {"720p": (1280, 720), "360p": (640, 360)}
_LONGER = {"720p": 1, "360p": 4}
_FLOOR = {"local": 0.8, "ray": 0.6}


def make_clip(path: Path, size: tuple[int, int], frames: int, seed: int) -> None:
    """Write a clip with motion and texture (so that decoding is real work) in MPEG-4 part 2."""
    rng = np.random.default_rng(seed)
    width, height = size
    texture = cv2.resize(rng.integers(0, 255, (height // 8, width // 4, 3), dtype=np.uint8), (2 * width, height))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, size)
    for t in range(frames):
        shift = (t * 3) % width
        frame = np.ascontiguousarray(texture[:, shift : shift + width])
        cv2.circle(frame, (int(width / 2 + width / 3 * np.sin(t / 20)), height // 2), height // 6, (0, 0, 255), -1)
        writer.write(frame)
    writer.release()


def bare_loop(paths: list[Path]) -> tuple[int, float]:
    """Decode every frame of every file, nothing else; return frames and seconds."""
    cv2.setNumThreads(1)
    threads = [cv2.CAP_PROP_N_THREADS, min(4, cv2.getNumberOfCPUs())]  # as the source has
    frames = 0
    started = time.perf_counter()
    for path in paths:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, threads)
        while capture.read()[0]:
            frames += 1
        capture.release()
    return frames, time.perf_counter() - started


def pipeline(paths: list[Path], folder: Path, runner: str) -> tuple[int, float, float]:
    """Return rows committed, seconds of the data, seconds of start-up."""
    from pipelines import Pipeline

    started = time.perf_counter()
    result = Pipeline.from_dict(
        {
            "name": "decode",
            "state": str(folder / "state"),
            "runner": runner,
            "sources": {"clips": {"type": "video", "path": [str(p) for p in paths]}},
            "operators": {"null": {"type": "null", "input": "clips", "max_batch": 64, "max_wait_ms": 0}},
            "sinks": {"rows": {"type": "parquet", "input": "null", "path": str(folder / "rows")}},
        }
    ).run()
    total = time.perf_counter() - started
    return result.table("rows").num_rows, result.report.seconds, total - result.report.seconds


def main() -> None:
    """Run all sizes and runners, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--runners", default="local,ray")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'clip':6} {'runner':6} {'bare fps':>9} {'ours fps':>9} {'ratio':>6} {'floor':>6} {'start-up s':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, size in _SIZES.items():
            paths = [folder / f"{label}_{i}.mp4" for i in range(arguments.clips)]
            for i, path in enumerate(paths):
                make_clip(path, size, arguments.frames * _LONGER[label], i)
            for runner in arguments.runners.split(","):
                pairs = []
                for attempt in range(arguments.repeat):
                    frames, bare_s = bare_loop(paths)
                    count, ours_s, start_s = pipeline(paths, folder / f"{label}_{runner}_{attempt}", runner)
                    if count != frames:
                        raise SystemExit(f"{runner} {label}: {count} rows for {frames} frames")
                    pairs.append((frames / bare_s, frames / ours_s, start_s))
                bare, ours = max(p[0] for p in pairs), max(p[1] for p in pairs)
                start = min(p[2] for p in pairs)
                rows.append(
                    {"clip": label, "runner": runner, "bare_fps": bare, "ours_fps": ours, "ratio": ours / bare,
                     "floor": _FLOOR[runner], "startup_s": start, "pairs": pairs}
                )  # fmt: skip
                print(f"{label:6} {runner:6} {bare:9.0f} {ours:9.0f} {ours / bare:6.2f} {_FLOOR[runner]:6.1f} {start:10.1f}")
    write("decode_throughput", {"frames": arguments.frames, "clips": arguments.clips, "rows": rows})


if __name__ == "__main__":
    main()
