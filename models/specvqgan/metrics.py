"""How near made sounds are to real ones: FID, KL matched by clip, Inception score, KID (spec 12). Float64, no scipy.

All work on what a classifier sees (``melception.py``). Draws come from numpy's ``RandomState``, as in the published evaluation.
"""

# N clips, E feature width, L labels

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["frechet_distance", "inception_score", "kernel_distance", "matched_kl"]

_EPSILON = 1e-6


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


def frechet_distance(one_NE: Tensor, other_NE: Tensor) -> float:
    """Return the squared distance of two Gaussians fitted to features: FID. At least two rows each."""
    _require_rows(one_NE, other_NE, least=2)
    means = [rows.double().mean(0) for rows in (one_NE, other_NE)]
    covariances = [rows.double().T.cov().reshape(rows.shape[1], -1) for rows in (one_NE, other_NE)]
    # The trace of the root of a product: the eigenvalues of sqrt(A) B sqrt(A) are those of A B, and real.
    root = _square_root(covariances[0])
    values = torch.linalg.eigvalsh(root @ covariances[1] @ root)
    trace = values.clamp_min(0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return float(apart + covariances[0].trace() + covariances[1].trace() - 2 * trace)


def matched_kl(real_NL: Tensor, made_NL: Tensor) -> float:
    """Return the mean of KL(real || made) over clips in the same order, of softmaxes of logits: MKL."""
    if real_NL.shape != made_NL.shape:
        raise ValueError(f"logits are {list(real_NL.shape)} and {list(made_NL.shape)}; give the same clips in the same order")
    _require_rows(real_NL, made_NL, least=1)
    p, q = (logits.double().softmax(1) for logits in (real_NL, made_NL))
    return float((torch.xlogy(p, p) - p * (q + _EPSILON).log()).sum(1).mean())


def inception_score(unbiased_NL: Tensor, *, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Return mean and standard deviation of the score over ``splits`` parts of the shuffled logits."""
    _require_rows(unbiased_NL, least=splits)
    count = len(unbiased_NL)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    logs_NL = unbiased_NL.double()[order].log_softmax(1)
    scores = []
    for i in range(splits):
        part = logs_NL[i * count // splits : (i + 1) * count // splits]
        scores.append(float((part.exp() * (part - part.exp().mean(0).log())).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    one_NE: Tensor, other_NE: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Return mean and standard deviation of KID: the unbiased squared MMD of a cubic kernel over random ``subsets``."""
    _require_rows(one_NE, other_NE, least=size)
    found = [_mmd(one, other) for one, other in _subsets(one_NE.double(), other_NE.double(), subsets, size, seed)]
    return float(np.mean(found)), float(np.std(found))


def _subsets(one_NE: Tensor, other_NE: Tensor, subsets: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = np.random.RandomState(seed)
    for _ in range(subsets):
        first, second = (torch.from_numpy(random.choice(len(rows), size, replace=False)) for rows in (one_NE, other_NE))
        yield one_NE[first], other_NE[second]


def _mmd(one_NE: Tensor, other_NE: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    count = len(one_NE)
    within = sum((k := kernel(rows, rows)).sum() - k.trace() for rows in (one_NE, other_NE))
    return float(within / (count * (count - 1)) - 2 * kernel(one_NE, other_NE).mean())


def _require_rows(*tables: Tensor, least: int) -> None:
    for table in tables:
        if len(table) < least:
            raise ValueError(f"{len(table)} clips; this metric needs at least {least}")
