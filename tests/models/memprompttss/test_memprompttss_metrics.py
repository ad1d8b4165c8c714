"""Scores of segmentations and coarse states against definitions that anyone can read."""

from itertools import combinations

import numpy as np
import pytest

from models.memprompttss.granularity import coarse_states
from models.memprompttss.metrics import boundaries, boundary_f1, covering, covering_of, scores


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = np.repeat(rng.integers(0, 4, 12), rng.integers(1, 9, 12))
    said = np.where(rng.random(len(true)) < 0.8, true, rng.integers(0, 5, len(true)))
    return true, said


def test_accuracy_f1_and_rand_index_equal_their_definitions() -> None:
    true, said = pair()
    found = scores(true, said)
    assert found["acc"] == sum(a == b for a, b in zip(true, said, strict=True)) / len(true)
    f1 = []
    for state in sorted(set(true) | set(said)):
        hit = sum((true == state) & (said == state))
        f1.append(2 * hit / (sum(true == state) + sum(said == state)))
    assert found["mf1"] == pytest.approx(np.mean(f1))
    together = [(true[i] == true[j], said[i] == said[j]) for i, j in combinations(range(len(true)), 2)]
    n = len(together)
    both, a, b = (sum(p and q for p, q in together), sum(p for p, _ in together), sum(q for _, q in together))
    assert found["ari"] == pytest.approx((both - a * b / n) / ((a + b) / 2 - a * b / n))


def test_a_perfect_segmentation_scores_one_in_everything_and_renaming_keeps_what_is_no_name() -> None:
    true, _ = pair()
    assert scores(true, true) == dict.fromkeys(("acc", "mf1", "ari", "nmi", "covering", "boundary_f1"), 1.0)
    renamed = scores(true, true + 7)
    assert renamed["acc"] == 0 and renamed["ari"] == renamed["covering"] == renamed["boundary_f1"] == 1.0


def test_covering_weighs_the_best_overlap_of_each_true_segment() -> None:
    # True segments [0, 6) and [6, 10), said [0, 4) and [4, 10).
    assert covering_of([6], [4], 10) == pytest.approx((6 * (4 / 6) + 4 * (4 / 6)) / 10)
    assert covering(np.zeros(8, int), np.arange(8)) == pytest.approx(1 / 8)


def test_a_boundary_matches_one_other_within_the_margin() -> None:
    assert boundaries(np.array([0, 0, 1, 1, 0])).tolist() == [2, 4]
    assert boundary_f1([10, 20], [12, 13, 40], 3) == pytest.approx(2 / 5)
    assert boundary_f1([10, 12], [11, 13], 1) == 1.0
    assert boundary_f1([], [], 1) == 1.0
    assert boundary_f1([10], [], 1) == 0.0


def test_level_zero_only_renumbers_by_first_appearance() -> None:
    assert coarse_states([7, 7, 3, 9, 3], 2, 0) == {7: 0, 3: 1, 9: 2}
    assert coarse_states([7, 7, 3, 9, 3], 2, 1) == {7: 0, 3: 0, 9: 1}
