"""``streambank view`` of states: bands of segments or samples, before and after prompts, under the signals they belong to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from connectors.records import TIME_TYPE, key_schema, output_schema, sample_schema
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from pipelines.viewing.states import Band, StreamPicture, needed, pictures
from pipelines.viewing.view import view

SEGMENTS = output_schema(
    "segments",
    1,
    [
        pa.field("granularity", pa.int8()),
        pa.field("segment_id", pa.int64()),
        pa.field("end_time", TIME_TYPE),
        pa.field("state", pa.int32()),
        pa.field("n_samples", pa.int64()),
        pa.field("final", pa.bool_()),
        pa.field("revision", pa.int32()),
    ],
)
STATES = output_schema(
    "states", 1, [pa.field("state", pa.int32()), pa.field("final", pa.bool_()), pa.field("revision", pa.int32())]
)
PROMPTS = key_schema(
    "prompt",
    1,
    [
        pa.field("prompt_id", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("at", TIME_TYPE),
        pa.field("at_offset_s", pa.float64()),
        pa.field("state", pa.int32()),
        pa.field("boundary", pa.bool_()),
        pa.field("aspect", pa.string()),
    ],
)
SAMPLES = sample_schema(["acc <x>", "gyro"])
S = 1_000_000


def rows(schema: pa.Schema, *values: dict[str, Any]) -> pa.RecordBatch:
    """Rows of a schema; times are seconds."""
    times = {field.name for field in schema if field.type == TIME_TYPE}
    filled = [
        {name: int(value * S) if name in times and value is not None else value for name, value in row.items()}
        for row in values
    ]
    return pa.RecordBatch.from_pylist([{"sequence": 0, **row} for row in filled], schema=schema)


def segment(stream: str, id: int, start: float, end: float, state: int, **more: Any) -> dict[str, Any]:
    plain = {"granularity": 0, "n_samples": 5, "final": True, "revision": 0, "status": "ok"}
    return {**plain, "stream_id": stream, "segment_id": id, "event_time": start, "end_time": end, "state": state, **more}


REVISED = rows(
    SEGMENTS,
    segment("a", 0, 0, 1, 3, final=False),
    segment("a", 0, 0, 4, 3),
    segment("a", 1, 4, 9, 5),
    segment("b", 0, 0, 9, 1),
    segment("a", 0, 0, 6, 3, revision=1),
    segment("a", 1, 4, 9, 5, revision=1, n_samples=0),
    segment("a", 2, 6, 9, 7, revision=1),
    segment("a", 9, 0, 9, 2, granularity=1),
)


def table(batch: pa.RecordBatch) -> pa.Table:
    found = needed(pa.Table.from_batches([batch]))
    assert found is not None
    return found


def test_of_each_segment_the_last_row_counts_and_the_first_sayings_are_kept_where_they_were_revised() -> None:
    a, b = pictures([table(REVISED)])
    fine, coarse = a.tracks
    assert (fine.name, coarse.name) == ("level 0", "level 1")
    assert fine.after == [Band(0, 6 * S, 3), Band(6 * S, 9 * S, 7)]
    assert fine.before == [Band(0, 4 * S, 3), Band(4 * S, 9 * S, 5)]
    assert (coarse.after, coarse.before) == ([Band(0, 9 * S, 2)], [])
    assert [(track.name, track.after, track.before) for track in b.tracks] == [("states", [Band(0, 9 * S, 1)], [])]


def test_states_of_samples_become_bands_and_final_ones_win() -> None:
    said = [(0, 1, True, 0), (1, 1, True, 0), (2, 4, False, 0), (3, 4, True, 0), (2, 1, True, 0), (3, 1, True, 1)]
    batch = rows(
        STATES,
        *({"stream_id": "a", "event_time": t, "state": s, "final": f, "revision": r, "status": "ok"} for t, s, f, r in said),
    )
    [a] = pictures([table(batch)])
    assert a.tracks[0].after == [Band(0, 3 * S, 1)]
    assert a.tracks[0].before == [Band(0, 3 * S, 1), Band(3 * S, 3 * S, 4)]


def test_segments_are_drawn_rather_than_the_states_they_are_made_of_and_other_tables_are_left_alone() -> None:
    states = rows(STATES, {"stream_id": "z", "event_time": 0, "state": 1, "final": True, "revision": 0, "status": "ok"})
    assert [picture.stream for picture in pictures([table(states), table(REVISED)])] == ["a", "b"]
    assert needed(pa.table({"stream_id": ["a"], "event_time": pa.array([0], TIME_TYPE), "x": [1]})) is None
    assert pictures([table(rows(PROMPTS, {"stream_id": "a", "event_time": 1, "kind": "label", "state": 3}))]) == []
    assert pictures([]) == []


def test_prompts_stand_at_the_time_that_they_are_about() -> None:
    told = {"stream_id": "a", "event_time": 8, "kind": "label", "state": 3, "prompt_id": "p"}
    said = rows(
        PROMPTS,
        told,
        {**told, "at": 2, "aspect": "incorrect"},
        {**told, "at_offset_s": 1.5},
        {**told, "at_offset_s": -3.0, "kind": "boundary", "state": None, "boundary": False},
        {**told, "kind": "reset", "state": None},
        {**told, "event_time": 1e6, "at_offset_s": -3.0},  # said today of a file of long ago
    )
    [a, _] = pictures([table(said), table(REVISED)])
    assert a.marks == [
        (8 * S, "3"),
        (2 * S, "not 3"),
        (3 * S // 2, "3"),
        (5 * S, "no boundary"),
        (8 * S, "reset"),
        (a.end_us - 3 * S, "3"),
    ]
    assert a.end_us == max(band.end_us for band in a.tracks[0].after)


def write(folder: Path, batch: pa.RecordBatch) -> None:
    sink = ParquetSink(ParquetOptions(path=folder, partition_by=[]))
    sink.open({"node": batch.schema}, attempt=1, shard=0)
    sink.write("node", batch)
    sink.commit(0, sink.prepare(0))
    sink.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Folders of four sinks: segments, samples (many per pixel), prompts, and something else."""
    steps = np.arange(9000)
    signal = np.where(steps < 4000, np.sin(steps / 20), np.sin(steps / 5) * 3)
    values = [[float(x), None if 5000 < n < 6000 else float(n)] for n, x in zip(steps.tolist(), signal, strict=True)]
    samples = [{"stream_id": "a", "event_time": n / 1000, "values": v} for n, v in zip(steps.tolist(), values, strict=True)]
    write(tmp_path / "out" / "samples", rows(SAMPLES, *samples))
    write(tmp_path / "out" / "segments", REVISED)
    label = {"stream_id": "a", "event_time": 9, "at": 6.5, "kind": "label", "state": 7, "prompt_id": "p<1>"}
    write(tmp_path / "out" / "prompts", rows(PROMPTS, label, {**label, "stream_id": "c"}))
    return tmp_path / "out"


