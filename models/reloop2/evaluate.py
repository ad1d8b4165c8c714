"""Metrics of click predictions: logloss, AUC, AUC per user, and each of them over consecutive windows.

A metric that is not defined (no rows, one class only) is None, never 0.5 or 0. Plain numpy in float64.
"""

# R rows, G groups, W windows

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["METRIC_EPS", "Metrics", "auc", "evaluate", "gauc", "logloss", "windows"]

METRIC_EPS = 1e-6
"""Probabilities are kept this far from 0 and 1 in the logloss: a compensated prediction may be exactly 0 or 1."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of some rows."""

    rows: int
    logloss: float | None
    auc: float | None
    gauc: float | None
    """None as well where no groups were given."""


def evaluate(label_R: ArrayLike, probability_R: ArrayLike, group_R: ArrayLike | None = None) -> Metrics:
    """Return all metrics. ``group_R``: the user (any integers or strings) of each row."""
    label, probability = _floats(label_R), _floats(probability_R)
    return Metrics(
        rows=len(label),
        logloss=logloss(label, probability),
        auc=auc(label, probability),
        gauc=None if group_R is None else gauc(label, probability, group_R),
    )


def logloss(label_R: ArrayLike, probability_R: ArrayLike, eps: float = METRIC_EPS) -> float | None:
    """Return the mean of -[y log p + (1 - y) log(1 - p)], p clipped to [eps, 1 - eps]; labels may be fractional."""
    loss_R = _losses(_floats(label_R), _floats(probability_R), eps)
    return float(loss_R.mean()) if len(loss_R) else None


def auc(label_R: ArrayLike, score_R: ArrayLike) -> float | None:
    """Return the probability that a positive scores above a negative, ties counting a half. None for one class only."""
    label = _floats(label_R)
    _, positives_G, negatives_G, wins_G = _wins(label, _floats(score_R), np.zeros(len(label), dtype=np.int64))
    pairs = float((positives_G * negatives_G).sum())
    return float(wins_G.sum()) / pairs if pairs else None


def gauc(label_R: ArrayLike, score_R: ArrayLike, group_R: ArrayLike) -> float | None:
    """Return the AUCs of the groups weighted by their rows; groups of one class are left out (paper §4.1)."""
    _, group = np.unique(np.asarray(group_R), return_inverse=True)
    rows_G, positives_G, negatives_G, wins_G = _wins(_floats(label_R), _floats(score_R), group)
    pairs_G = positives_G * negatives_G
    both = pairs_G > 0
    if not both.any():
        return None
    return float((rows_G[both] * wins_G[both] / pairs_G[both]).sum() / rows_G[both].sum())


def windows(label_R: ArrayLike, probability_R: ArrayLike, size: int, group_R: ArrayLike | None = None) -> list[Metrics]:
    """Return the metrics of consecutive windows of ``size`` rows; the last one may be shorter."""
    label, probability = _floats(label_R), _floats(probability_R)
    group = None if group_R is None else np.asarray(group_R)
    return [
        evaluate(label[i : i + size], probability[i : i + size], None if group is None else group[i : i + size])
        for i in range(0, len(label), size)
    ]


def _losses(label: _Floats, probability: _Floats, eps: float) -> _Floats:
    p = np.clip(probability, eps, 1 - eps)
    return -(label * np.log(p) + (1 - label) * np.log1p(-p))


def _wins(label: _Floats, score: _Floats, group: NDArray[np.int64]) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Return per group: rows, positives, negatives, and pairs (positive, negative) that are in order (ties: a half)."""
    order = np.lexsort((score, group))
    label, score, group = label[order], score[order], group[order]
    rows_G = np.bincount(group).astype(np.float64)
    positives_G: _Floats = np.bincount(group, weights=label, minlength=len(rows_G)).astype(np.float64)
    # Equal scores of a group share the mean of their ranks (from 1, within the group).
    fresh = np.ones(len(score), dtype=bool)
    fresh[1:] = (np.diff(score) != 0) | (np.diff(group) != 0)
    tie = np.cumsum(fresh) - 1
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(score)) - 1 if len(score) else first
    start_G = np.cumsum(rows_G) - rows_G
    rank = ((first + last) / 2 + 1)[tie] - start_G[group]
    rank_sum_G = np.bincount(group, weights=rank * label, minlength=len(rows_G))
    wins_G: _Floats = rank_sum_G - positives_G * (positives_G + 1) / 2
    return rows_G, positives_G, rows_G - positives_G, wins_G


def _floats(values: ArrayLike) -> _Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)
