"""What the demo prints: its score, on rows whose score is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.mamba.shapes import ShapesConfig, render_clips
from pipelines import Pipeline
from pipelines.demo import main, map50

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


def test_the_demo_refuses_a_folder_that_holds_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    assert main([str(tmp_path)]) == 2
    assert "holds other things than a demo; name another folder: python -m pipelines.demo FOLDER" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_the_demo_says_which_arguments_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 2
    assert "give one folder, or none for 'demo'; got: --help" in capsys.readouterr().err


def test_a_ready_pipeline_writes_where_the_user_is_and_finds_the_weights_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Pipeline.load("shapes_demo").spec
    assert spec.state == tmp_path / "demo" / "state"
    assert all(sink.options.path.is_relative_to(tmp_path / "demo") for sink in spec.sinks)
    assert all(Path(operator.options.checkpoint).is_file() for operator in spec.operators)
