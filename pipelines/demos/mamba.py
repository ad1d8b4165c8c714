"""Four videos at once through Ray, into a detector with a memory and one without: what the memory gained.

All the work is done by the ready pipeline ``configs/shapes_demo.yaml``; this file renders its input, runs it, and compares the
committed rows with the ground truth. ``make demo`` runs it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.extras import optional
from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

if TYPE_CHECKING:
    from models.mamba.evaluate import Found, Objects

cv2 = optional("cv2")

__all__ = ["map50", "show"]

_PIPELINE = CONFIGS / "shapes_demo.yaml"
_SEEDS = range(900_000, 900_004)  # scenes that no training run draws
_FRAMES = 96
_DETECTORS = {"single_frame": "one frame at a time", "memory": "with memory of the past"}
_PICTURE = 40  # the frame that is shown


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from models.mamba.shapes import ShapesConfig, render_clips
    from pipelines import Pipeline

    say(f"Rendering {len(_SEEDS)} videos of {_FRAMES} frames, with blur, noise and occlusion: {out / 'videos'}")
    truth = render_clips(out / "videos", config=ShapesConfig(frames=_FRAMES), seeds=_SEEDS)
    say("Replaying them at once through Ray (about 10 s to start it), into a detector with a memory and one without")
    began = time.monotonic()
    result = run(Pipeline.load(_PIPELINE, overrides=_places(out)), runner="ray")
    seconds = time.monotonic() - began
    say("Comparing the rows in Parquet with the ground truth")
    tables = {name: result.table(f"{name}_rows") for name in _DETECTORS}
    scores = {name: map50(truth, table) for name, table in tables.items()}
    rows = sum(table.num_rows for table in tables.values())
    bank_bytes = sum(task.gauges.get("bank_bytes", 0.0) for task in result.report.tasks if task.task.node == "memory")
    video = min((out / "video").rglob("*.mp4"))
    _write_frame(video, out / "picture.png")
    sets = " ".join(f"--set {key}={shlex.quote(value)}" for key, value in _places(out, "again").items())
    return Shown(
        title="Average precision at IoU 0.5 (mAP50), over all frames",
        columns=("detector", "mAP50"),
        rows=[
            *((label, f"{scores[name]:.3f}") for name, label in _DETECTORS.items()),
            ("what the memory gained", f"{scores['memory'] - scores['single_frame']:+.3f}"),
        ],
        worth=Worth(
            "the class of an object whose color blur and occlusion destroy: mAP50",
            f"{scores['single_frame']:.3f}",
            f"{scores['memory']:.3f}",
        ),
        facts=[
            f"rows        {rows:,} ({len(_DETECTORS)} detectors x {len(_SEEDS)} videos x {_FRAMES} frames)",
            f"frames/s    {rows / result.report.seconds:.0f} (and {seconds - result.report.seconds:.0f} s to start Ray)",
            f"bank        {int(bank_bytes):,} bytes for {len(_SEEDS)} videos, however long they are",
        ],
        look=[
            (f"{out / 'picture.png'}", "left: one frame at a time, right: with memory"),
            (f"{video}", "the same, moving"),
        ],
        next=[
            f"view {out / 'rows' / 'memory'}",
            f"inspect {out / 'state'}",
            "describe mamba",
            f"run {_PIPELINE.stem} --runner local {sets}",
        ],
    )


def _write_frame(video: Path, picture: Path) -> None:
    capture = cv2.VideoCapture(str(video))
    try:
        for _ in range(_PICTURE):
            capture.grab()
        there, frame = capture.read()
    finally:
        capture.release()
    if there:
        cv2.imwrite(str(picture), frame)


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
