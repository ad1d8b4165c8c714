"""What the demo prints: its score, on rows whose score is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.mamba.shapes import ShapesConfig, render_clips
from pipelines.demo import map50

EDGES = ("x1", "y1", "x2", "y2")
DETECTION = pa.struct([(edge, pa.float32()) for edge in EDGES] + [("score", pa.float32()), ("label", pa.int16())])


def rows(truth: Path, *, wrong_class: bool = False, every: int = 1) -> pa.Table:
    """Return the ground truth itself as detection rows, the streams interleaved."""
    document = json.loads(truth.read_text())
    names = {video["id"]: video["name"] for video in document["videos"]}
    found: dict[tuple[str, int], list[dict[str, Any]]] = {
        (names[image["video_id"]], image["frame_id"]): [] for image in document["images"]
    }
    image_of = {image["id"]: (names[image["video_id"]], image["frame_id"]) for image in document["images"]}
    for number, annotation in enumerate(document["annotations"]):
        x, y, w, h = annotation["bbox"]
        label = annotation["category_id"] - 1 + wrong_class
        if number % every == 0:
            box = dict(zip(EDGES, (x, y, x + w, y + h), strict=True))
            found[image_of[annotation["image_id"]]].append({**box, "score": 0.9, "label": label})
    keys = sorted(found, key=lambda key: (key[1], key[0]))
    columns = {
        "stream_id": [key[0] for key in keys],
        "sequence": [key[1] for key in keys],
        "detections": pa.array([found[key] for key in keys], pa.list_(DETECTION)),
    }
    return pa.table(columns)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return render_clips(tmp_path, config=ShapesConfig(frames=4), seeds=[1, 2])


def test_the_truth_itself_scores_one(truth: Path) -> None:
    assert map50(truth, rows(truth)) == pytest.approx(1.0)


def test_wrong_classes_score_nothing(truth: Path) -> None:
    assert map50(truth, rows(truth, wrong_class=True)) == 0.0


def test_missing_objects_lower_the_score(truth: Path) -> None:
    assert 0.2 < map50(truth, rows(truth, every=2)) < 0.8
