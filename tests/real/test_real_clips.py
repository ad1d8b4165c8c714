"""The real clips of the shared data, replayed at once: a row per frame and stream, container times, readable anywhere."""

from __future__ import annotations

from pathlib import Path

import decord
import duckdb
import pyarrow.dataset as ds
import pytest
from real_data import REAL_DATA

from pipelines import Pipeline

CLIPS = REAL_DATA / "av"
WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "mamba" / "weights" / "shapes.safetensors"

pytestmark = pytest.mark.skipif(not any(CLIPS.glob("*.mp4")), reason=f"no real clips in {CLIPS}; set STREAMBANK_DATA")


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("null", {"max_batch": 64}),
        pytest.param(
            "mamba",
            {"checkpoint": str(WEIGHTS), "max_length": 200, "key_length": 50, "write_topk": 12, "max_streams": 8},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_clips_replayed_at_once_give_a_row_per_frame_at_the_container_time(
    tmp_path: Path, operator: str, options: dict
) -> None:
    Pipeline.from_dict(
        {
            "name": "real",
            "state": str(tmp_path / "state"),
            "sources": {"clips": {"type": "video", "path": str(CLIPS / "*.mp4"), "parallelism": 2}},
            "operators": {"op": {"type": operator, "input": "clips", "shards": 2, **options}},
            "sinks": {
                "rows": {"type": "parquet", "input": "op", "path": str(tmp_path / "rows"), "partition_by": ["stream", "date"]}
            },
        }
    ).run()
    table = ds.dataset(tmp_path / "rows", format="parquet").to_table()
    counted = dict(duckdb.sql(f"select stream_id, count(*) from '{tmp_path}/rows/**/*.parquet' group by 1").fetchall())
    clips = sorted(CLIPS.glob("*.mp4"))
    assert set(counted) == {clip.stem for clip in clips}
    for clip in clips:
        reader = decord.VideoReader(str(clip), num_threads=1)
        times_us = [round(float(start) * 1e6) for start, _ in reader.get_frame_timestamp(range(len(reader)))]
        rows = table.filter(ds.field("stream_id") == clip.stem)
        assert counted[clip.stem] == len(times_us)
        assert rows.column("sequence").to_pylist() == list(range(len(times_us)))
        assert rows.column("event_time").cast("int64").to_pylist() == pytest.approx(times_us, abs=1)
