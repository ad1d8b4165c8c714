"""Rows of many streams in rounds: round j holds the j-th row of each stream, so that a round changes no slot twice."""

# B rows of a call

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["rank_within", "rounds"]

Ints = npt.NDArray[np.int64]


def rank_within(groups_B: Ints) -> Ints:
    """Return for each row how many rows before it are of the same group, [B]."""
    if not len(groups_B) or (groups_B == groups_B[0]).all():
        return np.arange(len(groups_B))
    order_B = np.argsort(groups_B, kind="stable")
    sorted_B = groups_B[order_B]
    start_B = np.zeros(len(groups_B), np.int64)
    change_B = np.flatnonzero(sorted_B[1:] != sorted_B[:-1]) + 1
    start_B[change_B] = change_B
    rank_B = np.empty(len(groups_B), np.int64)
    rank_B[order_B] = np.arange(len(groups_B)) - np.maximum.accumulate(start_B)
    return rank_B


def rounds(slots_B: Ints) -> list[Ints]:
    """Return the rows of each round, in order."""
    rank_B = rank_within(np.asarray(slots_B, np.int64))
    return [np.flatnonzero(rank_B == j) for j in range(int(rank_B.max(initial=-1)) + 1)]
