"""Sound for frames keeps the promises of every operator, in float64 with batches and in float32 without."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sound_models import share_networks, write_model
from video_streams import frames, interleaved

from operators.base import Context
from operators.specvqgan import SpecVQGANOperator, SpecVQGANOptions
from operators.specvqgan import operator as specvqgan
from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b")
STEP_US = 100_000


def bad_rows() -> pa.RecordBatch:
    nan = np.full((6, 8, 3), np.nan, dtype=np.float32)
    batches = [
        frames([("a", 0)], images=[None]),
        frames([("a", 0)], images=[np.zeros((6, 0, 3), np.uint8)]),
        frames([("a", 0)], images=[nan], encoding="raw_f32_rgb"),
        frames([("a", 0)], encoding="jpeg"),
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"window_hop": 2, "emit_cols": 2, "fade_cols": 1}, id="whole windows"),
        pytest.param({"lookahead_cols": 0, "window_hop": 1, "emit_cols": 1, "fade_cols": 1}, id="live", marks=pytest.mark.slow),
        pytest.param({"feature_mode": "clip", "precision": "float32", "batch_streams": 1}, id="clips", marks=pytest.mark.slow),
    ],
)
def test_specvqgan_conforms(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share_networks(monkeypatch, specvqgan)
    folder = write_model(tmp_path, columns=3, features=3)
    keys = interleaved(STREAMS, 12)
    images = [np.random.default_rng([ord(name), i]).integers(0, 256, (6, 8, 3), dtype=np.uint8) for name, i in keys]
    check_operator(
        lambda: SpecVQGANOperator(SpecVQGANOptions(checkpoint=str(folder), max_streams=2, **options), Context(name="sound")),
        frames(keys, images=images, times_us=[i * STEP_US for _, i in keys]),
        bad_rows=bad_rows(),
        fill_after=2 if "feature_mode" in options else 1,
    )
