"""The demos: how they are run, what they leave alone, and the score of detections, on rows whose score is known."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pyarrow as pa
import pytest
from click.testing import CliRunner

from connectors.errors import ConfigError
from models.hub import weights_file
from models.mamba.shapes import ShapesConfig, render_clips
from pipelines import Pipeline, registry
from pipelines.cli import cli
from pipelines.demos import runner
from pipelines.demos.mamba import again, map50, told_apart
from pipelines.demos.runner import DEMOS, Shown, Worth, run_demo
from pipelines.viewing.view import view

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


def stand_in(monkeypatch: pytest.MonkeyPatch, show: Callable[[Path, runner.Say], Shown]) -> None:
    """Let the demo of mamba do something that takes no time."""
    monkeypatch.setitem(sys.modules, "pipelines.demos.mamba", SimpleNamespace(show=show))


def shown(out: Path, say: runner.Say) -> Shown:
    say("Making a picture")
    (out / "rows").mkdir()
    (out / "picture.png").write_bytes(b"pixels")
    gained = [("without", "0.5"), ("with", "0.9"), ("gained", "+0.4")]
    return Shown(
        title="mAP50",
        columns=("detector", "mAP50"),
        rows=gained,
        worth=Worth("mAP50", *(row[1] for row in gained[:2])),
        look=[(f"{out / 'picture.png'}", "boxes")],
    )


def test_a_demo_ends_with_a_table_and_a_picture_and_may_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, shown)
    for _ in range(2):
        assert run_demo("mamba", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "1. Making a picture" in said and "gained" in said and "+0.4" in said
    assert f"{tmp_path / 'out' / 'picture.png'}   boxes" in said


def test_a_demo_leaves_a_folder_alone_that_holds_other_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, shown)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other things than a demo; name another folder behind the demo's name"):
        run_demo("mamba", tmp_path)
    run_demo("mamba", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()  # put there later, by the user
    with pytest.raises(ConfigError, match="holds other things"):
        run_demo("mamba", tmp_path / "out")
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "out" / "notes.txt").exists()


def test_a_demo_that_is_stopped_says_so_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(out: Path, say: runner.Say) -> Shown:
        (out / "film.mp4").touch()
        raise KeyboardInterrupt

    stand_in(monkeypatch, stopped)
    assert run_demo("mamba", tmp_path / "out") == 130
    assert "stopped; what is there so far lies in" in capsys.readouterr().out
    stand_in(monkeypatch, shown)
    assert run_demo("mamba", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "film.mp4").exists()


def test_a_demo_whose_pipeline_is_stopped_ends_there() -> None:
    def stopped(runner: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(report=SimpleNamespace(status="stopped"))

    with pytest.raises(KeyboardInterrupt):
        runner.run(SimpleNamespace(run=stopped))  # type: ignore[arg-type]


def test_the_command_lists_the_demos_one_for_each_method_and_knows_no_others() -> None:
    listed = CliRunner().invoke(cli, ["demo"])
    assert listed.exit_code == 0 and [line.split()[0] for line in listed.output.splitlines()] == list(DEMOS)
    operators = {entry.name for entry in registry.entries("operator")}
    assert set(DEMOS) <= operators and len(DEMOS) == 8
    assert all((Path(runner.__file__).parent / f"{name}.py").is_file() for name in DEMOS)
    wrong = CliRunner().invoke(cli, ["demo", "mambo"])
    assert wrong.exit_code == 2 and "there is no demo 'mambo' (did you mean 'mamba'?)" in wrong.output


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DEMOS if name != "mamba"])  # which starts Ray of its own
def test_a_demo_shows_what_the_memory_is_worth(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(name, tmp_path / "out") == 0
    said = capsys.readouterr().out
    picture = re.search(r"Look at it:\n  (\S+\.png)", said)
    assert picture is not None and cv2.imread(picture[1]) is not None
    (gained,) = re.findall(r"│ [^│]*gained\s*│(.*)│", said)
    better = re.findall(r"\(([-+]\d[\d.]*)\)", gained) or re.findall(r"[-+]\d[\d.]*", gained)
    assert runner._is_ours(tmp_path / "out"), "it can be run again"
    for folder in re.findall(r"streambank view (\S+)", said):
        assert view(Path(folder)), "what is told to be typed next works"
    assert better and all(float(number) * (-1 if name == "reloop2" else 1) > 0 for number in better), said


def test_a_ready_pipeline_writes_where_the_user_is_and_finds_the_weights_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = Pipeline.load("shapes_demo").spec
    assert spec.state == tmp_path / "demo" / "state"
    assert all(sink.options.path.is_relative_to(tmp_path / "demo") for sink in spec.sinks)
    assert all(Path(operator.options.checkpoint).is_file() for operator in spec.operators)


def test_the_picture_of_the_detectors_shows_first_what_only_the_memory_gets_right(truth: Path) -> None:
    right, wrong = rows(truth), rows(truth, wrong_class=True)
    order = [(name, number) for name in ("clip0001", "clip0002") for number in range(4)]
    names = sorted({key for key in right.column("stream_id").to_pylist()})
    at = next(i for i, found in enumerate(right.column("detections").to_pylist()) if found)
    mixed = right.to_pylist()
    mixed[at] = wrong.to_pylist()[at]
    single = pa.Table.from_pylist(mixed, schema=right.schema)
    best = told_apart(truth, {"memory": right, "single_frame": single})
    key = (mixed[at]["stream_id"], mixed[at]["sequence"])
    assert len(best) == len(order) and key in best[: len(names)]
    assert {name for name, _ in best[: len(names)]} == set(names), "one frame of each film first"


def test_the_pipeline_of_the_demo_can_be_run_again_from_its_folder_without_ray(tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(again())
    spec = Pipeline.load(tmp_path / "again.yaml").spec
    assert spec.runner == "local" and spec.state == tmp_path / "again" / "state"
    assert all(weights_file(operator.options.checkpoint).is_file() for operator in spec.operators)
    assert all(sink.options.path.is_relative_to(tmp_path / "again") for sink in spec.sinks)
    assert "again.yaml" in runner._WRITTEN and "again" in runner._WRITTEN, "the demo itself can be run again"
