"""Which frames a question retrieves: scores against the frames' representatives, chunks, the best of them (paper section 3.2).

Plain functions of one stream and one layer. Ties go to the earlier frame, so a result never depends on the device's sort.
"""

# H query heads, G key/value heads, D head dim, n question tokens, N frames, C chunks, K chosen chunks

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frame_scores", "select_frames"]


def frame_scores(query_HnD: Tensor, representatives_NGD: Tensor, score: str) -> Tensor:
    """Return the score of each frame, [N] in float32.

    ``dot``: sum over query heads of (mean query over the text) . (mean key of the frame). Heads that share keys are summed
    first, which is the same number from a G/H-th of the multiplications. ``cosine``: divided by both norms, of the
    concatenated heads. Queries and keys are the ones before rotation.
    """
    groups = representatives_NGD.shape[1]
    mean_HD = query_HnD.float().mean(dim=1)
    heads_per_group = mean_HD.shape[0] // groups
    query_GD = mean_HD.view(groups, heads_per_group, -1).sum(dim=1)
    keys_ND = representatives_NGD.float().flatten(1)
    dot_N: Tensor = keys_ND @ query_GD.flatten()
    if score == "dot":
        return dot_N
    norms_N = mean_HD.norm() * heads_per_group**0.5 * keys_ND.norm(dim=1)
    cosine_N: Tensor = dot_N / norms_N.clamp(min=torch.finfo(torch.float32).tiny)
    return cosine_N


def select_frames(scores_N: Tensor, frames: int, chunk: int, first: int = 0) -> Tensor:
    """Return the numbers of at most ``frames`` frames, ascending: the ``frames / chunk`` chunks of the highest mean score.

    ``first`` is the number of the frame of score 0. Chunks are counted from frame 0; those at both ends may be short, and
    then fewer frames come back if one is chosen.
    """
    numbers_N = torch.arange(first, first + scores_N.shape[0], device=scores_N.device)
    if len(numbers_N) <= frames:
        return numbers_N
    if chunk == 1:
        return numbers_N[_best(scores_N, frames)]
    head = first % chunk
    ends = (head, -(head + len(numbers_N)) % chunk)
    sums_C = torch.nn.functional.pad(scores_N, ends).view(-1, chunk).sum(dim=1)
    sizes_C = torch.nn.functional.pad(torch.ones_like(scores_N), ends).view(-1, chunk).sum(dim=1)
    best_K = _best(sums_C / sizes_C, frames // chunk)
    members = ((best_K[:, None] * chunk + torch.arange(chunk, device=best_K.device)).flatten()) - head
    return numbers_N[members[(members >= 0) & (members < len(numbers_N))]]


def _best(scores_N: Tensor, count: int) -> Tensor:
    """Return the indices of the highest scores, ascending; of equal ones the first."""
    return torch.sort(scores_N, descending=True, stable=True).indices[:count].sort().values
