"""Sink: chosen history and actions as a LeRobot data set of version 3.

Layout: ``data/chunk-000/part-<epoch>-000-0000.parquet`` and ``meta/episodes/chunk-000/part-<epoch>-000-0001.parquet``, which
``meta/info.json`` names by its templates. An episode is what one stream said within one epoch of the run, cut where the stream
started over. Committed files are the truth: they are read once at the start; ``info.json``, ``tasks.parquet`` and
``stats.json`` are made from what was found there and added since.
"""

# R rows, K frames of history

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors import durable
from connectors.base import Staged
from connectors.errors import ConfigError, SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.staged import FileSink, StagedFile, published, single_input

__all__ = ["LeRobotSink", "LeRobotSinkOptions"]

_NEEDED = ("selected_sequences", "offsets", "similarity", "coverage", "status")
_CUTS = ("new_episode", "reset")
_METADATA = ("info.json", "tasks.parquet", "stats.json")
_DATA, _EPISODES = "data/chunk-000", "meta/episodes/chunk-000"

_PANDAS = {
    "index_columns": ["__index_level_0__"],
    "column_indexes": [],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ],
    "pandas_version": "2.0.0",
}
"""What makes pandas, by which lerobot reads tasks, take their texts for the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeRobotSinkOptions:
    """Options of the sink ``lerobot``."""

    path: Path = option(REQUIRED, "Folder of the data set.")
    fps: float = option(REQUIRED, "Frames per second of the streams; time stamps of the set are frame / fps.", unit="1/s", gt=0)
    keep: int = option(5, "Frames of history in each row; shorter ones are filled up with -1.", unit="frames", ge=1)
    task: str = option("history", "Text of the only task of the set.")


class LeRobotSink(FileSink):
    """Writes rows of ``fourd_vla`` that have a history. One shard only: frames of a data set are numbered through."""

    Options: ClassVar[type] = LeRobotSinkOptions
    suffix = ".parquet"
    options: LeRobotSinkOptions

    def __init__(self, options: LeRobotSinkOptions) -> None:
        super().__init__(options)
        self._acts = False
        self._waiting: list[pa.RecordBatch] = []
        self._epoch = 0
        self._frames = self._episodes = 0
        self._totals: _Totals | None = None

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        schema = single_input("lerobot", schemas)
        lacking = [name for name in _NEEDED if name not in schema.names]
        if lacking:
            raise ConfigError(f"the sink lerobot takes rows of fourd_vla; its input has no column {', '.join(lacking)}")
        self._acts = "action" in schema.names

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Get ready to write behind what is committed."""
        if shard:
            raise ConfigError("a lerobot sink runs in one shard, since it numbers all frames; set shards: 1 on it")
        super().open(schemas, attempt=attempt, shard=shard)
        self._totals = _Totals.of(self.root)
        self._episodes, self._frames = self._totals.episodes, self._totals.frames

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the rows that have a history until the epoch ends."""
        names = [name for name in (*_NEEDED, "stream_id", "event_time", "action", "gripper") if name in batch.schema.names]
        chosen = batch.select(names).filter(batch.column("selected_sequences").is_valid())
        if chosen.num_rows:
            self._waiting.append(chosen)

    def prepare(self, epoch: int) -> list[Staged]:
        """See the contract."""
        self._epoch = epoch
        return super().prepare(epoch)

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish the files, then make the metadata anew from all that are published."""
        super().commit(epoch, staged)
        if self._totals is None:
            self._totals = _Totals.of(self.root)
        elif epoch > self._totals.epoch:
            for file in staged:
                self._totals.add(self.root / file.final)
            self._totals.epoch = epoch
        if self._totals.frames:
            self._describe(self._totals)

    def written(self) -> list[Path]:
        """Return committed and staged files and the metadata made from them."""
        files = super().written()
        meta = [self.root / "meta" / name for name in _METADATA] if files else []
        return [*files, *(path for path in meta if path.is_file())]

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        self._waiting = []
        # A stable order by stream keeps each stream's own.
        streams = table.column("stream_id").cast(pa.string()).combine_chunks().dictionary_encode()
        codes = streams.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        table, codes = table.take(pa.array(order)), codes[order]
        cuts = np.isin(table.column("status").cast(pa.string()).to_numpy(zero_copy_only=False), _CUTS)
        first = np.concatenate([[True], codes[1:] != codes[:-1]]) | cuts
        starts = np.flatnonzero(first)
        lengths = np.diff(np.append(starts, len(codes)))
        number = np.cumsum(first) - 1
        frame = np.arange(len(codes)) - starts[number]
        data = self._columns(table) | {
            "timestamp": pa.array((frame / self.options.fps).astype(np.float32)),
            "frame_index": pa.array(frame, pa.int64()),
            "episode_index": pa.array(number + self._episodes, pa.int64()),
            "index": pa.array(np.arange(len(codes)) + self._frames, pa.int64()),
            "task_index": pa.array(np.zeros(len(codes), np.int64)),
        }
        ends = self._frames + np.cumsum(lengths)
        episodes = {
            "episode_index": pa.array(np.arange(len(starts)) + self._episodes, pa.int64()),
            "tasks": pa.array([[self.options.task]] * len(starts)),
            "length": pa.array(lengths, pa.int64()),
            "stream_id": pa.array([streams.dictionary[int(codes[start])].as_py() for start in starts]),
            "data/chunk_index": pa.array([0] * len(starts), pa.int64()),
            "data/file_index": pa.array([self._epoch] * len(starts), pa.int64()),
            "dataset_from_index": pa.array(ends - lengths, pa.int64()),
            "dataset_to_index": pa.array(ends, pa.int64()),
            "meta/episodes/chunk_index": pa.array([0] * len(starts), pa.int64()),
            "meta/episodes/file_index": pa.array([self._epoch] * len(starts), pa.int64()),
        }
        self._stage(pa.table(data), _DATA)
        self._stage(pa.table(episodes), _EPISODES)
        self._frames, self._episodes = self._frames + len(codes), self._episodes + len(starts)

    def _columns(self, table: pa.Table) -> dict[str, pa.Array]:
        """Return the features of the rows: lists of fixed length, and numbers."""
        keep = self.options.keep
        made: dict[str, pa.Array] = {
            "history.sequences": _fixed(table.column("selected_sequences"), keep, np.int64, -1),
            "history.offsets": _fixed(table.column("offsets"), keep, np.int64, -1),
            "history.similarity": _fixed(table.column("similarity"), keep, np.float32, 0),
            "history.coverage": table.column("coverage").combine_chunks(),
            "event_time_us": table.column("event_time").combine_chunks().cast(pa.int64()),
        }
        if self._acts:
            action_R7 = table.column("action").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            made["action"] = pa.FixedSizeListArray.from_arrays(pa.array(action_R7, pa.float32()), 7).cast(
                pa.list_(pa.float32())
            )
        return made

    def _stage(self, table: pa.Table, partition: str) -> None:
        file = StagedFile(self._new_path())
        try:
            pq.write_table(table, pa.PythonFile(file, mode="w"))
            file.finish()
        except BaseException:
            file.abort()
            raise
        self._finished(file, partition=partition, rows=table.num_rows)

    def _drop(self) -> None:
        self._waiting = []

    def _describe(self, totals: _Totals) -> None:
        """Write ``info.json``, ``tasks.parquet`` and ``stats.json`` for what is published, each in one step."""
        assert totals.schema is not None  # there are frames
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": totals.episodes,
            "total_frames": totals.frames,
            "total_tasks": 1,
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(self.options.fps) if float(self.options.fps).is_integer() else self.options.fps,
            "splits": {"train": f"0:{totals.episodes}"},
            "data_path": f"{_DATA[:-3]}{{chunk_index:03d}}/part-{{file_index:06d}}-000-0000.parquet",
            "video_path": None,
            "features": {name: self._feature(name, totals.schema.field(name).type) for name in totals.schema.names},
        }
        meta = self.root / "meta"
        tasks = pa.BufferOutputStream()
        table = pa.table({"task_index": [0], "__index_level_0__": [self.options.task]})
        pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(_PANDAS)}), tasks)
        try:
            durable.write(meta / "info.json", (json.dumps(info, indent=2) + "\n").encode())
            durable.write(meta / "tasks.parquet", tasks.getvalue().to_pybytes())
            durable.write(meta / "stats.json", (json.dumps(totals.stats(), indent=2) + "\n").encode())
        except OSError as error:
            raise SinkError(f"{meta}: the metadata cannot be written: {error}; make room and resume") from error

    def _feature(self, name: str, kind: pa.DataType) -> dict[str, Any]:
        is_list = pa.types.is_list(kind)
        width = 7 if name == "action" else self.options.keep if is_list else 1
        value = kind.value_type if is_list else kind
        return {"dtype": {"float": "float32"}.get(str(value), str(value)), "shape": [width], "names": None}


