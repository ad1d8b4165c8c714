"""Properties of the method that need no reference, on the whole operator (spec §11: 3, 4, 8, 13, 14)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reloop2_streams import impressions, labels, make, rows_of

from models.reloop2.evaluate import logloss

PER_CALL = 512


def served(model: str, count: int, shift: float, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Serve impressions whose labels follow the base prediction, its logit moved by ``shift``; a call's labels come after it.

    Return base predictions, predictions, estimated errors and labels.
    """
    operator = make(model, micro_batch=PER_CALL, pending_capacity=2 * PER_CALL, **options)
    rng = np.random.default_rng(7)
    parts = []
    for start in range(0, count, PER_CALL):
        ids = list(range(start, start + PER_CALL))
        (out,) = operator.process(impressions(ids, times_s=[start * 1e-3] * PER_CALL, seed=start))
        base, pred, error = (out.column(name).to_numpy() for name in ("y_base", "y_pred", "y_err"))
        odds = base.astype(np.float64) / (1 - base) * np.exp(shift)
        clicks = (rng.random(PER_CALL) < odds / (1 + odds)).astype(np.float32)
        operator.control(labels(ids, clicks.tolist()))
        parts.append(np.stack([base, pred, error, clicks]))
    base, pred, error, clicks = np.concatenate(parts, axis=1)
    return base, pred, error, clicks


def test_calibrated_base_is_left_nearly_alone(ctr_model: str):
    base, pred, error, clicks = served(ctr_model, 30 * PER_CALL, 0.0, gamma=0.0, strength=0.4, arrays=20, bits=4)
    late = slice(10 * PER_CALL, None)
    assert abs(float(error[late].mean())) < 0.01
    before, after = logloss(clicks[late], base[late]), logloss(clicks[late], pred[late])
    assert before is not None
    assert after is not None
    assert after - before < 0.002


@pytest.mark.parametrize("mode", ["sketch", "knn"])
def test_shift_of_the_base_rate_is_recovered(ctr_model: str, mode: str):
    options: dict[str, Any] = {"mode": "knn", "top_k": 70} if mode == "knn" else {"arrays": 20, "bits": 4}
    base, pred, _, clicks = served(ctr_model, 14 * PER_CALL, 1.0, gamma=0.0, strength=1.0, **options)
    late = slice(10 * PER_CALL, None)
    ctr = float(clicks[late].mean())
    assert abs(float(base[late].mean()) / ctr - 1) > 0.1  # the base alone is far off
    assert abs(float(pred[late].mean()) / ctr - 1) < 0.05


def test_one_bucket_gives_the_mean_label_of_all(ctr_model: str):
    for gamma in (0.0, 1.0):
        base, pred, _, clicks = served(ctr_model, 2 * PER_CALL, 0.5, gamma=gamma, strength=0.25, bits=0)
        past, now = slice(0, PER_CALL), slice(PER_CALL, None)
        anchor = base[now] if gamma else base[past].mean(dtype=np.float64)
        wanted = base[now] + 0.25 * (clicks[past].mean(dtype=np.float64) - anchor)
        assert np.abs(pred[now] - wanted.clip(0, 1)).max() < 1e-6


@settings(deadline=None, max_examples=8)
@given(st.sampled_from(["density", "count", "uniform"]), st.floats(0, 1), st.sampled_from([0.0, 3.0]))
def test_prediction_is_a_probability_and_the_base_without_strength(similarity: str, gamma: float, strength: float):
    base, pred, _, _ = served(_MODEL[0], 2 * PER_CALL, 1.0, similarity=similarity, gamma=gamma, strength=strength)
    assert ((pred >= 0) & (pred <= 1)).all()
    if strength == 0.0:
        assert np.array_equal(pred, base)
    else:
        assert not np.array_equal(pred, base)


_MODEL: list[str] = []  # Hypothesis takes no fixtures of function scope


@pytest.fixture(autouse=True)
def _model(ctr_model: str) -> None:
    _MODEL[:] = [ctr_model]


def test_sigma_keeps_only_surprising_rows(ctr_model: str):
    operator = make(ctr_model, mode="knn", sigma=0.5, micro_batch=1, capacity=50, top_k=50)
    shown = impressions(range(40))
    base = [row["y_base"] for row in rows_of(operator.process(shown))]
    clicks = [float(i % 2) for i in range(40)]
    operator.control(labels(list(range(40)), clicks))
    (row,) = rows_of(operator.process(impressions([99])))
    surprising = [abs(y - b) > 0.5 for y, b in zip(clicks, base, strict=True)]
    assert 0 < sum(surprising) < 40
    assert row["n_mem"] == row["n_hit"] == sum(surprising)


@pytest.mark.heavy
def test_share_of_the_rows_is_kept_whatever_the_batches(ctr_model: str):
    count, sizes = 160, []
    for cut in (7, 80):
        operator = make(ctr_model, mode="knn", keep_rate=0.25, micro_batch=1, capacity=1000)
        for start in range(0, count, cut):
            ids = list(range(start, min(start + cut, count)))
            operator.process(impressions(ids, price=pa.array([0.0] * len(ids), pa.float32())))
            operator.control(labels(ids, [1.0] * len(ids)))
        operator.process(impressions([10**6]))
        sizes.append(operator.metrics()["bank_rows"])
    assert sizes[0] == sizes[1]
    assert count / 6 < sizes[0] < count / 3
