"""4D-VLA keeps the promises of every operator: each sampling mode, given and computed features, and the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fourd_vla_streams import feature_rows, frames, given, operator, rgbd, rgbd_row, tiny_policy

from operators.fourd_vla.schemas import FEATURE
from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b", "c")
SMALL = {"window": 5, "keep": 2, "max_streams": 3}


def bad_features() -> pa.RecordBatch:
    rows = [[1.0, np.nan, 0.0, 0.0], [1.0, 2.0], None, [np.inf, 0, 0, 0]]
    columns = [pa.array(["a"] * 4), pa.array(range(4), pa.int64()), pa.array(range(4), pa.timestamp("us", "UTC"))]
    columns += [pa.array(rows, pa.list_(pa.float32())), pa.nulls(4, pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURE)


def bad_frames() -> pa.RecordBatch:
    nan, wide = [float("nan")] * 16, {"width": 640}
    changes: list[dict[str, Any]] = [
        {"image": None},
        {"image": b"no image"},
        {"depth": b"no image"},
        {"depth_encoding": "raw_u16", **wide},
        {"depth_scale": 0.0},
        {"intrinsics": None},
        {"intrinsics": [1.0, 2.0]},
        {"pose": nan},
        {"pose": [2.0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]},
        {"pose": [1.0]},
        {"error": "the source could not read this frame"},
    ]
    return rgbd([rgbd_row("a", n, **change) for n, change in enumerate(changes)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"sampling": "incremental"}, marks=pytest.mark.slow),
        pytest.param({"sampling": "incremental", "horizon": "unbounded"}, marks=pytest.mark.slow),
        pytest.param({"sampling": "uniform"}, marks=pytest.mark.slow),
        pytest.param({"sampling": "last_k"}, marks=pytest.mark.slow),
        pytest.param({"sampling": "single"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(options.values()) or "window",
)
def test_fourd_vla_conforms_with_given_features(options: dict[str, Any]) -> None:
    features = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float32)
    features[3:6] = features[3:4]  # exact ties
    rows = feature_rows(STREAMS, features)
    check_operator(lambda: given(4, **SMALL, **options), rows, bad_rows=bad_features(), fill_after=1)


def test_fourd_vla_conforms_with_colors_of_frames() -> None:
    check_operator(lambda: operator(**SMALL), frames(STREAMS[:2], 6), bad_rows=bad_frames(), fill_after=1)


@pytest.mark.slow
def test_fourd_vla_conforms_when_it_acts(tmp_path: Path) -> None:
    policy = tiny_policy(tmp_path)
    make = lambda: operator(mode="act", checkpoint=policy, instruction="point to the red cube", **SMALL)  # noqa: E731
    check_operator(make, frames(("a", "b"), 6), bad_rows=bad_frames(), fill_after=1, atol=1e-5, rtol=1e-4)