@dataclass(slots=True)
class _Totals:
    """What is committed: frames, episodes, and sums of all numbers. Costs a file at a time."""

    epoch: int = -1
    """Everything up to this one is counted by ``add``; what was there at the start is counted by ``of``."""
    frames: int = 0
    episodes: int = 0
    schema: pa.Schema | None = None
    sums: dict[str, list[Any]] = field(default_factory=dict)
    """name → minimum, maximum, sum, sum of squares, count, each [K]."""

    @classmethod
    def of(cls, root: Path) -> _Totals:
        """Read all that is published below ``root``."""
        totals = cls()
        for (epoch, _, _), path in sorted(published(root)):
            totals.add(path)
            totals.epoch = max(totals.epoch, epoch)
        return totals

    def add(self, file: Path) -> None:
        """Count a published file, of data or of episodes."""
        if file.parent.parent.name == "episodes":
            self.episodes += pq.read_metadata(file).num_rows
            return
        table = pq.read_table(file)
        self.schema = table.schema
        self.frames += table.num_rows
        for name in table.schema.names:
            column = table.column(name).combine_chunks()
            values = (pc.list_flatten(column) if pa.types.is_list(column.type) else column).to_numpy(zero_copy_only=False)
            rows = values.astype(np.float64).reshape(table.num_rows, -1)
            parts = [rows.min(0), rows.max(0), rows.sum(0), (rows**2).sum(0), np.array([len(rows)])]
            held = self.sums.get(name)
            if held is not None:
                more = [a + b for a, b in zip(held[2:], parts[2:], strict=True)]
                parts = [np.minimum(held[0], parts[0]), np.maximum(held[1], parts[1]), *more]
            self.sums[name] = parts

    def stats(self) -> dict[str, dict[str, list[float]]]:
        """Return minimum, maximum, mean, deviation and count by name."""
        stats = {}
        for name, (low, high, total, squares, count) in self.sums.items():
            mean = total / count
            spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
            named = {"min": low, "max": high, "mean": mean, "std": spread, "count": count}
            stats[name] = {key: value.tolist() for key, value in named.items()}
        return stats


def _fixed(column: pa.ChunkedArray, width: int, kind: type, fill: float) -> pa.ListArray:
    """Return lists of exactly ``width`` entries: the last ones of longer lists, shorter ones filled up behind."""
    array = column.combine_chunks()
    length_R = np.minimum(pc.list_value_length(array).to_numpy(zero_copy_only=False), width).astype(np.int64)
    out_RK: np.ndarray[Any, Any] = np.full((len(array), width), fill, kind)
    ends_R = array.offsets.to_numpy()[1:]
    values = array.values.to_numpy(zero_copy_only=False)
    place_K = np.arange(width)
    inside_RK = place_K < length_R[:, None]
    out_RK[inside_RK] = values[((ends_R - length_R)[:, None] + place_K)[inside_RK]]
    offsets = pa.array(np.arange(len(array) + 1) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(out_RK.ravel()))
