"""``streambank init``: every file that it can write passes ``check``, and the first example is whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rgbd_folders import tum_folder

from models.mamba.annotations import read_annotations
from pipelines import Pipeline
from pipelines.cli import cli
from pipelines.commands.init import EXAMPLES, INPUTS, outputs_of, pipeline_text, tasks_of
from pipelines.demos.belt import FPS, KINDS, make_belt, write_belt


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One input of each kind, and where it is."""
    folder = tmp_path_factory.mktemp("inputs")
    write_belt(make_belt(0, 2), folder / "a film.mp4")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "a.png"), np.zeros((40, 40, 3), np.uint8))
    (folder / "a.csv").write_text("x,y\n1,2\n")
    (folder / "a.jsonl").write_text('{"stream_id": "a", "x": 1}\n')
    keys = {"stream_id": ["a"], "sequence": [0], "event_time": pa.array([0], pa.timestamp("us", tz="UTC"))}
    pq.write_table(pa.table(keys), folder / "a.parquet")
    tum_folder(folder / "scan")
    places = {"video": "*.mp4", "images": "pictures", "rgbd": "scan", "sensors": "*.csv", "csv": "*.csv", "host": ""}
    places |= {"jsonl": "a.jsonl", "parquet": "a.parquet"}
    return {name: str(folder / place) for name, place in places.items()} | {"camera": "rtsp://127.0.0.1:1/gate"}


@pytest.mark.parametrize("comes", INPUTS)
def test_every_choice_gives_a_file_that_passes_check(comes: str, inputs: dict[str, str], tmp_path: Path) -> None:
    for task in tasks_of(comes):
        text = pipeline_text("first", "first.yaml", comes, task, outputs_of(comes, task), inputs[comes])
        (tmp_path / "first.yaml").write_text(text)
        pipeline = Pipeline.load(tmp_path / "first.yaml")
        if comes != "camera":  # there is none to look at
            assert [finding for finding in pipeline.check() if finding.level == "error"] == [], text


def test_the_command_writes_what_the_options_say_and_refuses_to_replace_it(tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "gates"), "--in", "video", "--place", "[a].mp4", "--do", "objects", "--out", "film"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    spec = Pipeline.load(tmp_path / "gates.yaml").spec
    assert spec.name == "gates" and [sink.type for sink in spec.sinks] == ["annotated_video"]
    assert "is there; name another file" in CliRunner().invoke(cli, arguments).output


def test_choices_that_do_not_fit_are_refused_with_what_does(tmp_path: Path) -> None:
    for wrong, says in (
        (["--in", "vidoe"], "--in 'vidoe' does not fit (did you mean 'video'?)"),
        (["--in", "csv", "--do", "objects"], "--do 'objects' does not fit; allowed here: nothing"),
        (["--in", "csv", "--do", "nothing", "--out", "wav"], "--out 'wav' does not fit; allowed here: parquet, jsonl"),
        (["--in", "video"], "Nobody is there to ask; say it by an option: objects, answers, sound, nothing"),
    ):
        done = CliRunner().invoke(cli, ["init", str(tmp_path / "x"), *wrong])
        assert done.exit_code == 2 and says in done.output, done.output
    assert list(tmp_path.iterdir()) == []


def test_the_first_example_is_the_film_of_this_project_with_three_boxes_on_its_fruit(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["init", "--example", "fruit", str(tmp_path / "fruit")])
    assert done.exit_code == 0 and "--preset few --out weights" in done.output
    annotated = read_annotations(tmp_path / "fruit" / "boxes.csv")
    belt = make_belt(4)
    boxes, labels = belt.boxes(int(annotated.frame_I[0]))
    truth = {KINDS[label]: box for box, label in zip(boxes, labels, strict=True)}
    for box, label in zip(*annotated.objects(0), strict=True):
        assert np.abs(box - truth[annotated.classes[label]]).max() < 4, "drawn by hand, near the outline"
    capture = cv2.VideoCapture(str(EXAMPLES / "fruit" / "clips" / "belt.mp4"))
    _, first = capture.read()
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS, abs=0.1)
    assert np.abs(first[..., ::-1].astype(int) - belt.frame(0)).mean() < 6
    again = CliRunner().invoke(cli, ["init", "--example", "fruit", str(tmp_path / "fruit")])
    assert again.exit_code == 2 and "is there and not empty" in again.output
    assert "did you mean 'fruit'" in CliRunner().invoke(cli, ["init", "--example", "friut", str(tmp_path / "b")]).output


@pytest.mark.slow
def test_three_boxes_make_a_detector_of_other_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(cli, ["init", "--example", "fruit", "."])
    arguments = "train mamba --annotations boxes.csv --init package://mamba/shapes --preset few --out weights"
    assert CliRunner().invoke(cli, arguments.split()).exit_code == 0
    (tmp_path / "clips" / "belt.mp4").unlink()
    belt = make_belt(32, 60)
    write_belt(belt, tmp_path / "clips" / "other.mp4")
    result = Pipeline.load("detect.yaml").run()
    found = result.detections("rows", min_score=0.5).to_pylist()
    right = 0
    for box in found:
        boxes, labels = belt.boxes(box["sequence"])
        corners = np.array([box[edge] for edge in ("x1", "y1", "x2", "y2")])
        near = [KINDS[label] for each, label in zip(boxes, labels, strict=True) if np.abs(each - corners).max() < 25]
        right += box["class"] in near
    assert len(found) > 120 and right > 0.85 * len(found)
