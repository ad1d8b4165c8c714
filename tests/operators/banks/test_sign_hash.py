"""Signed random projections: what they promise about angles, scale, batches and devices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError
from operators.banks import SignHash


def vectors(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def assert_buckets(hash_: SignHash, x_BD: torch.Tensor, *, rounding: float) -> None:
    """One bit at a time, in float64; a projection below ``rounding`` may have either sign."""
    weights = hash_.weights().double()
    for x, buckets in zip(x_BD.double(), hash_.hash(x_BD).tolist(), strict=True):
        for array, bucket in enumerate(buckets):
            assert 0 <= bucket < 2**hash_.bits
            for bit in range(hash_.bits):
                projection = float(weights[array, bit] @ x)
                assert (bucket >> bit & 1) == (projection > 0) or abs(projection) < rounding


@settings(max_examples=20, deadline=None)
@given(dim=st.integers(1, 40), arrays=st.integers(1, 5), bits=st.integers(0, 20), structured=st.booleans())
def test_buckets_equal_those_of_a_loop_over_bits(dim: int, arrays: int, bits: int, structured: bool) -> None:
    hash_ = SignHash(dim, arrays, bits, 3, structured=structured)
    x = vectors(6, dim)
    assert hash_.weights().shape == (arrays, bits, dim)
    assert_buckets(hash_, x, rounding=1e-5 if structured else 0.0)  # a structured projection can be the zero vector


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=6), structured=st.booleans())
def test_buckets_do_not_depend_on_the_batch(cuts: list[int], structured: bool) -> None:
    hash_ = SignHash(96, 20, 13, 1, structured=structured)
    x = vectors(700, 96)
    x[::7] = torch.nn.functional.normalize(x[::7]) * 1e-6
    whole = hash_.hash(x)
    bounds = sorted({0, 700, *cuts})
    parts = [hash_.hash(x[a:b]) for a, b in pairwise(bounds)]
    assert torch.equal(torch.cat(parts), whole)


def test_signs_that_rounding_could_turn_are_decided_exactly() -> None:
    """Vectors at right angles to a projection: a product in float32 gives noise of either sign."""
    weights = vectors(1, 300, 5).view(1, 1, 300)
    hash_ = SignHash.from_weights(weights)
    w = weights.view(-1).double()
    x = vectors(400, 300, 6).double()
    x = (x - (x @ w)[:, None] * w / (w @ w)).float()
    exact = (x.double() * w).sum(1) > 0
    assert 50 < int(exact.sum()) < 350
    assert torch.equal(hash_.hash(x)[:, 0], exact.long())


def test_a_seed_gives_the_same_projections_and_weights_make_the_same_hash() -> None:
    x = vectors(50, 12)
    first, again, other = SignHash(12, 4, 8, 7), SignHash(12, 4, 8, 7), SignHash(12, 4, 8, 8)
    assert torch.equal(first.hash(x), again.hash(x))
    assert not torch.equal(first.hash(x), other.hash(x))
    assert torch.equal(SignHash.from_weights(first.weights()).hash(x), first.hash(x))
    assert first.bytes() == 4 * 8 * 12 * 4


def test_scale_changes_no_bucket_and_the_opposite_flips_every_bit() -> None:
    hash_ = SignHash(16, 30, 10, 0)
    x = vectors(200, 16)
    buckets = hash_.hash(x)
    for scale in (1e-20, 0.3, 1e12):
        assert torch.equal(hash_.hash(x * scale), buckets)
    assert torch.equal(hash_.hash(-x), 2**10 - 1 - buckets)
    assert torch.equal(hash_.hash(torch.zeros(1, 16)), torch.zeros(1, 30, dtype=torch.int64))


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("degrees", [10, 45, 90, 150])
def test_vectors_agree_on_a_bit_with_the_probability_of_their_angle(degrees: int, structured: bool) -> None:
    angle, arrays = math.radians(degrees), 4096
    x, y = torch.linalg.qr(vectors(64, 2, 2)).Q.T
    pair = torch.stack([x, math.cos(angle) * x + math.sin(angle) * y])
    buckets = SignHash(64, arrays, 1, 11, structured=structured).hash(pair)
    agree = (buckets[0] == buckets[1]).double().mean().item()
    wanted = 1 - angle / math.pi
    assert abs(agree - wanted) < 3 * math.sqrt(wanted * (1 - wanted) / arrays)


def test_no_vectors_give_no_buckets() -> None:
    assert SignHash(5, 3, 4, 0).hash(torch.zeros(0, 5)).shape == (0, 3)


@pytest.mark.parametrize(("dim", "arrays", "bits"), [(0, 1, 1), (1, 0, 1), (1, 1, -1), (1, 1, 25)])
def test_sizes_that_make_no_sense_are_refused(dim: int, arrays: int, bits: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, bits 0 to 24"):
        SignHash(dim, arrays, bits)


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \[2, 4\] do not fit a hash over 5 numbers"):
        SignHash(5, 1, 1).hash(torch.zeros(2, 4))
