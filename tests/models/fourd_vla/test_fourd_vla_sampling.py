"""Memory bank sampling against loops that anyone can read, and the properties that it must have."""

from __future__ import annotations

import fourd_vla_reference as reference
import numpy as np
import pytest
import torch
from torch import Tensor

from models.fourd_vla.sampling import coverage, drop_redundant, last_k, likeness, uniform, window


def windows(features: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
    """Return likeness [T, N, N] and length [T] of the windows that end at each time."""
    T = len(features)
    at = np.maximum(np.arange(T)[:, None] - np.arange(min(n, T)), 0)
    return likeness(torch.from_numpy(features[at])), torch.arange(1, T + 1).clamp_max(n)


def frames(kept_TN: Tensor) -> list[list[int]]:
    return [sorted(t - age for age in kept.nonzero()[:, 0].tolist()) for t, kept in enumerate(kept_TN)]


def kinds(rng: np.random.Generator, length: int) -> np.ndarray:
    """Return features of one of several kinds; some are full of exact ties."""
    walk = rng.normal(size=(length, 4)).astype(np.float32)
    return [
        walk,
        np.cumsum(walk, axis=0),
        np.repeat(walk[:1], length, axis=0),
        np.eye(4, dtype=np.float32)[rng.integers(4, size=length)],
        walk * (rng.random((length, 1)) < 0.6),
    ][rng.integers(5)]


def test_batched_windows_equal_the_loop_on_a_thousand_cases() -> None:
    rng, cases = np.random.default_rng(0), 0
    while cases < 1000:
        features = kinds(rng, int(rng.integers(1, 26)))
        n, k = (int(x) for x in rng.integers(1, (24, 9)))
        alike = reference.cosines(features)
        got = frames(window(*windows(features, n), k))
        assert got == [reference.window(alike, t, n, k) for t in range(len(features))], (n, k)
        cases += len(features)


def test_incremental_steps_equal_the_loop() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        features = kinds(rng, int(rng.integers(1, 26)))
        n, k = (int(x) for x in rng.integers(1, (24, 9)))
        alike, held, got = torch.from_numpy(reference.cosines(features)), torch.zeros(len(features), dtype=torch.bool), []
        for t in range(len(features)):
            held[t], held[: max(0, t - n + 1)] = True, False
            order = torch.arange(t, -1, -1)
            held[order] = drop_redundant(alike[order][:, order][None], held[order][None], k)[0]
            got.append(held.nonzero()[:, 0].tolist())
        assert got == reference.incremental(alike.numpy(), n, k), (n, k)


@pytest.mark.parametrize(("n", "k"), [(20, 5), (8, 3), (6, 10), (30, 1), (1, 4)])
def test_what_is_kept_is_in_the_window_and_holds_the_newest(n: int, k: int) -> None:
    features = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    alike, length = windows(features, n)
    index = torch.arange(40)
    for kept in (window(alike, length, k), uniform(length, index, alike.shape[1], k), last_k(length, alike.shape[1], k)):
        for t, chosen in enumerate(frames(kept)):
            assert chosen[-1] == t
            assert min(chosen) > t - n
            assert len(chosen) <= min(k, t + 1, n)
    assert [len(chosen) for chosen in frames(window(alike, length, k))] == [min(k, t + 1, n) for t in range(40)]


def test_a_static_stream_keeps_its_newest_frames() -> None:
    features = np.ones((30, 4), np.float32)
    assert frames(window(*windows(features, 20), 5))[29] == [25, 26, 27, 28, 29]


def test_what_is_kept_does_not_change_with_scale_or_with_what_came_before() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    kept = frames(window(*windows(features, 12), 4))
    scaled = features * rng.choice([0.25, 2.0, 8.0], (40, 1)).astype(np.float32)
    assert frames(window(*windows(scaled, 12), 4)) == kept
    other = np.concatenate([rng.normal(size=(20, 6)).astype(np.float32), features[20:]])
    assert frames(window(*windows(other, 12), 4))[31:] == kept[31:]


def test_a_zero_feature_is_like_nothing() -> None:
    alike = likeness(torch.tensor([[[0.0, 0.0], [1.0, 2.0]]]))
    assert alike[0].tolist() == [[0, 0], [0, pytest.approx(1)]]


def test_uniform_is_the_rounded_line_through_the_window() -> None:
    for t in range(30):
        for n, k in ((20, 5), (7, 3), (4, 6), (9, 2)):
            m = min(n, t + 1)
            wanted = sorted(set(np.round(np.linspace(t - m + 1, t, k)).astype(int).tolist()))
            kept = uniform(torch.tensor([m]), torch.tensor([t]), n, k)
            assert sorted(t - age for age in kept[0].nonzero()[:, 0].tolist()) == wanted


def test_events_of_one_frame_on_a_static_stream_are_all_kept() -> None:
    rng = np.random.default_rng(4)
    still, length = rng.normal(size=16), 80
    features = np.stack([rng.normal(size=16) if t % 13 == 6 else still + 1e-3 * rng.normal(size=16) for t in range(length)])
    alike, lengths = windows(features.astype(np.float32), 20)
    sampled = coverage(alike, window(alike, lengths, 5), lengths)
    even = coverage(alike, uniform(lengths, torch.arange(length), 20, 5), lengths)
    assert sampled.worst_B.min() > 0.99
    assert even.worst_B[20:].min() < 0.5
    assert (sampled.mean_B >= sampled.worst_B).all()


def test_coverage_equals_its_definition() -> None:
    rng = np.random.default_rng(5)
    alike, length = windows(rng.normal(size=(15, 3)).astype(np.float32), 6)
    kept = window(alike, length, 2)
    got = coverage(alike, kept, length)
    for t in range(15):
        best = [max(alike[t, i, h].item() for h in range(6) if kept[t, h]) for i in range(int(length[t]))]
        assert got.mean_B[t].item() == pytest.approx(np.mean(best))
        assert got.worst_B[t].item() == pytest.approx(min(best))