def test_a_page_and_a_picture_per_stream_show_signals_bands_before_and_after_and_prompts(out: Path) -> None:
    written = view(out)
    assert [path.relative_to(out).as_posix() for path in written[-3:]] == ["_states.html", "_states/a.png", "_states/b.png"]
    page = (out / "_states.html").read_text()
    first = page[page.index("<h2>a</h2>") : page.index("<h2>b</h2>")]
    assert "acc &lt;x&gt;" in first
    assert "acc <x>" not in first
    assert [first.count(f">{word}<") for word in ("level 0 before", "level 0 after", "level 1")] == [1, 1, 1]
    bands = re.findall(r"<title>(state \d), [^<]* \d\d:\d\d:(\d\d)\.\d+</title>", first)
    assert bands == [("state 3", "04"), ("state 5", "09"), ("state 3", "06"), ("state 7", "09"), ("state 2", "09")]
    assert "<title>7, 1970-01-01 00:00:06.500</title>" in first  # the prompt, where it is about
    assert first.count("<polyline") == 3  # two signals, of which one is interrupted
    assert len(re.search(r'points="([^"]*)"', first)[1].split()) <= 2 * 1100  # type: ignore[index]  # not a point per sample
    assert page.count("<svg") == 2


def test_the_png_has_a_band_of_each_state_in_its_color(out: Path) -> None:
    view(out)
    picture = cv2.imread(str(out / "_states" / "a.png"))
    height = StreamPicture("a", pictures([table(REVISED)])[0].tracks, channels=["x", "y"]).height
    assert picture.shape == (height, 1100, 3)
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    page = (out / "_states.html").read_text()
    bands = re.findall(r'fill:#(\w\w)(\w\w)(\w\w)"><title>state', page[: page.index("<h2>b</h2>")])
    assert len(set(bands)) == 4
    for red, green, blue in bands:
        assert (int(blue, 16), int(green, 16), int(red, 16)) in colors


def test_rows_without_states_give_no_page_of_states(out: Path) -> None:
    assert [path.name for path in view(out / "samples")] == ["_report.html"]
    assert [path.name for path in view(out / "segments")] == ["_report.html", "_states.html", "a.png", "b.png"]
    assert (out / "segments" / "_states" / "a.png").exists()


def test_any_stream_name_stays_inside_the_folder_and_out_of_the_markup(tmp_path: Path) -> None:
    name = "../<script>alert(1)</script>"
    write(tmp_path / "out", rows(SEGMENTS, segment(name, 0, 0, 9, 3)))
    written = view(tmp_path / "out", output=tmp_path / "elsewhere")
    assert {path.parent.resolve() for path in written} == {tmp_path / "elsewhere", tmp_path / "elsewhere" / "_states"}
    page = (tmp_path / "elsewhere" / "_states.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
