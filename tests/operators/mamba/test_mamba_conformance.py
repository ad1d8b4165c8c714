"""MAMBA keeps the promises of every operator, with both levels and every mode that changes the flow of rows."""

from typing import Any

import mamba_streams
import numpy as np
import pyarrow as pa
import pytest

from pipelines.testing.conformance import check_operator

# Kernels round differently for other batch sizes, so near-equal scores may swap places.
COMPARE = {"detections": mamba_streams.detections_difference}


def bad_rows() -> pa.RecordBatch:
    """Return rows that cannot be used, each for another reason."""
    nan = np.full((64, 80, 3), np.nan, dtype=np.float32)
    batches = [
        mamba_streams.frames([("a", 0)], images=[None]),
        mamba_streams.frames([("a", 0)], images=[np.zeros((64, 0, 3), np.uint8)]),
        mamba_streams.frames([("a", 0)], images=[np.zeros((4, 80, 3), np.uint8)]),
        mamba_streams.frames([("a", 0)], images=[nan], encoding="raw_f32_rgb"),
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="instance", marks=pytest.mark.slow),
        pytest.param({"pixel": True}, id="both", marks=pytest.mark.slow),
        pytest.param(
            {"pixel": True, "network": {"pixel_position": "neck"}, "write_every": 2}, id="neck", marks=pytest.mark.slow
        ),
        pytest.param({"pixel": True, "levels": "pixel"}, id="pixel", marks=pytest.mark.slow),
        pytest.param({"memory": False}, id="without memory", marks=pytest.mark.slow),
        pytest.param({"compat": "official", "bank_dtype": "float16", "on_cut": "reset", "cut_correlation": 0.9}, id="official"),
    ],
)
def test_mamba_conforms(options: dict[str, Any]):
    rows = mamba_streams.frames(mamba_streams.interleaved(["a", "b", "c"], 6))
    check_operator(lambda: mamba_streams.operator(**options), rows, bad_rows=bad_rows(), fill_after=2, compare=COMPARE)


@pytest.mark.slow
def test_mamba_conforms_with_frames_of_different_sizes():
    rows = mamba_streams.interleaved(["a", "b"], 6)
    sizes = [(64, 80), (90, 60)]
    images = [mamba_streams.image(stream, n, *sizes[(n + ord(stream)) % 2]) for stream, n in rows]
    batch = mamba_streams.frames(rows, images=images)
    check_operator(lambda: mamba_streams.operator(pixel=True), batch, fill_after=3, compare=COMPARE)
