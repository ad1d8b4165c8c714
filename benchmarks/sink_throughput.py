"""Claim: one core writes more than 1,000,000 rows a second of {k, n, m} to JSON lines, fsync, hash and commit included.

Also measured, without a floor: JSON lines of all columns, Parquet and Arrow IPC of an operator's output. Batches of 1,000
rows, an epoch per 250,000; the best of ``--repeat`` runs counts, in rows per second of CPU time and of wall time.

    python -m benchmarks.sink_throughput [--rows 1000000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.machine import write
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks.arrow import ArrowOptions, ArrowSink
from connectors.sinks.jsonl import JsonlOptions, JsonlSink
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from connectors.sinks.staged import FileSink

_BATCH_ROWS = 1_000
_EPOCH_ROWS = 250_000
_FLOOR_ROWS_PER_S = 1_000_000


def running_means(rows: int) -> pa.RecordBatch:
    """Return key columns, a count and a mean per row, for 100 streams."""
    draw = np.random.default_rng(0)
    schema = output_schema("running_mean", 1, [pa.field("n", pa.int64()), pa.field("m", pa.float64())])
    columns = [
        pa.array([f"k{i:03d}" for i in range(100)]).take(pa.array(draw.integers(0, 100, rows))),
        pa.array(np.arange(rows)),
        pa.array(np.arange(rows) * 1000).cast(TIME_TYPE),
        pa.array(np.arange(rows) // 100),
        pa.array(draw.random(rows)),
        pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), pa.array(["ok"])),
        pa.nulls(rows, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def run(sink: FileSink, rows: pa.RecordBatch) -> tuple[float, float]:
    """Write and commit all rows; return (rows per second of CPU time, of wall time)."""
    wall, cpu = time.perf_counter(), time.process_time()
    sink.recover(-1, [])
    sink.open({"node": rows.schema}, attempt=1, shard=0)
    for epoch, first in enumerate(range(0, rows.num_rows, _EPOCH_ROWS)):
        for start in range(first, min(first + _EPOCH_ROWS, rows.num_rows), _BATCH_ROWS):
            sink.write("node", rows.slice(start, _BATCH_ROWS))
        sink.commit(epoch, sink.prepare(epoch))
    sink.close()
    return rows.num_rows / (time.process_time() - cpu), rows.num_rows / (time.perf_counter() - wall)


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    rows = running_means(arguments.rows)
    short = {"stream_id": "k", "n": "n", "m": "m"}
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "jsonl {k, n, m}": (JsonlSink, JsonlOptions, {"columns": short}),
        "jsonl, all columns": (JsonlSink, JsonlOptions, {}),
        "parquet by date": (ParquetSink, ParquetOptions, {}),
        "parquet by stream and date": (ParquetSink, ParquetOptions, {"partition_by": ["stream", "date"]}),
        "arrow": (ArrowSink, ArrowOptions, {}),
    }
    figures = {}
    for name, (kind, options, more) in cases.items():
        rates = []
        for _ in range(arguments.repeat):
            with tempfile.TemporaryDirectory() as folder:
                rates.append(run(kind(options(path=Path(folder), **more)), rows))
        cpu, wall = (max(values) for values in zip(*rates, strict=True))
        figures[name] = {"rows_per_cpu_s": cpu, "rows_per_s": wall}
        print(f"{name:28s} {cpu:12,.0f} rows per CPU second {wall:12,.0f} rows/s")
    passed = figures["jsonl {k, n, m}"]["rows_per_cpu_s"] >= _FLOOR_ROWS_PER_S
    print("pass" if passed else "FAIL", f"(floor: {_FLOOR_ROWS_PER_S:,} rows per CPU second of jsonl {{k, n, m}})")
    write("sink_throughput", {"rows": arguments.rows, "passed": passed, "sinks": figures})
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
