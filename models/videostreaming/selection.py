"""Which memories a question selects, and how selecting is learned (paper section 3.2). Plain functions of scores.

Ties go to the newer clip (inferred), so that a result never depends on the device's sort.
"""

# K clips, B questions, V selected clips, D width of an indicator

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["gumbel_noise", "gumbel_top", "selection_loss", "similarities", "stored_indicator", "top_clips"]


def stored_indicator(indicator: Tensor, similarity: str) -> Tensor:
    """Return an indicator [..., D] as it is stored, float32: of length 1 where cosines are taken."""
    wide = indicator.float()
    return normalize(wide, dim=-1) if similarity == "cosine" else wide


def similarities(question_D: Tensor, indicators_KD: Tensor, similarity: str = "cosine") -> Tensor:
    """Return the similarity [K] of a question's indicator to stored indicators."""
    scores_K: Tensor = indicators_KD @ stored_indicator(question_D, similarity)
    return scores_K


def top_clips(scores_K: Tensor, count: int) -> Tensor:
    """Return the places of the ``count`` highest scores, ascending; all where there are no more. -inf is never chosen."""
    newest_first_K = scores_K.flip(0)
    order_K = torch.sort(newest_first_K, descending=True, stable=True).indices
    chosen = (scores_K.shape[0] - 1 - order_K)[:count]
    return chosen[scores_K[chosen] > -torch.inf].sort().values


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Draw standard Gumbel noise."""
    tiny = torch.finfo(torch.float32).tiny
    uniform = torch.rand(shape, generator=generator).clamp(min=tiny)
    return -torch.log((-torch.log(uniform)).clamp(min=tiny))


def gumbel_top(
    scores_BK: Tensor, count: int, *, noise_BK: Tensor | None = None, temperature: float = 1.0, scale: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the selection [B, K] of training and its soft form (Gumbel top-k, straight through).

    y = softmax((scale * s + g) / temperature); the selection has exactly ``count`` ones (fewer only where there are fewer
    clips) and the gradient of y. Places of -inf are no clips.
    """
    scaled_BK = _scaled(scores_BK, scale)
    logits_BK = scaled_BK if noise_BK is None else scaled_BK + noise_BK
    soft_BK = torch.softmax(logits_BK / temperature, dim=-1)
    top = logits_BK.topk(min(count, logits_BK.shape[-1]), dim=-1)  # as y orders them, and without its underflow
    hard_BK = torch.zeros_like(soft_BK).scatter(-1, top.indices, (top.values > -torch.inf).to(soft_BK.dtype))
    return hard_BK - soft_BK.detach() + soft_BK, soft_BK


def selection_loss(scores_BK: Tensor, relevant_BK: Tensor, *, scale: float | Tensor = 1.0, temperature: float = 1.0) -> Tensor:
    """Return KL(target || softmax(scale * s / temperature)) per question, [B]; the target is uniform over relevant clips.

    The temporal supervision of the warm-up (paper section 3.3). A question without a relevant clip costs nothing.
    """
    log_soft_BK = torch.log_softmax(_scaled(scores_BK, scale) / temperature, dim=-1)
    target_BK = relevant_BK.float() / relevant_BK.sum(dim=-1, keepdim=True).clamp(min=1)
    # xlogy: nothing times the logarithm of nothing is nothing; clips that are none have a log of -inf and no target.
    cross_BK = torch.where(relevant_BK, target_BK * log_soft_BK, torch.zeros_like(log_soft_BK))
    return (torch.xlogy(target_BK, target_BK) - cross_BK).sum(dim=-1)


def _scaled(scores_BK: Tensor, scale: float | Tensor) -> Tensor:
    """Return scores times a scale that may be learned: what is no clip stays -inf and gives no gradient, which were nan."""
    no_clip_BK = scores_BK == -torch.inf
    return (scale * scores_BK.masked_fill(no_clip_BK, 0.0)).masked_fill(no_clip_BK, -torch.inf)
