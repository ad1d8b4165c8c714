"""Hierarchical k-means whose clusters are of similar size, for posting lists (SPANN, arXiv 2111.08566, §3.2.1).

It knows vectors of unit length and nothing of lists or files. Deterministic given the rows and the seed.
"""

# N rows, D dim, P parts

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cluster", "representatives", "split_evenly"]

_BRANCHES = 8
_ITERATIONS = 8
_BALANCE = 0.5  # weight of the size penalty, in units of the mean squared distance to the own center


def cluster(x_ND: Tensor, most: int, *, seed: int) -> Tensor:
    """Split rows into clusters of at most ``most`` and return each row's cluster, int64 [N], numbered from 0 without gaps."""
    label_N = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
    waiting = [torch.arange(len(x_ND), device=x_ND.device)] if len(x_ND) else []
    number = 0
    while waiting:
        rows_N = waiting.pop()
        if len(rows_N) <= most:
            label_N[rows_N] = number
            number += 1
            continue
        part_N = split_evenly(x_ND[rows_N], min(_BRANCHES, -(-len(rows_N) // most)), seed=seed)
        waiting += [rows_N[part_N == p] for p in range(int(part_N.max()), -1, -1)]
    return label_N


def split_evenly(x_ND: Tensor, parts: int, *, seed: int) -> Tensor:
    """Split rows into at most ``parts`` clusters, at least two; return each row's, int64 [N], without gaps.

    Lloyd's iterations with a penalty on size. Rows that cannot be told apart are cut by their order.
    """
    number = len(x_ND)
    generator = torch.Generator().manual_seed(seed)
    first_P = torch.randperm(number, generator=generator)[:parts].to(x_ND.device)
    center_PD = x_ND[first_P].clone()
    count_P = torch.full((parts,), number / parts, device=x_ND.device)
    part_N = torch.full((number,), -1, device=x_ND.device)
    spread = x_ND.new_zeros(())
    square_N1, twice_ND = x_ND.square().sum(1, keepdim=True), 2 * x_ND
    for _ in range(_ITERATIONS):
        before = part_N, spread
        distance_NP = (center_PD.square().sum(1) - twice_ND @ center_PD.T) + square_N1
        part_N = (distance_NP + _BALANCE * spread * (count_P * parts / number)).argmin(1)
        spread = distance_NP.amin(1).clamp_min(0).mean()
        if torch.equal(part_N, before[0]) and torch.equal(spread, before[1]):
            break  # all further iterations would give the same
        count_P = torch.bincount(part_N, minlength=parts).to(x_ND.dtype)
        sum_PD = torch.zeros_like(center_PD).index_add_(0, part_N, x_ND)
        center_PD = torch.where(count_P[:, None] > 0, sum_PD / count_P.clamp_min(1)[:, None], center_PD)
    if int(count_P.max()) == number:
        return torch.arange(number, device=x_ND.device) * parts // number
    used_P = count_P > 0
    return (used_P.cumsum(0) - 1)[part_N]


def representatives(x_ND: Tensor, label_N: Tensor) -> Tensor:
    """Return for each cluster the position of the row nearest to its mean, int64 [P]; the first of equal ones."""
    parts = int(label_N.max()) + 1
    mean_PD = x_ND.new_zeros((parts, x_ND.shape[1])).index_add_(0, label_N, x_ND)
    mean_PD /= torch.bincount(label_N, minlength=parts)[:, None]
    distance_N = (x_ND - mean_PD[label_N]).square().sum(1)
    by_distance_N = distance_N.argsort(stable=True)
    order_N = by_distance_N[label_N[by_distance_N].argsort(stable=True)]
    count_P = torch.bincount(label_N, minlength=parts)
    return order_N[count_P.cumsum(0) - count_P]
