"""Bad recordings through a whole pipeline: each gives rows that say so, and the good streams are what they are alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pytest
from click.testing import CliRunner

from models.mamba.shapes import ShapesConfig, render_clips
from pipelines import Pipeline
from pipelines.cli import cli

WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "mamba" / "weights" / "shapes.safetensors"
FRAMES = 24
SMALL_BANKS = {"max_length": 200, "key_length": 50, "write_topk": 12, "max_streams": 8}


def pipeline(folder: Path, source: dict[str, Any], runner: str = "local") -> dict[str, Any]:
    return {
        "name": "bad_input",
        "state": str(folder / "state"),
        "runner": runner,
        "sources": {"clips": source},
        "operators": {"detect": {"type": "mamba", "input": "clips", "checkpoint": str(WEIGHTS), **SMALL_BANKS}},
        "sinks": {"rows": {"type": "parquet", "input": "detect", "path": str(folder / "rows")}},
    }


def by_stream(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.drop_columns(["latency_ms"]).to_pylist():
        rows.setdefault(row["stream_id"], []).append(row)
    return rows


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    render_clips(folder, config=ShapesConfig(frames=FRAMES), seeds=[1, 2])
    return folder


def test_broken_videos_give_error_rows_and_touch_no_other_stream(clips: Path, tmp_path: Path) -> None:
    alone = by_stream(
        Pipeline.from_dict(pipeline(tmp_path / "alone", {"type": "video", "path": str(clips / "*.mp4")})).run().table("rows")
    )
    whole = (clips / "clip0001.mp4").read_bytes()
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "garbage.mp4").write_bytes(bytes(range(256)) * 40)
    (clips / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    rows = by_stream(
        Pipeline.from_dict(pipeline(tmp_path / "all", {"type": "video", "path": str(clips / "*.mp4")})).run().table("rows")
    )
    assert set(rows) == {"clip0001", "clip0002", "empty", "garbage", "truncated"}
    for name in ("clip0001", "clip0002"):
        assert [row["sequence"] for row in rows[name]] == list(range(FRAMES))
        for mine, other in zip(rows[name], alone[name], strict=True):
            assert [d["label"] for d in mine["detections"]] == [d["label"] for d in other["detections"]]
            assert [d["score"] for d in mine["detections"]] == pytest.approx(
                [d["score"] for d in other["detections"]], abs=1e-4
            )
    for name in ("empty", "garbage", "truncated"):
        assert {row["status"] for row in rows[name]} == {"rejected_corrupt"}
        assert all(row["error"] for row in rows[name])


def test_a_folder_with_one_bad_image_loses_that_image_only(tmp_path: Path) -> None:
    render_clips(tmp_path, config=ShapesConfig(frames=6), seeds=[3])
    images = tmp_path / "images" / "cam"
    images.mkdir(parents=True)
    capture = cv2.VideoCapture(str(tmp_path / "clip0003.mp4"))
    for n in range(6):
        cv2.imwrite(str(images / f"{n}.png"), capture.read()[1])
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:100])
    (rows,) = by_stream(
        Pipeline.from_dict(pipeline(tmp_path, {"type": "images", "path": str(images)})).run().table("rows")
    ).values()
    assert [row["status"] == "rejected_corrupt" for row in rows] == [n == 2 for n in range(6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"clips": {"path": "nowhere/*.mp4"}}}, "nowhere"),
        ({"operators": {"detect": {"key_lenght": 3}}}, "did you mean 'key_length'?"),
        ({"operators": {"detect": {"checkpoint": "clips/clip0001.mp4"}}}, "clip0001.mp4"),
        ({"operators": {"detect": {"device": "cuda:7"}}}, "cuda:7"),
    ],
)
def test_what_is_wrong_before_the_start_is_one_clear_line(
    clips: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document = pipeline(tmp_path, {"type": "video", "path": str(clips / "*.mp4")})
    for group, nodes in change.items():
        for name, options in nodes.items():
            document[group][name] |= options
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(document))
    done = CliRunner().invoke(cli, ["run", str(path)])
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "rows").exists()
