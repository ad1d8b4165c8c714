"""Four videos at once through Ray, into a detector with a memory and one without: what the memory gained.

All the work is done by the ready pipeline ``configs/shapes_demo.yaml``; this file renders its input, runs it, and compares the
committed rows with the ground truth. ``make demo`` runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.charts import Worded, sheet, write_picture
from connectors.extras import optional
from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

if TYPE_CHECKING:
    from models.mamba.evaluate import Found, Objects

cv2 = optional("cv2")

__all__ = ["again", "map50", "show", "told_apart"]

_PIPELINE = CONFIGS / "shapes_demo.yaml"
_SEEDS = range(900_000, 900_004)  # scenes that no training run draws
_FRAMES = 96
_DETECTORS = {"single_frame": "one frame at a time", "memory": "with memory of the past"}
_SHOWN, _SURE = 4, 0.5
"""Frames in the picture, and the score from which a box is drawn."""


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
    frames = _frames(out / "video", truth, told_apart(truth, tables)[:_SHOWN])
    rows_of_two = [("", frames[first : first + 2]) for first in range(0, len(frames), 2)]
    write_picture(out / "picture.png", sheet(rows_of_two, height=300, left=1))
    (out / "again.yaml").write_text(again(), encoding="utf-8")
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
            f"run {out / 'again.yaml'}    (the same without Ray)",
        ],
    )


def told_apart(truth: Path, tables: Mapping[str, pa.Table]) -> list[tuple[str, int]]:
    """Return frames by how many more of their objects the memory gets right, one of each video first."""
    document, image_of = _truth(truth)
    objects = _objects(document)
    right = {name: _right(objects, _found(table, image_of), len(image_of)) for name, table in tables.items()}
    gained_I = right["memory"] - right["single_frame"]
    ordered = sorted(image_of, key=lambda key: -gained_I[image_of[key]])
    best = {name: next(key for key in ordered if key[0] == name) for name in sorted({name for name, _ in ordered})}
    return [*best.values(), *(key for key in ordered if key not in best.values())]


def _right(truth: Objects, found: Found, images: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count in each image the objects that a sure box of their class covers by half, less the sure boxes of another one."""
    import torch

    from models.mamba.boxes import box_iou

    sure_D = found.scores_D >= _SURE
    image_D = found.image_D[sure_D]
    iou_DN = box_iou(torch.from_numpy(found.boxes_D4[sure_D]), torch.from_numpy(truth.boxes_N4)).numpy()
    same_DN = (image_D[:, None] == truth.image_N) & (found.labels_D[sure_D][:, None] == truth.labels_N)
    right_D = ((iou_DN >= 0.5) & same_DN).any(1)
    return np.bincount(image_D, weights=np.where(right_D, 1, -1), minlength=images).astype(np.int64)


def _frames(folder: Path, truth: Path, chosen: Sequence[tuple[str, int]]) -> list[Worded]:
    """Return frames of annotated films, by video and number, with the true classes of their objects."""
    document, image_of = _truth(truth)
    objects, names = _objects(document), [category["name"] for category in document["categories"]]
    pictures = []
    for name, number in chosen:
        true = [names[label] for label in objects.labels_N[objects.image_N == image_of[name, number]]]
        capture = cv2.VideoCapture(str(folder / f"{name}.mp4"))
        try:
            for _ in range(number):
                capture.grab()
            there, frame = capture.read()
        finally:
            capture.release()
        if there:
            pictures.append((frame[..., ::-1], f"in truth: {', '.join(true) or 'nothing'}"))
    return pictures


def again() -> str:
    """Return the pipeline as a file of the demo's folder, which runs in one process and writes into ``again``."""
    import yaml

    document = yaml.safe_load(_PIPELINE.read_text(encoding="utf-8"))
    document |= {"name": "again", "runner": "local"}
    for operator in document["operators"].values():
        operator["checkpoint"] = f"package://mamba/{Path(operator['checkpoint']).stem}"
    for key, value in _places(Path(), "again").items():
        *parents, last = key.split(".")
        part = document
        for parent in parents:
            part = part[parent]
        part[last] = value
    return yaml.safe_dump(document, sort_keys=False)


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

    document, image_of = _truth(truth)
    classes = len(document["categories"])
    return mean_average_precision(_objects(document), _found(rows, image_of), classes=classes).mean


def _truth(file: Path) -> tuple[Mapping[str, Any], dict[tuple[str, int], int]]:
    """Return a COCO-VID document, and the number of each image by video and frame."""
    document = json.loads(file.read_text(encoding="utf-8"))
    names = {video["id"]: video["name"] for video in document["videos"]}
    return document, {(names[image["video_id"]], image["frame_id"]): i for i, image in enumerate(document["images"])}


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
