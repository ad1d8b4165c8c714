"""The correction formula: against float64 NumPy, and the properties that need no data (spec §11: 3, 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from operators.reloop2.rules import Recollection, compensate, count_weights, softmax_weights


def recollection(seed: int = 0, rows: int = 5, arrays: int = 7) -> Recollection:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(rows, arrays, generator=generator) < 0.6
    valid[0] = False
    weight = softmax_weights(torch.rand(rows, arrays, generator=generator), valid, 0.1)
    label, base = (torch.rand(rows, arrays, generator=generator).double() * valid for _ in range(2))
    return Recollection(weight, label, base, valid, valid.sum(1).double())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("strength", [0.0, 0.4, 3.0])
def test_formula_agrees_with_a_loop(gamma: float, strength: float):
    read, base = recollection(), torch.rand(5, generator=torch.Generator().manual_seed(1))
    got = compensate(read, base, gamma=gamma, strength=strength)
    for b in range(5):
        weights, labels, bases = (part[b].numpy() for part in read[:3])
        y = float(base[b])
        label_mean, base_mean = sum(weights * labels), sum(weights * bases)
        error = gamma * (label_mean - y) + (1 - gamma) * (label_mean - base_mean) if read.valid_BK[b].any() else 0.0
        assert float(got.error_B[b]) == pytest.approx(error, abs=1e-12)
        assert float(got.prediction_B[b]) == pytest.approx(min(1.0, max(0.0, y + strength * error)), abs=1e-12)


def test_weights_of_one_row_sum_up_to_one_and_skip_what_is_empty():
    read = recollection()
    assert read.weight_BK.sum(1).tolist() == pytest.approx([0.0, 1.0, 1.0, 1.0, 1.0])
    assert not read.weight_BK[~read.valid_BK].any()
    counts = count_weights(torch.tensor([[0, 3, 1], [0, 0, 0]]))
    assert counts.tolist() == [[0.0, 0.75, 0.25], [0.0, 0.0, 0.0]]


def test_softmax_survives_extreme_temperatures():
    similarity, valid = torch.tensor([[1.0, -1.0, 0.5]]), torch.tensor([[True, True, False]])
    for tau in (1e-9, 1e9):
        weight = softmax_weights(similarity, valid, tau)
        assert weight.isfinite().all()
        assert float(weight.sum()) == pytest.approx(1.0)


@given(st.integers(0, 10), st.floats(0, 1), st.floats(0, 5))
def test_prediction_is_a_probability(seed: int, gamma: float, strength: float):
    base = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    got = compensate(recollection(seed), base, gamma=gamma, strength=strength).prediction_B
    assert bool(((got >= 0) & (got <= 1)).all())


def test_without_strength_or_memory_the_base_prediction_stays_to_the_bit():
    base = torch.rand(5, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(compensate(recollection(), base, gamma=0.5, strength=0.0).prediction_B.float(), base)
    assert float(compensate(recollection(), base, gamma=0.5, strength=3.0).prediction_B[0]) == float(base[0].double())


def test_row_does_not_depend_on_its_batch():
    read, base = recollection(rows=300, arrays=70), torch.rand(300, generator=torch.Generator().manual_seed(4))
    whole = compensate(read, base, gamma=0.3, strength=0.7)
    for b in (0, 1, 17, 299):
        one = compensate(Recollection(*(part[b : b + 1] for part in read)), base[b : b + 1], gamma=0.3, strength=0.7)
        for name in ("label_mean_B", "base_mean_B", "error_B", "prediction_B"):
            a, c = getattr(whole, name)[b : b + 1], getattr(one, name)
            assert torch.equal(a, c) or bool(a.isnan() & c.isnan())


def test_prior_rows_shrink_the_error_and_nothing_else():
    read, base = recollection(), torch.rand(5, generator=torch.Generator().manual_seed(5))
    plain = compensate(read, base, gamma=0.3, strength=0.4)
    shrunk = compensate(read, base, gamma=0.3, strength=0.4, prior_rows=3.0)
    assert torch.allclose(shrunk.error_B, plain.error_B * read.rows_B / (read.rows_B + 3.0))
    assert torch.allclose(shrunk.prediction_B, (base + 0.4 * shrunk.error_B).clamp(0, 1).double())
    assert torch.equal(shrunk.label_mean_B[1:], plain.label_mean_B[1:])
