"""Claim: real clips replayed at once by ``streambank run`` with a full-size model give one row per decoded frame and stream.

Writes a full-size checkpoint with random weights in the official layout (.pth), replays every MP4 of a folder through the
command line, reads the rows back with plain ``pyarrow.dataset`` and DuckDB, and compares sequence and time of each row with
what decord reads from the containers. Frames are scaled to ``--short-side`` px: the official 600 px takes seconds per frame
on a CPU.

    python -m benchmarks.real_clips [CLIPS] [--short-side 64] [--runner local|ray] [--device auto]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import decord
import duckdb
import pyarrow.dataset as ds
import torch
import yaml

from benchmarks.machine import write
from models.mamba.checkpoint import official_key
from models.mamba.config import MambaConfig
from models.mamba.model import Mamba


def write_official_checkpoint(path: Path) -> int:
    """Write random full-size weights as the official release stores them; return the number of tensors."""
    torch.manual_seed(0)
    state = {official_key(name): tensor for name, tensor in Mamba(MambaConfig()).state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 0}}, path)
    return len(state)


def container_times_us(path: Path) -> list[int]:
    """Return the presentation time of every frame from the container, in microseconds."""
    reader = decord.VideoReader(str(path), num_threads=1)
    return [round(float(start) * 1e6) for start, _ in reader.get_frame_timestamp(range(len(reader)))]


def main() -> None:
    """Run, compare, print, write the result; exit with 1 where a row is missing or a time differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="?", default=Path("../shared/data/av"), help="folder with MP4 files")
    parser.add_argument("--short-side", type=int, default=64)
    parser.add_argument("--runner", default="local", choices=["local", "ray"])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    paths = sorted(arguments.clips.glob("*.mp4"))
    if not paths:
        sys.exit(f"{arguments.clips} holds no MP4 files; name a folder of clips")
    truth = {path.stem: container_times_us(path) for path in paths}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = write_official_checkpoint(folder / "official.pth")
        pipeline = {
            "name": "real_clips",
            "state": "state",
            "runner": arguments.runner,
            "sources": {"clips": {"type": "video", "path": str(arguments.clips.resolve() / "*.mp4")}},
            "operators": {
                "detect": {
                    "type": "mamba",
                    "input": "clips",
                    "checkpoint": "official.pth",
                    "device": arguments.device,
                    "max_short_side": arguments.short_side,
                    "max_streams": len(paths),
                    "score_threshold": 0.05,
                }
            },
            "sinks": {"rows": {"type": "parquet", "input": "detect", "path": "rows", "partition_by": ["stream"]}},
        }
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipelines.cli", "run", str(folder / "pipeline.yaml"), "--quiet"], check=True)
        seconds = time.perf_counter() - started
        table = ds.dataset(folder / "rows", format="parquet").to_table(columns=["stream_id", "sequence", "event_time"])
        counted = dict(duckdb.sql(f"select stream_id, count(*) from '{folder}/rows/**/*.parquet' group by 1").fetchall())
    problems = []
    print(f"{'stream':32} {'frames':>6} {'rows':>6} {'DuckDB':>6} {'largest time difference':>24}")
    rows = []
    for stream, times in truth.items():
        mine = table.filter(ds.field("stream_id") == stream).sort_by("sequence")
        mine_us = mine.column("event_time").cast("int64").to_pylist()
        worst = max((abs(a - b) for a, b in zip(mine_us, times, strict=False)), default=0)
        print(f"{stream:32} {len(times):6} {len(mine_us):6} {counted.get(stream, 0):6} {worst:21} us")
        rows.append({"stream": stream, "frames": len(times), "rows": len(mine_us), "worst_time_difference_us": worst})
        if not len(times) == len(mine_us) == counted.get(stream, 0) or worst > 1:
            problems.append(stream)
    print(f"{sum(map(len, truth.values()))} frames, {tensors} tensors in the checkpoint, {seconds:.0f} s with start-up")
    write(
        "real_clips",
        {"short_side": arguments.short_side, "runner": arguments.runner, "seconds": seconds, "tensors": tensors, "rows": rows},
    )
    if problems:
        sys.exit(f"differs from the container: {', '.join(problems)}")


if __name__ == "__main__":
    main()
