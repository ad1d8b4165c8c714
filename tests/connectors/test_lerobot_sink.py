"""Chosen history as a LeRobot data set: numbered through, cut where a stream starts over, whole after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.errors import ConfigError
from connectors.records import TIME_TYPE
from connectors.sinks.lerobot import LeRobotSink, LeRobotSinkOptions
from connectors.sources.lerobot_layout import LeRobotLayout
from operators.fourd_vla.schemas import output_schema

SCHEMA = output_schema(acts=True)


def rows(stream: str, sequences: list[int], statuses: list[str] | None = None) -> pa.RecordBatch:
    """Return output rows of the operator; ``late`` ones have no history."""
    told = []
    for number, sequence in enumerate(sequences):
        status = statuses[number] if statuses else "ok"
        kept = [] if status == "late" else list(range(max(0, sequence - 2), sequence + 1))
        told.append(
            {
                "stream_id": stream,
                "sequence": sequence,
                "event_time": sequence * 100_000,
                "selected_sequences": kept or None,
                "selected_times": [s * 100_000 for s in kept] or None,
                "offsets": [sequence - s for s in kept] or None,
                "similarity": [0.5] * (len(kept) - 1) if kept else None,
                "coverage": 0.25 * sequence if kept else None,
                "action": [0.1 * sequence] * 7 if kept else None,
                "status": status,
            }
        )
    columns = []
    for field in SCHEMA:
        values = [row.get(field.name) for row in told]
        if field.type == TIME_TYPE:
            columns.append(pa.array(values, pa.int64()).view(TIME_TYPE))
        elif pa.types.is_dictionary(field.type):
            columns.append(pa.array(values, pa.string()).dictionary_encode().cast(field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def opened(path: Path, attempt: int = 1) -> LeRobotSink:
    sink = LeRobotSink(LeRobotSinkOptions(path=path, fps=10.0, keep=4, task="look back"))
    sink.recover(-1, []) if attempt == 1 else None
    sink.open({"choose": SCHEMA}, attempt=attempt, shard=0)
    return sink


def test_the_table_of_tasks_is_one_of_pandas_with_their_texts_as_its_index(tmp_path: Path) -> None:
    """By which lerobot reads it; a column that pandas is not told of stops it."""
    sink = opened(tmp_path)
    sink.write("choose", rows("a", [0]))
    sink.commit(0, sink.prepare(0))
    schema = pq.read_schema(tmp_path / "meta" / "tasks.parquet")
    told = json.loads(schema.metadata[b"pandas"])
    assert [column["field_name"] for column in told["columns"]] == schema.names == ["task_index", "__index_level_0__"]
    assert told["index_columns"] == ["__index_level_0__"]


def data(path: Path) -> list[dict]:
    return [row for file in sorted((path / "data").rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_rows_become_episodes_that_lerobots_layout_knows(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.write("choose", rows("a", [0, 1]))
    sink.write("choose", rows("b", [0, 1, 2], ["ok", "late", "ok"]))
    sink.write("choose", rows("a", [2, 3], ["ok", "new_episode"]))
    assert not (tmp_path / "meta").exists()
    sink.commit(0, sink.prepare(0))
    sink.write("choose", rows("a", [4, 5]))
    sink.commit(1, sink.prepare(1))
    sink.close()

    layout = LeRobotLayout(tmp_path)
    assert [(e.index, e.length) for e in layout.episodes.values()] == [(0, 3), (1, 1), (2, 2), (3, 2)]
    assert layout.tasks == {0: "look back"}
    assert (layout.fps, layout.info["total_frames"], layout.info["total_episodes"]) == (10, 8, 4)
    for episode in layout.episodes.values():
        mine = pq.read_table(episode.data, filters=[("episode_index", "=", episode.index)]).to_pylist()
        assert [row["frame_index"] for row in mine] == list(range(episode.length))
    found = data(tmp_path)
    assert [row["index"] for row in found] == list(range(8))
    assert [row["event_time_us"] // 100_000 for row in found] == [0, 1, 2, 3, 0, 2, 4, 5]
    assert found[2]["history.sequences"] == [0, 1, 2, -1]
    assert found[2]["history.offsets"] == [2, 1, 0, -1]
    assert found[2]["history.similarity"] == [0.5, 0.5, 0, 0]
    assert found[2]["action"] == pytest.approx([0.2] * 7)
    assert found[1]["timestamp"] == pytest.approx(0.1)
    assert layout.features["history.sequences"] == {"dtype": "int64", "shape": [4], "names": None}
    stats = json.loads((tmp_path / "meta" / "stats.json").read_text())
    coverage = np.array([row["history.coverage"] for row in found])
    assert stats["history.coverage"]["mean"] == pytest.approx([coverage.mean()])
    assert stats["history.coverage"]["std"] == pytest.approx([coverage.std()])


def test_what_was_prepared_and_never_committed_is_not_counted_after_a_restart(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.write("choose", rows("a", [0, 1]))
    staged = sink.prepare(0)
    sink.commit(0, staged)
    sink.commit(0, staged)  # twice changes nothing
    sink.write("choose", rows("a", [2]))
    sink.prepare(1)  # and the process dies
    again = LeRobotSink(LeRobotSinkOptions(path=tmp_path, fps=10.0, keep=4, task="look back"))
    again.recover(0, staged)
    again.open({"choose": SCHEMA}, attempt=2, shard=0)
    again.write("choose", rows("a", [2, 3]))
    again.commit(1, again.prepare(1))
    again.close()
    assert [row["index"] for row in data(tmp_path)] == [0, 1, 2, 3]
    assert [row["episode_index"] for row in data(tmp_path)] == [0, 0, 1, 1]
    assert LeRobotLayout(tmp_path).info["total_frames"] == 4


def test_other_rows_and_more_shards_are_refused(tmp_path: Path) -> None:
    sink = LeRobotSink(LeRobotSinkOptions(path=tmp_path, fps=10.0))
    with pytest.raises(ConfigError, match="takes rows of fourd_vla; its input has no column selected_sequences"):
        sink.examine({"x": pa.schema([("status", pa.string())])})
    with pytest.raises(ConfigError, match="one shard"):
        sink.open({"choose": SCHEMA}, attempt=1, shard=1)
