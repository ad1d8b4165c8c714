"""Samples of sensors through whole pipelines: from a table and from this machine into Parquet and back."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from connectors.records import channels_of, sample_values, schema_name
from connectors.sinks.read import committed_files, read_committed
from pipelines.api import Pipeline


def test_this_machine_is_a_live_sensor_whose_samples_can_be_replayed(tmp_path: Path) -> None:
    live = Pipeline.from_dict(
        {
            "name": "live",
            "state": str(tmp_path / "state"),
            "sources": {"here": {"type": "host", "interval_s": 0.05, "duration_s": 0.3, "channels": ["cpu", "memory", "swap"]}},
            "sinks": {"rows": {"type": "parquet", "input": "here", "path": str(tmp_path / "rows"), "partition_by": []}},
        }
    )
    assert live.run().report.all_ok
    schema = pq.read_schema(committed_files(tmp_path / "rows")[0])
    assert (schema_name(schema), channels_of(schema)) == ("sample.v1", ["cpu", "memory", "swap"])
    recorded = read_committed(tmp_path / "rows")
    values, wrong = sample_values(recorded.combine_chunks().to_batches()[0], 3)
    assert not wrong.any()
    assert (values[:, 1] > 0).all()

    again = Pipeline.from_dict(
        {
            "name": "again",
            "state": str(tmp_path / "again"),
            "sources": {"recorded": {"type": "parquet", "path": str(tmp_path / "rows")}},
            "sinks": {"rows": {"type": "parquet", "input": "recorded", "path": str(tmp_path / "copy"), "partition_by": []}},
        }
    )
    assert "rows of sample.v1" in again.check()[0].message
    again.run()
    copied = pq.read_table(committed_files(tmp_path / "copy")[0])
    assert copied.column("values").to_pylist() == recorded.column("values").to_pylist()
    assert channels_of(copied.schema) == ["cpu", "memory", "swap"]


def test_streams_that_are_mixed_in_one_wide_table_come_out_apart(tmp_path: Path) -> None:
    lines = [f"{machine},{t},{t + shift},{2 * t}" for t in range(200) for machine, shift in (("a", 0.5), ("b", 0.25))]
    (tmp_path / "plant.csv").write_text("machine,t,x,y\n" + "\n".join(lines) + "\n")
    source = {"type": "csv", "path": str(tmp_path / "plant.csv"), "stream_id": "machine", "event_time": "t"}
    result = Pipeline.from_dict(
        {
            "name": "plant",
            "state": str(tmp_path / "state"),
            "sources": {"plant": {**source, "event_time_unit": "s", "channels": "all"}},
            "sinks": {"rows": {"type": "parquet", "input": "plant", "path": str(tmp_path / "rows")}},
        }
    ).run()
    rows = [row for row in result.table().to_pylist() if row["stream_id"] == "b"]
    assert [row["values"] for row in rows] == [[pytest.approx(t + 0.25), 2.0 * t] for t in range(200)]
