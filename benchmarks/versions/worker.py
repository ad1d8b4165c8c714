"""Run one workload on the code of whatever checkout is first on the path, and leave its rows in one form for all versions.

Imports nothing of the package it stands in: the other checkout may be from before it was written. What versions call by
different names is listed here, so that a changed word is no difference.

    cd CHECKOUT && PYTHONPATH=CHECKOUT python -P worker.py FOLDER RUN

FOLDER holds ``workload.json`` and the batches that ``workloads.py`` wrote; ``rows.arrow`` and what the run needs go into RUN.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

OLD_OPTIONS: dict[str, dict[str, str]] = {
    "mamba": {"on_streams_full": "on_full", "bank_gib": "bank_budget_gib"},
    "rekv": {"on_bank_full": "on_full"},
    "reloop2": {"bank_gib": "memory_budget_gib"},
}
"""Method → name of an option → what it was called before."""

STATUSES: dict[str, dict[str, str]] = {
    "mamba": {"duplicate": "late"},
    "rekv": {"duplicate": "late"},
    "reloop2": {"rejected": "rejected_corrupt"},
}
"""Method → status → what it counts as: of two names one, and one where a version tells two apart and the other does not."""

NEW_ROWS = {"rekv": "reset"}
"""Method → status of rows that earlier versions did not give; they are left out."""

ONCE_OK: dict[str, tuple[str, ...]] = {"reloop2": ("duplicate", "reset"), "rekv": ("unsure",)}
"""Method → statuses of today whose rows were ``ok`` before, without an error; the rest of such a row is compared as it is."""

NEW_COLUMNS: dict[str, dict[str, str]] = {}
"""Method → output column → what it is called now."""

ADDED_COLUMNS: dict[str, tuple[str, ...]] = {"rekv": ("confidence",)}
"""Method → output columns that earlier versions did not give; they are left out."""

OLD_PLACES = {"pipelines.testing.running_mean": "benchmarks.running_mean"}
"""Module → where it was before."""

_TIMINGS = ("lag_s", "latency_ms")
"""Output columns that no run repeats."""


def main() -> None:
    """Run the workload."""
    folder, run = (Path(argument).resolve() for argument in sys.argv[1:])
    workload = json.loads((folder / "workload.json").read_text().replace("@FOLDER", str(folder)).replace("@RUN", str(run)))
    _one_thread()
    method = workload["method"]
    table = _pipeline(workload) if "pipeline" in workload else _operator(workload, folder)
    write_rows(_in_new_words(table, method), run / "rows.arrow")


def write_rows(table: pa.Table, path: Path) -> None:
    """Write rows as one Arrow file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _operator(workload: dict[str, Any], folder: Path) -> pa.Table:
    """Hand the batches over step by step; return all rows in the order they came."""
    from operators.base import Context

    cls: Any = _load(workload["operator"])
    operator = cls(cls.Options(**_in_old_words(workload["options"], cls.Options, workload["method"])), Context("versions"))
    batches = {name: _read(folder / f"{name}.arrow") for name in ("process", "control") if (folder / f"{name}.arrow").is_file()}
    out: list[pa.RecordBatch] = []
    for step, argument in workload["steps"]:
        if step == "close_stream":
            operator.close_stream(argument)
        else:
            out += getattr(operator, step)(batches[step][argument])
    out += operator.flush()
    table = pa.Table.from_batches(out, schema=operator.output_schema)
    if hasattr(operator, "close"):
        operator.close()
    return table


def _pipeline(workload: dict[str, Any]) -> pa.Table:
    """Run a whole pipeline in this process; return the rows of one of its sinks, each stream's in order."""
    from pipelines import Pipeline

    document = workload["pipeline"]
    for node in document["operators"].values():
        options = _load(workload["operator"]).Options if node["type"] == workload["method"] else None
        if options is not None:
            node.update(_in_old_words(workload["options"], options, workload["method"]))
    table = Pipeline.from_dict(document).run().table(workload["sink"])
    order = [(name, "ascending") for name in ("stream_id", "sequence", "event_time")]
    return table.sort_by(order)


def _in_old_words(options: dict[str, Any], cls: type, method: str) -> dict[str, Any]:
    """Return options under the names that this checkout knows."""
    known = {field.name for field in fields(cls)}
    old = OLD_OPTIONS.get(method, {})
    return {name if name in known else old.get(name, name): value for name, value in options.items()}


def _in_new_words(table: pa.Table, method: str) -> pa.Table:
    """Return rows with the columns and statuses of today, without timings and metadata."""
    left_out = (*_TIMINGS, *ADDED_COLUMNS.get(method, ()))
    columns = {name: column for name, column in zip(table.column_names, table.columns, strict=True) if name not in left_out}
    named = {NEW_COLUMNS.get(method, {}).get(name, name): column for name, column in columns.items()}
    statuses = STATUSES.get(method, {})
    plain = {name: _plain(column) for name, column in named.items()}
    if "status" in plain:
        found = plain["status"].to_pylist()
        fine = [value in ONCE_OK.get(method, ()) for value in found]
        found = ["ok" if is_fine else statuses.get(value, value) for value, is_fine in zip(found, fine, strict=True)]
        plain["status"] = pa.array(found, pa.string())
        if "error" in plain:
            errors = zip(plain["error"].to_pylist(), fine, strict=True)
            plain["error"] = pa.array([None if is_fine else text for text, is_fine in errors], pa.string())
    rows = pa.table(plain)
    return rows.filter(pc.not_equal(rows["status"], NEW_ROWS[method])) if method in NEW_ROWS else rows


def _plain(column: pa.ChunkedArray) -> pa.Array:
    decoded = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    joined = decoded.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def _read(path: Path) -> list[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]


def _load(name: str) -> Any:
    module, attribute = name.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        if module not in OLD_PLACES:
            raise
        return getattr(importlib.import_module(OLD_PLACES[module]), attribute)


if __name__ == "__main__":
    main()
