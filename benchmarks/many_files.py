"""Claim: 500,000 rows in 2,000 files take at most 2 ms a file more than in one, and no manifest is above 64 KiB.

The local runner reads the same rows from one file and from many into Parquet, with checkpoints, alternating; the fastest run of
each counts. Imports are not measured. On a machine that is shared, look at the CPU time: waiting for a core is no work.

    python -m benchmarks.many_files [--files 2000] [--rows 500000] [--formats jsonl csv parquet] [--repeat 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from benchmarks.machine import write
from pipelines import Pipeline

_LIMIT_MS = 2.0
_LIMIT_BYTES = 64 << 10


def write_jsonl(table: pa.Table, path: Path) -> None:
    """Write a table as JSON lines."""
    times, values = table["t"].to_pylist(), table["v"].to_pylist()
    path.write_text("".join(f'{{"t": {t}, "v": {v}}}\n' for t, v in zip(times, values, strict=True)))


_WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    "jsonl": write_jsonl,
    "csv": pacsv.write_csv,
    "parquet": pq.write_table,
}


def make(folder: Path, kind: str, rows: int, files: int) -> None:
    """Write ``rows`` into ``files`` files."""
    folder.mkdir()
    table = pa.table({"t": np.arange(rows), "v": np.arange(rows) * 0.5})
    per_file = rows // files
    for number in range(files):
        _WRITERS[kind](table.slice(number * per_file, per_file), folder / f"f{number:06d}.{kind}")


def run(folder: Path, kind: str, rows: int) -> tuple[float, float, int]:
    """Return the seconds of one run, those of CPU time, and the bytes of its largest manifest."""
    with tempfile.TemporaryDirectory() as name:
        values = {
            "name": "many_files",
            "state": f"{name}/state",
            "sources": {"src": {"type": kind, "path": str(folder), "event_time": "t", "event_time_unit": "s"}},
            "sinks": {"out": {"type": "parquet", "input": "src", "path": f"{name}/out"}},
        }
        started, started_cpu = time.perf_counter(), time.process_time()
        result = Pipeline.from_dict(values).run()
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        assert result.report.rows_committed["src"] == rows
        return seconds, cpu, max(path.stat().st_size for path in Path(f"{name}/state/epochs").iterdir())


def measure(root: Path, kind: str, rows: int, files: int, repeat: int) -> dict[str, float | str]:
    """Compare many files of one format with one."""
    make(root / f"{kind}_one", kind, rows, 1)
    make(root / f"{kind}_many", kind, rows, files)
    run(root / f"{kind}_one", kind, rows)  # imports
    one, many = [], []
    for _ in range(repeat):
        one.append(run(root / f"{kind}_one", kind, rows))
        many.append(run(root / f"{kind}_many", kind, rows))
    one_s, many_s = min(one)[0], min(many)[0]
    one_cpu_s, many_cpu_s = (min(cpu for _, cpu, _ in runs) for runs in (one, many))
    return {
        "format": kind,
        "one_file_s": one_s,
        "many_files_s": many_s,
        "ms_per_file": (many_s - one_s) / files * 1000,
        "cpu_ms_per_file": (many_cpu_s - one_cpu_s) / files * 1000,
        "ratio": many_s / one_s,
        "manifest_bytes": max(size for _, _, size in many),
    }


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--formats", nargs="+", choices=_WRITERS, default=list(_WRITERS))
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    rows = arguments.rows // arguments.files * arguments.files
    with tempfile.TemporaryDirectory() as name:
        results = [measure(Path(name), kind, rows, arguments.files, arguments.repeat) for kind in arguments.formats]
    for result in results:
        print(
            "{format}: one file {one_file_s:.2f} s, {files} files {many_files_s:.2f} s: {ms_per_file:.2f} ms a file "
            "({cpu_ms_per_file:.2f} of CPU), {ratio:.1f} times; manifest {manifest_bytes} bytes".format(
                **result, files=arguments.files
            )
        )
    held = all(float(r["ms_per_file"]) <= _LIMIT_MS and float(r["manifest_bytes"]) <= _LIMIT_BYTES for r in results)
    print(f"limit {_LIMIT_MS} ms a file, {_LIMIT_BYTES} bytes: {'held' if held else 'missed'}")
    path = write("many_files", {"files": arguments.files, "rows": rows, "formats": results, "held": held})
    print("result:", path)


if __name__ == "__main__":
    main()
