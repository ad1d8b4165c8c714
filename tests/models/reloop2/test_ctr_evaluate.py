"""Metrics against pairs counted one by one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.reloop2.evaluate import auc, evaluate, gauc, logloss, windows

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), max_size=40)


def counted_auc(labels: list[int], scores: list[float]) -> float | None:
    pairs = [(p, n) for p, y in zip(scores, labels, strict=True) if y for n, z in zip(scores, labels, strict=True) if not z]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else None


@given(rows)
@settings(max_examples=80, deadline=None)
def test_auc_and_gauc_are_counted_pairs(drawn: list[tuple[int, int, int]]):
    labels, scores, users = [list(column) for column in zip(*drawn, strict=True)] if drawn else [[], [], []]
    assert auc(labels, scores) == pytest.approx(counted_auc(labels, scores))
    weighted, total = 0.0, 0
    for user in set(users):
        mine = [i for i, u in enumerate(users) if u == user]
        found = counted_auc([labels[i] for i in mine], [scores[i] for i in mine])
        if found is not None:
            weighted, total = weighted + len(mine) * found, total + len(mine)
    assert gauc(labels, scores, users) == pytest.approx(weighted / total if total else None)


def test_logloss_is_bounded_for_certain_predictions():
    assert logloss([1, 0], [0.8, 0.4]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert logloss([1], [0.0]) == pytest.approx(-math.log(1e-6))
    assert logloss([0], [1.0], eps=1e-3) == pytest.approx(-math.log(1e-3))
    assert logloss([0.25], [0.5]) == pytest.approx(math.log(2))


def test_what_is_not_defined_is_none():
    assert (logloss([], []), auc([], []), gauc([], [], [])) == (None, None, None)
    assert auc([1, 1], [0.2, 0.3]) is None and gauc([1, 1, 0], [0.2, 0.3, 0.1], ["a", "a", "b"]) is None
    found = evaluate([1, 1], [0.5, 0.5])
    assert (found.rows, found.auc, found.gauc) == (2, None, None)


def test_windows_are_evaluated_one_by_one():
    rng = np.random.default_rng(0)
    label, score, user = rng.integers(0, 2, 25), rng.random(25), rng.integers(0, 3, 25).astype(str)
    found = windows(label, score, 10, user)
    assert [window.rows for window in found] == [10, 10, 5]
    assert found[1] == evaluate(label[10:20], score[10:20], user[10:20])
