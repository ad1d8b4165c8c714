"""What a result gives to others: tables of pandas, polars and DuckDB, detections one by one, COCO, how it shows itself."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from connectors import extras, records
from connectors.errors import ConfigError
from connectors.extras import MissingExtra
from operators.mamba.schemas import DETECTION
from pipelines import Pipeline
from pipelines.api import Result
from pipelines.detections import coco, explode, supervision

SCHEMA = records.output_schema(
    "detections", 1, [pa.field("detections", pa.list_(DETECTION))], {"streambank.classes": json.dumps(["cat", "dog"])}
)


def box(label: int, score: float, x1: float = 1.0) -> dict[str, Any]:
    return {"x1": x1, "y1": 2.0, "x2": x1 + 4, "y2": 5.0, "score": score, "label": label}


def rows(*found: list[dict[str, Any]] | None) -> pa.Table:
    keys = [{"stream_id": "cam", "sequence": n, "event_time": datetime(2026, 1, 1, tzinfo=UTC)} for n in range(len(found))]
    said = [{**key, "detections": boxes, "status": "ok"} for key, boxes in zip(keys, found, strict=True)]
    return pa.Table.from_pylist(said, schema=SCHEMA)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps({"k": f"<k{n % 2}>", "v": n, "t": n}) for n in range(8)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    events = {"type": "jsonl", "path": "events.jsonl", "stream_id": "k", "event_time": "t", "event_time_unit": "s"}
    kinds = {"rows": "parquet", "lines": "jsonl", "frames": "arrow"}
    sinks = {name: {"type": kind, "input": "events", "path": name} for name, kind in kinds.items()}
    document = {"name": "copy", "state": "state", "sources": {"events": events}, "sinks": sinks}
    return Pipeline.from_dict(document, base=folder).run()


def test_rows_are_tables_of_pandas_polars_and_duckdb(result: Result) -> None:
    table = result.table("rows")
    frame = result.to_pandas("rows")
    assert frame["v"].tolist() == table["v"].to_pylist()
    assert str(frame["event_time"].dtype) == "datetime64[us, UTC]"
    assert result.to_polars("rows")["v"].to_list() == table["v"].to_pylist()
    assert result.to_duckdb("rows").aggregate("sum(v) as total").fetchall() == [(28,)]


def test_what_is_missing_is_named_with_its_extra(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"to_pandas needs pandas, which is not installed; run: .*streambank\[tables\]"):
        result.to_pandas("rows")


def test_a_result_says_what_the_run_said(result: Result) -> None:
    assert repr(result).startswith("copy: finished after ")
    bundle = result._repr_mimebundle_()
    assert bundle["text/plain"] == repr(result)
    page = bundle["text/html"]
    assert page.count("<table>") == 3
    assert page.count("<tr>") == 3 * (1 + 5)
    assert "&lt;k0&gt;" in page and "<k0>" not in page


def test_a_result_without_rows_shows_no_table(result: Result, tmp_path: Path) -> None:
    document = result.spec.to_dict()
    document["sinks"] = {"rows": {**document["sinks"]["rows"], "path": str(tmp_path / "rows")}}
    document["state"] = str(tmp_path / "state")
    stop = threading.Event()
    stop.set()
    assert "<table>" not in Pipeline.from_dict(document).run(stop=stop)._repr_html_()


def test_detections_are_rows_with_the_names_of_their_classes() -> None:
    found = rows([box(0, 0.9), box(1, 0.2)], None, [], [box(1, 0.6), box(7, 0.5)])
    table = explode(found)
    assert table["sequence"].to_pylist() == [0, 0, 3, 3]
    assert table["class"].to_pylist() == ["cat", "dog", "dog", None]
    assert table.schema.names == ["stream_id", "sequence", "event_time", "x1", "y1", "x2", "y2", "score", "label", "class"]
    assert explode(found, classes=["dog"], min_score=0.5)["sequence"].to_pylist() == [3]
    assert explode(found.slice(1, 2)).num_rows == 0
    assert explode(found.slice(3))["sequence"].to_pylist() == [3, 3]


def test_chunks_do_not_matter() -> None:
    found = [rows([box(0, 0.9)], None), rows([box(1, 0.2), box(0, 0.3)])]
    assert explode(pa.concat_tables(found))["score"].to_pylist() == pytest.approx([0.9, 0.2, 0.3])
    assert explode(pa.concat_tables(found).slice(0, 0)).num_rows == 0


def test_coco_has_an_image_for_every_row_that_was_looked_at() -> None:
    made = json.loads(json.dumps(coco(rows([box(0, 0.5)], None, [], [box(1, 0.25, x1=3.0)]))))
    assert [image["file_name"] for image in made["images"]] == ["cam/000000", "cam/000002", "cam/000003"]
    assert made["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    first = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 4.0, 3.0], "area": 12.0, "iscrowd": 0, "score": 0.5}
    second = {"id": 2, "image_id": 3, "category_id": 2, "bbox": [3.0, 2.0, 4.0, 3.0], "area": 12.0, "iscrowd": 0, "score": 0.25}
    assert made["annotations"] == [first, second]


def test_rows_without_detections_and_unknown_classes_are_named() -> None:
    with pytest.raises(ConfigError, match="these rows hold no detections; their columns: stream_id"):
        explode(rows([]).drop_columns(["detections"]))
    with pytest.raises(ConfigError, match=r"there is no class 'catt' \(did you mean 'cat'\?\); the weights know: cat, dog"):
        explode(rows([]), classes=["catt"])


def test_detections_of_each_frame_are_those_of_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the arguments of ``supervision.Detections`` (0.31): the package itself is not needed by anything else here."""
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **given: given))
    found = rows([box(0, 0.9), box(1, 0.2), box(7, 0.8)], None, [], [box(1, 0.6)])
    frames = {sequence: frame for _, sequence, frame in supervision(found, min_score=0.3)}
    assert list(frames) == [0, 2, 3], "rows that nobody looked at have no frame, those without a find have an empty one"
    assert frames[0]["xyxy"].tolist() == [[1, 2, 5, 5], [1, 2, 5, 5]] and frames[0]["class_id"].tolist() == [0, 7]
    assert frames[0]["confidence"].tolist() == pytest.approx([0.9, 0.8])
    assert frames[0]["data"]["class_name"].tolist() == ["cat", ""]
    assert frames[2]["xyxy"].shape == (0, 4)
    assert frames[3]["data"]["class_name"].tolist() == ["dog"]


def test_the_package_itself_draws_and_filters_them() -> None:
    sv = pytest.importorskip("supervision")  # no dependency of anything here: pip install supervision
    found = rows([box(0, 0.9), box(1, 0.4, x1=3.0)], None, [])
    frames = {sequence: frame for _, sequence, frame in supervision(found)}
    assert list(frames) == [0, 2] and all(isinstance(frame, sv.Detections) for frame in frames.values())
    assert [len(frame) for frame in frames.values()] == [2, 0]
    (sure,) = frames[0][frames[0].confidence > 0.5].data["class_name"]
    assert sure == "cat" and frames[0].area.tolist() == [12.0, 12.0]
    for frame in frames.values():
        plain = np.zeros((64, 64, 3), np.uint8)
        drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(plain.copy(), frame), frame)
        assert (drawn != plain).any() == (len(frame) > 0)
    merged = sv.Detections.merge(list(frames.values()))
    assert merged.data["class_name"].tolist() == ["cat", "dog"]


def test_supervision_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtra, match="run: pip install supervision"):
        supervision(rows([box(0, 0.9)]))
