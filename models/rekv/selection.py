"""Which frames a question retrieves: scores against the frames' representatives, chunks, the best of them (paper section 3.2).

Plain functions of one stream and one layer. Ties go to the earlier frame, so a result never depends on the device's sort.
"""

# H query heads, G key/value heads, D head dim, n question tokens, N frames, C chunks, K frames of a chunk

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


def select_frames(scores_N: Tensor, frames: int, chunk: int) -> Tensor:
    """Return the indices of at most ``frames`` frames, ascending: the ``frames / chunk`` chunks of the highest mean score.

    Chunks are counted from the first frame; the last one may be short, and then fewer frames come back if it is chosen.
    """
    total = scores_N.shape[0]
    if total <= frames:
        return torch.arange(total, device=scores_N.device)
    if chunk > 1:
        chunks = -(-total // chunk)
        padded_CK = torch.nn.functional.pad(scores_N, (0, chunks * chunk - total)).view(chunks, chunk)
        sizes_C = torch.full_like(padded_CK[:, 0], chunk)
        sizes_C[-1] = total - (chunks - 1) * chunk
        scores_N = padded_CK.sum(dim=1) / sizes_C
    best = torch.sort(scores_N, descending=True, stable=True).indices[: frames // chunk].sort().values
    if chunk == 1:
        return best
    members = (best[:, None] * chunk + torch.arange(chunk, device=best.device)).flatten()
    return members[members < total]
