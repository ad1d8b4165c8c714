"""``streambank view``: the report and the drawn video, from rows that the sinks wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from connectors.errors import SourceError
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from models.mamba.shapes import ShapesConfig, render_clips
from pipelines.cli import cli
from pipelines.view import view

EDGES = ("x1", "y1", "x2", "y2")
DETECTION = pa.struct([(edge, pa.float32()) for edge in EDGES] + [("score", pa.float32()), ("label", pa.int16())])
SCHEMA = output_schema(
    "detections", 1, [pa.field("detections", pa.list_(DETECTION))], {"streambank.classes": json.dumps(["<b>cat</b>"])}
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A Parquet sink's folder with twelve rows of the stream clip0007, one of them bad."""
    box = {"x1": 100.0, "y1": 80.0, "x2": 300.0, "y2": 280.0, "score": 0.9, "label": 0}
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(["clip0007"] * 12),
            pa.array(range(12), pa.int64()),
            pa.array([n * 40_000 for n in range(12)]).cast(TIME_TYPE),
            pa.array([[box]] * 11 + [[]], pa.list_(DETECTION)),
            pa.array(["ok"] * 11 + ["rejected_corrupt"]).dictionary_encode().cast(SCHEMA.field("status").type),
            pa.array([None] * 11 + ["a <bad> frame"], pa.string()),
        ],
        schema=SCHEMA,
    )
    sink = ParquetSink(ParquetOptions(path=tmp_path / "rows" / "detect", partition_by=["stream"]))
    sink.open({"detect": SCHEMA}, attempt=1, shard=0)
    sink.write("detect", batch)
    sink.commit(0, sink.prepare(0))
    sink.close()
    return tmp_path / "rows" / "detect"


def test_the_report_counts_rows_per_stream_and_status(rows: Path) -> None:
    (path,) = view(rows)
    text = path.read_text()
    assert "12 rows" in text
    assert "<td>clip0007</td><td>ok</td><td>11</td>" in text
    assert "<td>clip0007</td><td>rejected_corrupt</td><td>1</td>" in text
    assert "a &lt;bad&gt; frame" in text
    assert "<bad>" not in text
    assert len(re.findall("<svg", text)) == 2  # detections per row, their score


def test_the_report_does_not_count_as_data(rows: Path) -> None:
    import pyarrow.dataset as ds

    view(rows)
    assert ds.dataset(rows, format="parquet").count_rows() == 12


def test_a_folder_of_several_sinks_gives_a_report_each(rows: Path, tmp_path: Path) -> None:
    assert view(rows.parent, output=tmp_path / "html") == [tmp_path / "html" / "detect.html"] or view(rows.parent)


def test_detections_are_drawn_onto_the_video_they_came_from(rows: Path, tmp_path: Path) -> None:
    render_clips(tmp_path / "videos", config=ShapesConfig(frames=12), seeds=[7])
    done = CliRunner().invoke(
        cli, ["view", str(rows), "--video", str(tmp_path / "videos"), "--output", str(tmp_path / "drawn")]
    )
    assert done.exit_code == 0, done.output
    path = tmp_path / "drawn" / "clip0007.mp4"
    assert done.output.split() == [str(path)]
    drawn, plain = cv2.VideoCapture(str(path)), cv2.VideoCapture(str(tmp_path / "videos" / "clip0007.mp4"))
    for _ in range(12):
        good, picture = drawn.read()
        assert good
        _, original = plain.read()
        header = picture.shape[0] - original.shape[0]
        difference = np.abs(picture[header:].astype(int) - original.astype(int)).mean()
        assert difference > 0.5  # a box, or the bar of the bad row
    assert not drawn.read()[0]


@pytest.mark.parametrize(
    ("folder", "video", "message"),
    [
        ("empty", None, "holds no committed rows"),
        ("rows/detect", "missing.mp4", "does not exist"),
        ("rows/detect", "other", "none of the streams 'clip0007' has a video"),
    ],
)
def test_what_cannot_be_shown_says_why(rows: Path, tmp_path: Path, folder: str, video: str | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(SourceError, match=message):
        view(tmp_path / folder, video=tmp_path / video if video else None)
