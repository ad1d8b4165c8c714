"""``make demo``, or ``python -m pipelines.demo [FOLDER]``: render videos, replay them through Ray, detect with memory and
without, and show what the memory gained. Everything is written below FOLDER, ``demo`` in the working folder by default.

All the work is done by the ready pipeline ``configs/shapes_demo.yaml``; this file renders its input, runs it, and compares the
committed rows with the ground truth.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from connectors.extras import missing

if TYPE_CHECKING:
    from models.mamba.evaluate import Found, Objects
    from pipelines.api import Result

__all__ = ["main", "map50"]

_PIPELINE = Path(__file__).resolve().parent / "configs" / "shapes_demo.yaml"
_SEEDS = range(900_000, 900_004)  # scenes that no training run draws
_FRAMES = 96
_WRITTEN = {"again", "rows", "state", "video", "videos"}
_DETECTORS = {"single_frame": "one frame at a time", "memory": "with memory of the past"}


def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo in the folder that is the only argument and print what it gave; return the exit status."""
    console = Console(highlight=False, soft_wrap=True)
    out = Path(arguments[0] if arguments else "demo")
    if problem := _problem(out, arguments):
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    _run(console, out)
    return 0


def _problem(out: Path, arguments: Sequence[str]) -> str | None:
    """Return why the demo cannot run here: it needs extras, and a folder that holds nothing but an earlier demo."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        return f"give one folder, or none for 'demo'; got: {' '.join(arguments)}"
    if out.exists() and (not out.is_dir() or not {path.name for path in out.iterdir()} <= _WRITTEN):
        return f"{out} is there and holds other things than a demo; name another folder: python -m pipelines.demo FOLDER"
    return missing(["cv2", "torchvision", "ray"])


def _run(console: Console, out: Path) -> None:
    from models.mamba.shapes import ShapesConfig, render_clips
    from pipelines import Pipeline

    console.print(f"1. Rendering {len(_SEEDS)} videos of {_FRAMES} frames, with blur, noise and occlusion: {out / 'videos'}")
    truth = render_clips(out / "videos", config=ShapesConfig(frames=_FRAMES), seeds=_SEEDS)
    console.print("2. Replaying them at once through Ray, into a detector with a memory and one without")
    began = time.monotonic()
    result = Pipeline.load(_PIPELINE, overrides=_places(out)).run(runner="ray")
    seconds = time.monotonic() - began
    console.print("3. Comparing the rows in Parquet with the ground truth\n")
    _print_result(console, truth, result, seconds, out)


def _places(out: Path, again: str = "") -> dict[str, str]:
    """Return the keys of the pipeline file that say where to write, and to read from, for a demo in ``out``."""
    below = out / again
    return {
        "state": f"{below / 'state'}",
        "sources.clips.path": f"{out / 'videos' / '*.mp4'}",
        "sinks.memory_rows.path": f"{below / 'rows' / 'memory'}",
        "sinks.single_frame_rows.path": f"{below / 'rows' / 'single_frame'}",
        "sinks.video.path": f"{below / 'video'}",
    }


def map50(truth: Path, rows: pa.Table) -> float:
    """Return mAP at IoU 0.5 of detection rows against a COCO-VID file; stream ids are the videos' names."""
    from models.mamba.evaluate import mean_average_precision

    document = json.loads(truth.read_text(encoding="utf-8"))
    names = {video["id"]: video["name"] for video in document["videos"]}
    image_of = {(names[image["video_id"]], image["frame_id"]): i for i, image in enumerate(document["images"])}
    classes = len(document["categories"])
    return mean_average_precision(_objects(document), _found(rows, image_of), classes=classes).mean


def _objects(document: Mapping[str, Any]) -> Objects:
    from models.mamba.evaluate import Objects

    index = {image["id"]: i for i, image in enumerate(document["images"])}
    label = {category["id"]: i for i, category in enumerate(document["categories"])}
    boxes = np.array([a["bbox"] for a in document["annotations"]], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        np.array([index[a["image_id"]] for a in document["annotations"]]),
        boxes,
        np.array([label[a["category_id"]] for a in document["annotations"]]),
    )


def _found(rows: pa.Table, image_of: Mapping[tuple[str, int], int]) -> Found:
    from models.mamba.evaluate import Found

    keys = zip(rows.column("stream_id").to_pylist(), rows.column("sequence").to_pylist(), strict=True)
    image_T = np.array([image_of[key] for key in keys], np.int64)
    lists = rows.column("detections").combine_chunks()
    found = lists.flatten()
    boxes = np.stack([pc.struct_field(found, edge).to_numpy(zero_copy_only=False) for edge in ("x1", "y1", "x2", "y2")], 1)
    count_T = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    label_D = pc.struct_field(found, "label").to_numpy(zero_copy_only=False)
    score_D = pc.struct_field(found, "score").to_numpy(zero_copy_only=False)
    return Found(np.repeat(image_T, count_T), boxes, label_D.astype(np.int64), score_D)


def _print_result(console: Console, truth: Path, result: Result, seconds: float, out: Path) -> None:
    tables = {name: result.table(f"{name}_rows") for name in _DETECTORS}
    scores = {name: map50(truth, table) for name, table in tables.items()}
    summary = Table()
    summary.add_column("detector")
    summary.add_column("mAP50", justify="right")
    for name, label in _DETECTORS.items():
        summary.add_row(label, f"{scores[name]:.3f}")
    summary.add_row("what the memory gained", f"{scores['memory'] - scores['single_frame']:+.3f}", style="bold")
    console.print(summary)
    rows = sum(table.num_rows for table in tables.values())
    bank_bytes = sum(task.gauges.get("bank_bytes", 0.0) for task in result.report.tasks if task.task.node == "memory")
    console.print(f"rows        {rows:,} ({len(_DETECTORS)} detectors x {len(_SEEDS)} videos x {_FRAMES} frames)")
    console.print(f"frames/s    {rows / result.report.seconds:.0f} (and {seconds - result.report.seconds:.0f} s to start Ray)")
    console.print(f"bank        {int(bank_bytes):,} bytes for {len(_SEEDS)} videos, however long they are")
    video = next(iter(sorted((out / "video").rglob("*.mp4"))), None)
    command = _command()
    console.print("\nLook at it:")
    if video is not None:
        console.print(f"  {video}   left: one frame at a time, right: with memory")
    console.print(f"  {command} view {out / 'rows' / 'memory'}")
    console.print(f"  {command} inspect {out / 'state'}")
    console.print("Type next:")
    console.print(f"  {command} describe mamba")
    sets = " ".join(f"--set {key}={shlex.quote(value)}" for key, value in _places(out, "again").items())
    console.print(f"  {command} run {_PIPELINE.stem} --runner local {sets}")


def _command() -> str:
    """Return how to call ``streambank`` from here: by its name where that finds this installation, else by its path."""
    here = Path(sys.executable).parent / "streambank"
    if Path(shutil.which("streambank") or "") == here:
        return "streambank"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
