"""An operator with two named outputs and none without a name, pipelines over it, and what must come out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from connectors import records
from operators.admission import admit_rows
from operators.base import Context, Emitted, Operator, Output
from operators.counters import STREAM_COUNTERS, Counters
from operators.output import OutputRows
from operators.state import State
from operators.streams import STREAM_STATUSES, Stream, StreamOptions, StreamTable
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

COUNT = records.output_schema("count", 1, [pa.field("n", pa.int64()), pa.field("v", pa.float64())])
PEAK = records.key_schema("peak", 1, [pa.field("v", pa.float64())])
STREAMS = 7


@dataclass(frozen=True, kw_only=True)
class PeaksOptions(RunningMeanOptions, StreamOptions):
    """Options of :class:`Peaks`."""


@dataclass(slots=True)
class Seen(Stream):
    """What is known of a stream."""

    rows: int = 0
    peak: float = -math.inf
    peaks: int = 0


class Peaks(Operator):
    """Counts the rows of a stream (``counts``, one per row) and gives those above all before (``peaks``, without a status)."""

    Options = PeaksOptions
    input_schema = RunningMean.input_schema
    outputs: Mapping[str, pa.Schema] = {"counts": COUNT, "peaks": PEAK}
    statuses: ClassVar[Mapping[str, str]] = {"ok": "counted", **STREAM_STATUSES}

    def __init__(self, options: PeaksOptions, context: Context) -> None:
        super().__init__(options, context)
        self.counters = Counters(*STREAM_COUNTERS)
        self.streams = StreamTable(context.name, lambda _, slot: Seen(slot), options, kind=Seen, counters=self.counters)

    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        """Return rows of both outputs."""
        self.options.play()
        out, values = OutputRows(batch, COUNT, self.statuses, "counts"), batch.column("v").to_pylist()

        def read(row: int, *_: object) -> tuple[float, str | None]:
            return values[row], None if values[row] is not None and math.isfinite(values[row]) else f"v is {values[row]}"

        counts: list[int | None] = [None] * batch.num_rows
        peaks, numbers = [], []
        for one in admit_rows(batch, self.streams, out, read):
            one.stream.rows += 1
            counts[one.row] = one.stream.rows
            if one.content > one.stream.peak:
                one.stream.peak = one.content
                peaks.append(one.row)
                numbers.append(one.stream.peaks)
                one.stream.peaks += 1
        self.counters.note(out)
        rows = batch.take(pa.array(peaks, pa.int64()))
        columns = [rows.column("stream_id"), pa.array(numbers, pa.int64()), rows.column("event_time"), rows.column("v")]
        counted = out.batches({"n": pa.array(counts, pa.int64()), "v": batch.column("v")})
        return [*counted, Output("peaks", pa.RecordBatch.from_arrays(columns, schema=PEAK))]

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return the streams."""
        with self.streams.snapshot(incremental=incremental) as (state, _):
            return state

    def restore(self, state: State) -> None:
        """Take them over."""
        self.streams.restore(state, hint="start anew")

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream."""
        self.streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return what the shared parts count."""
        return {"streams": float(len(self.streams)), **self.counters.gauges()}


def write_values(folder: Path, rows: int) -> dict[str, list[float | None]]:
    """Write ``rows`` values of seven streams as JSON lines, 0.1 s apart, one in 50 null; return them by stream."""
    folder.mkdir(parents=True)
    draw = random.Random(5)
    values: dict[str, list[float | None]] = {f"s{n}": [] for n in range(STREAMS)}
    with (folder / "values.jsonl").open("w") as file:
        for n in range(rows):
            stream = f"s{draw.randrange(STREAMS)}"
            value = None if draw.random() < 0.02 else round(draw.random() + n / rows, 4)
            file.write(json.dumps({"k": stream, "v": value, "t": 100 * n, "sequence": len(values[stream])}) + "\n")
            values[stream].append(value)
    return values


def expected(values: Mapping[str, Sequence[float | None]]) -> tuple[list[Any], list[Any]]:
    """Return the rows of both outputs, (stream, sequence, n or v), sorted: a loop that anyone can read."""
    counts, peaks = [], []
    for stream, own in values.items():
        n, peak, number = 0, -math.inf, 0
        for sequence, value in enumerate(own):
            n += value is not None
            counts.append((stream, sequence, n if value is not None else None))
            if value is not None and value > peak:
                peak = value
                peaks.append((stream, number, value))
                number += 1
    return sorted(counts, key=repr), sorted(peaks, key=repr)


def peaks_pipeline(folder: Path, run: Path, **operator: Any) -> dict[str, Any]:
    """A pipeline with a sink for each output, and the mean of the peaks behind."""
    return {
        "name": "peaks",
        "state": str(run / "state"),
        "epoch_s": 0.03,
        "sources": {
            "values": {
                "type": "jsonl",
                "path": str(folder),
                "stream_id": "k",
                "event_time": "t",
                "event_time_unit": "ms",
                "columns": {"v": "double"},
            }
        },
        "operators": {
            "seen": {
                "type": "outputs_workload:Peaks",
                "input": "values",
                "max_streams": STREAMS,
                "max_batch": 64,
                "max_wait_ms": 0,
                "slow_until": str(run / "hurry"),
                **operator,
            },
            "mean": {"type": "pipelines.testing.running_mean:RunningMean", "input": "seen.peaks"},
        },
        "sinks": {
            "counts": {"type": "jsonl", "input": "seen.counts", "path": str(run / "counts")},
            "peaks": {"type": "parquet", "input": "seen.peaks", "path": str(run / "peaks")},
            "means": {"type": "parquet", "input": "mean", "path": str(run / "means")},
        },
    }


def committed(run: Path) -> tuple[list[Any], list[Any]]:
    """Return the committed rows of both outputs as ``expected`` does."""
    from connectors.sinks.read import read_committed

    tables = (read_committed(run / "counts").select(["stream_id", "sequence", "n"]), read_committed(run / "peaks"))
    counts, peaks = (
        sorted((tuple(row.values()) for row in table.select(["stream_id", "sequence", last]).to_pylist()), key=repr)
        for table, last in zip(tables, ("n", "v"), strict=True)
    )
    return counts, peaks
