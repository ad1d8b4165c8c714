"""The promises of ``operators.base``, for a memory per stream: with one for all, streams depend on each other by design."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from reloop2_streams import impressions, labels, make

from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b", "c")
ROWS = 22
"""Per stream."""


def rows() -> pa.RecordBatch:
    ids = [i for i in range(ROWS) for _ in STREAMS]
    return impressions(ids, times_s=[float(i) for i in ids], streams=list(STREAMS) * ROWS)


def given() -> pa.RecordBatch:
    """Every third label, some seconds after the impression; some early, some twice."""
    ids = [i for i in range(0, ROWS, 3) for _ in STREAMS]
    times = [max(0.0, i + (i % 7) - 2.0) for i in ids]
    order = sorted(range(len(ids)), key=times.__getitem__)
    values = [float(i % 2) for i in ids]
    return labels(
        [ids[i] for i in order],
        [values[i] for i in order],
        times_s=[times[i] for i in order],
        streams=[STREAMS[i % 3] for i in order],
    )


def bad_rows() -> pa.RecordBatch:
    """Return rows that cannot be used, each for another reason."""
    batches = [
        impressions([1], price=pa.array([float("nan")], pa.float32())),
        impressions([1], price=pa.array([float("inf")], pa.float32())),
        impressions([1], user=pa.array([None], pa.int64())),
        impressions(pa.array([None], pa.int64())),
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def test_reloop2_conforms_with_a_memory_per_stream(ctr_model: str):
    settings: dict[str, Any] = {
        "scope": "per_key",
        "max_streams": 3,
        "label_timeout_s": 15.0,
        "allowed_lateness_s": 1.0,
        "pending_capacity": 60,
        "early_capacity": 8,
        "late_correction_s": 20.0,
    }
    check_operator(lambda: make(ctr_model, **settings), rows(), control=given(), bad_rows=bad_rows(), fill_after=6)
