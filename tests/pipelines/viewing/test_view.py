"""``streambank view``: the report and the drawn video, from rows that the sinks wrote."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from browser import needs_browser, shown
from click.testing import CliRunner

from connectors.errors import SourceError
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from models.mamba.shapes import ShapesConfig, render_clips
from pipelines.cli import cli
from pipelines.viewing import page
from pipelines.viewing.curves import drawings
from pipelines.viewing.view import view

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
    figures = figures_of(text)
    assert [figure["data"][0]["x"] for figure in figures if figure["data"][0]["type"] == "bar"] == [[11, 1], [11]]
    assert "<h3>detections per row</h3><p>median 1, 5 % below 0.55" in text
    assert "<h3>score of detections</h3><p>always 0.9</p>" in text


def test_the_report_does_not_count_as_data(rows: Path) -> None:
    import pyarrow.dataset as ds

    view(rows)
    assert ds.dataset(rows, format="parquet").count_rows() == 12


def figures_of(page: str) -> list[Any]:
    """Return the figures that a page hands to Plotly."""
    [text] = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    figures: list[Any] = json.loads(text)
    assert page.count('class="figure"') == len(figures)
    return figures


def test_one_page_shows_all_sinks_below_a_folder_and_plays_their_films(rows: Path, tmp_path: Path) -> None:
    shutil.copytree(rows, tmp_path / "rows" / "again")
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "clip0007.mp4").write_bytes(Path("docs/images/demo.jpg").read_bytes())  # no film: not shown
    (tmp_path / "video" / "a b.wav").touch()
    assert view(tmp_path, output=tmp_path / "html") == [tmp_path / "html" / "report.html"]
    text = (tmp_path / "html" / "report.html").read_text()
    assert "<tr><td>rows/again</td><td>12</td></tr><tr><td>rows/detect</td><td>12</td></tr>" in text
    assert '<audio controls preload="metadata" src="../video/a%20b.wav">' in text
    assert "<video" not in text


def test_numbers_are_drawn_as_means_over_event_time(tmp_path: Path) -> None:
    count = 30_000
    fields = [pa.field("loss_base", pa.float64()), pa.field("loss_pred", pa.float64()), pa.field("hits", pa.int32())]
    table = pa.table(
        {
            "stream_id": ["a", "b"] * (count // 2),
            "event_time": pa.array(np.arange(count) * 1000).cast(TIME_TYPE),
            "loss_base": np.where(np.arange(count) < count // 2, 1.0, 3.0),
            "loss_pred": pa.array([None, *[0.5] * (count - 1)], pa.float64()),
            "hits": pa.array([2, 4] * (count // 2), pa.int32()),
        },
        schema=pa.schema([pa.field("stream_id", pa.string()), pa.field("event_time", TIME_TYPE), *fields]),
    )
    both, hits = drawings(table)
    assert both.title == "loss: base and pred"
    base, pred, values = both.figure["data"]
    assert [len(line["x"]) for line in (base, pred)] == [300, 300]
    assert base["y"] == [1.0] * 150 + [3.0] * 150
    assert set(pred["y"]) == {0.5}
    assert sum(values["x"]) == 2 * count - 1
    assert base["x"][0] == "1970-01-01T00:00:00.049500"  # the mean of the first 100 rows
    assert [(line["name"], set(line["y"])) for line in hits.figure["data"][:2]] == [("a", {2.0}), ("b", {4.0})]


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_page(rows: Path) -> None:
    (path,) = view(rows)
    assert "main-svg" in shown(path, until="main-svg")


def test_without_plotly_the_page_says_what_to_install(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "missing", lambda _: "plotly is not installed; run: pip install 'streambank[report]'")
    (path,) = view(rows)
    text = path.read_text()
    assert "Curves are not drawn: plotly is not installed" in text
    assert "<script" not in text


def test_the_results_of_a_pipeline_file_are_shown_by_its_name(rows: Path, tmp_path: Path) -> None:
    document = {
        "name": "found",
        "state": "state",
        "sources": {"clips": {"type": "parquet", "path": str(rows)}},
        "operators": {},
        "sinks": {"detect": {"type": "parquet", "input": "clips", "path": str(rows)}},
    }
    (tmp_path / "found.yaml").write_text(json.dumps(document))
    done = CliRunner().invoke(cli, ["view", str(tmp_path / "found.yaml")])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(rows / "_report.html")]
    assert "<h1>found</h1>" in (rows / "_report.html").read_text()


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
