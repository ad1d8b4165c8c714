"""The promises of ``operators.base``: for a memory per stream, for one memory for all streams, and for metrics per window."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reloop2_streams import impressions, labels, make

from connectors.records import key_schema
from operators.base import Context
from operators.reloop2 import CtrWindows, CtrWindowsOptions
from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b", "c")
ROWS = 22
"""Per stream."""

SETTINGS: dict[str, Any] = {
    "label_timeout_s": 15.0,
    "allowed_lateness_s": 1.0,
    "pending_capacity": 60,
    "early_capacity": 8,
    "late_correction_s": 20.0,
}


def rows(*, apart: int = 0) -> pa.RecordBatch:
    """``apart``: by how much ids of different streams differ."""
    ids = [i + apart * s for i in range(ROWS) for s in range(len(STREAMS))]
    times = [float(i) for i in range(ROWS) for _ in STREAMS]
    return impressions(ids, times_s=times, streams=list(STREAMS) * ROWS).append_column("error", pa.nulls(len(ids), pa.string()))


def given(*, apart: int = 0) -> pa.RecordBatch:
    """Every third label, some seconds after the impression; some early, some twice."""
    places = [(i, s) for i in range(0, ROWS, 3) for s in range(len(STREAMS))]
    times = [max(0.0, i + (i % 7) - 2.0) for i, _ in places]
    order = sorted(range(len(places)), key=times.__getitem__)
    return labels(
        [places[k][0] + apart * places[k][1] for k in order],
        [float(places[k][0] % 2) for k in order],
        times_s=[times[k] for k in order],
        streams=[STREAMS[places[k][1]] for k in order],
    )


def bad_rows() -> pa.RecordBatch:
    """Return rows that cannot be used, each for another reason."""
    fine = pa.nulls(1, pa.string())
    batches = [
        impressions([1], price=pa.array([float("nan")], pa.float32()), error=fine),
        impressions([1], price=pa.array([float("inf")], pa.float32()), error=fine),
        impressions([1], user=pa.array([None], pa.int64()), error=fine),
        impressions(pa.array([None], pa.int64()), error=fine),
        impressions([1], error=pa.array(["unreadable line"])),
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def test_reloop2_conforms_with_a_memory_per_stream(ctr_model: str):
    build = partial(make, ctr_model, scope="per_key", max_streams=3, **SETTINGS)
    check_operator(build, rows(), make_aligned=partial(build, aligned=True), control=given(), bad_rows=bad_rows(), fill_after=6)


@pytest.mark.slow
def test_reloop2_conforms_with_one_memory_for_all_streams(ctr_model: str):
    build = partial(make, ctr_model, **SETTINGS)
    check_operator(
        build,
        rows(apart=1000),
        make_aligned=partial(build, aligned=True),
        control=given(apart=1000),
        bad_rows=bad_rows(),
        fill_after=6,
    )


def predictions() -> pa.RecordBatch:
    """Return predictions for the impressions above."""
    shown, draw = rows(apart=1000), np.random.default_rng(3)
    keys = [shown.column(name) for name in ("stream_id", "sequence", "event_time", "impression_id")]
    y_base, y_pred = (pa.array(draw.random(len(shown)).astype(np.float32)) for _ in range(2))
    fields = [("impression_id", pa.int64()), ("y_base", pa.float32()), ("y_pred", pa.float32()), ("flags", pa.int32())]
    schema = key_schema("ctr_prediction", 1, [pa.field(*field) for field in fields])
    return pa.RecordBatch.from_arrays([*keys, y_base, y_pred, pa.array([0] * len(shown), pa.int32())], schema=schema)


def windows(*, aligned: bool = False) -> CtrWindows:
    options = CtrWindowsOptions(
        window_s=4.0, label_timeout_s=5.0, allowed_lateness_s=1.0, early_label_s=3.0, early_capacity=8, capacity=60
    )
    return CtrWindows(options, Context("quality", aligned=aligned))


def test_metrics_per_window_conform():
    """No promise of causality: a row is of a window, not of one prediction."""
    check_operator(
        windows,
        predictions(),
        make_aligned=partial(windows, aligned=True),
        control=given(apart=1000),
        causal=False,
        fill_after=6,
    )
