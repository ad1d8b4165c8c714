"""How good a segmentation is: accuracy, macro F1, ARI, NMI, covering, F1 of boundaries. NumPy only; knows no network."""

# T samples, K states

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["accuracy", "ari", "boundaries", "boundary_f1", "covering", "covering_of", "macro_f1", "nmi", "scores"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def accuracy(true_T: Ints, said_T: Ints) -> float:
    """Return the share of samples whose state is right."""
    return float(np.mean(np.asarray(true_T) == np.asarray(said_T)))


def macro_f1(true_T: Ints, said_T: Ints) -> float:
    """Return the mean F1 over the states that are there or were said (as scikit-learn's ``macro``)."""
    table = _table(true_T, said_T, shared=True)
    hit, total = np.diagonal(table), table.sum(0) + table.sum(1)
    return float(np.mean(2 * hit / total))


def ari(true_T: Ints, said_T: Ints) -> float:
    """Return the adjusted Rand index: 1 for equal partitions, 0 expected by chance."""
    table = _table(true_T, said_T)
    pairs, rows, columns = (float(_pairs(part).sum()) for part in (table, table.sum(1), table.sum(0)))
    every = float(_pairs(np.array([table.sum()]))[0])
    if every == 0:
        return 1.0
    expected, most = rows * columns / every, (rows + columns) / 2
    return 1.0 if most == expected else (pairs - expected) / (most - expected)


def nmi(true_T: Ints, said_T: Ints) -> float:
    """Return the mutual information over the arithmetic mean of the entropies."""
    share = _table(true_T, said_T) / len(true_T)
    rows, columns = share.sum(1), share.sum(0)
    there = share > 0
    information = float((share[there] * np.log(share[there] / np.outer(rows, columns)[there])).sum())
    entropy = (_entropy(rows) + _entropy(columns)) / 2
    return 1.0 if entropy == 0 else max(0.0, information / entropy)


def boundaries(states_T: Ints) -> Ints:
    """Return where a segment starts, the first one left out."""
    states_T = np.asarray(states_T)
    return np.flatnonzero(states_T[1:] != states_T[:-1]) + 1


def covering(true_T: Ints, said_T: Ints) -> float:
    """Return the covering of the true segments: the best overlap (Jaccard) of each with a said one, weighted by length."""
    return covering_of(boundaries(true_T), boundaries(said_T), len(true_T))


def covering_of(true: Sequence[int] | Ints, said: Sequence[int] | Ints, length: int) -> float:
    """Return the covering of segments that are given by their boundaries."""
    (start_A, stop_A), (start_B, stop_B) = _spans(true, length), _spans(said, length)
    both_AB = (np.minimum(stop_A[:, None], stop_B) - np.maximum(start_A[:, None], start_B)).clip(0)
    either_AB = (stop_A - start_A)[:, None] + (stop_B - start_B) - both_AB
    return float(((both_AB / either_AB).max(1) * (stop_A - start_A)).sum() / length)


def boundary_f1(true: Sequence[int] | Ints, said: Sequence[int] | Ints, margin: int) -> float:
    """Return the F1 of boundaries, each matching at most one other within ``margin`` samples; 1 where there are none."""
    true, said = np.sort(np.asarray(true, np.int64)), np.sort(np.asarray(said, np.int64))
    if not len(true) and not len(said):
        return 1.0
    matched = i = j = 0
    while i < len(true) and j < len(said):  # both sorted: the earliest match leaves most for the others
        if abs(true[i] - said[j]) <= margin:
            matched, i, j = matched + 1, i + 1, j + 1
        elif true[i] < said[j]:
            i += 1
        else:
            j += 1
    return 2 * matched / (len(true) + len(said))


def scores(true_T: Ints, said_T: Ints, *, margin: float = 0.01) -> dict[str, float]:
    """Return all of them by name. ``margin``: of boundaries, as a share of the length."""
    true_T, said_T = np.asarray(true_T, np.int64), np.asarray(said_T, np.int64)
    return {
        "acc": accuracy(true_T, said_T),
        "mf1": macro_f1(true_T, said_T),
        "ari": ari(true_T, said_T),
        "nmi": nmi(true_T, said_T),
        "covering": covering(true_T, said_T),
        "boundary_f1": boundary_f1(boundaries(true_T), boundaries(said_T), round(margin * len(true_T))),
    }


def _table(true_T: Ints, said_T: Ints, *, shared: bool = False) -> Ints:
    """Return how often each true state got each said one; ``shared``: both over the same states."""
    if shared:
        names, codes = np.unique(np.concatenate([true_T, said_T]), return_inverse=True)
        rows, columns, height, width = codes[: len(true_T)], codes[len(true_T) :], len(names), len(names)
    else:
        (a, rows), (b, columns) = np.unique(true_T, return_inverse=True), np.unique(said_T, return_inverse=True)
        height, width = len(a), len(b)
    return np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)


def _pairs(counts: Ints) -> Floats:
    return counts * (counts - 1.0) / 2


def _entropy(share: Floats) -> float:
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _spans(starts: Sequence[int] | Ints, length: int) -> tuple[Ints, Ints]:
    inner = np.unique(np.asarray(starts, np.int64))
    inner = inner[(inner > 0) & (inner < length)]
    return np.concatenate([[0], inner]), np.concatenate([inner, [length]])
