"""Claims: the video source keeps at least 0.9 of a bare OpenCV loop's frames/s; one core reads 500,000 JSON lines a second.

Both sides of the video comparison read the same generated clip, alternating, on one process; the median of the ratios counts.

    python -m benchmarks.source_throughput [--frames 600] [--lines 500000] [--repeat 7]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.decode_throughput import bare_loop, make_clip
from benchmarks.machine import write
from connectors.base import Source
from connectors.sources.jsonl import JsonlSource
from connectors.sources.tables import TableOptions
from connectors.sources.video import VideoOptions, VideoSource

_SIZES = {"720p": (1280, 720), "360p": (640, 360)}
_FLOOR_RATIO = 0.9
_FLOOR_ROWS_PER_S = 500_000


def read(source: Source, rows: int) -> tuple[int, float]:
    """Read all splits, dropping every batch; return rows and seconds, opening included."""
    started, count = time.perf_counter(), 0
    for split in source.splits():
        reader = source.open(split, None)
        while not reader.exhausted:
            batch = reader.read(rows, 64 << 20)
            count += batch.num_rows if batch is not None else 0
            del batch
        reader.close()
    return count, time.perf_counter() - started


def video(folder: Path, name: str, frames: int, repeat: int) -> dict[str, float | str]:
    """Compare the source with the bare loop."""
    path = folder / f"{name}.mp4"
    make_clip(path, _SIZES[name], frames, seed=0)
    ratios, rates = [], []
    for _ in range(repeat):
        bare_frames, bare_s = bare_loop([path])
        rows, source_s = read(VideoSource(VideoOptions(path=str(path))), 64)
        assert rows == bare_frames == frames
        ratios.append(bare_s / source_s)
        rates.append(rows / source_s)
    return {"clip": name, "frames_per_s": statistics.median(rates), "ratio_to_bare_loop": statistics.median(ratios)}


def json_lines(folder: Path, lines: int, repeat: int) -> float:
    """Return rows/s of keyed JSON lines, the best of ``repeat``."""
    draw = random.Random(0)
    path = folder / "events.jsonl"
    with path.open("w") as file:
        file.writelines(
            f'{{"k": "k{draw.randrange(100):03d}", "v": {draw.random():.3f}, "t": {i // 100}}}\n' for i in range(lines)
        )
    options = TableOptions(path=str(path), stream_id="k", event_time="t", event_time_unit="s")
    results = [read(JsonlSource(options), 10_000) for _ in range(repeat)]
    assert all(rows == lines for rows, _ in results)
    return max(rows / seconds for rows, seconds in results)


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--lines", type=int, default=500_000)
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clips = [video(Path(name), size, arguments.frames, arguments.repeat) for size in _SIZES]
        rows_per_s = json_lines(Path(name), arguments.lines, arguments.repeat)
    for clip in clips:
        print("video {clip}: {frames_per_s:.0f} frames/s, {ratio_to_bare_loop:.2f} of a bare OpenCV loop".format(**clip))
    print(f"floor {_FLOOR_RATIO}")
    print(f"JSON lines: {rows_per_s:,.0f} rows/s on one core, floor {_FLOOR_ROWS_PER_S:,}")
    held = all(float(clip["ratio_to_bare_loop"]) >= _FLOOR_RATIO for clip in clips) and rows_per_s >= _FLOOR_ROWS_PER_S
    print("result:", write("source_throughput", {"video": clips, "jsonl_rows_per_s": rows_per_s, "held": held}))


if __name__ == "__main__":
    main()
