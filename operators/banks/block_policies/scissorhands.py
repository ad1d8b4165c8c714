"""Scissorhands: tokens that were hardly attended to lately will hardly be attended to (arXiv 2305.17118).

Knows attention weights, not where they come from. Keys may be raw or rotated: a token is kept as a whole or dropped.
"""

# W steps of the history, G heads, T tokens, K kept tokens

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["compact", "unimportant_counts"]


def unimportant_counts(attention_WGT: Tensor, seen_W: Tensor) -> Tensor:
    """Return how often each token was unimportant, int64 [G, T]: attended below 1/t, t being the tokens seen at that step.

    ``attention_WGT``: the weights of the last W steps, each the mean over the step's queries.
    """
    return (attention_WGT < 1.0 / seen_W.to(attention_WGT)[:, None, None]).sum(0)


def compact(counts_GT: Tensor, budget: int, recent: int, drop: int) -> Tensor:
    """Return the positions [G, K] that stay, ascending: all while T <= ``budget``, else without the ``drop`` worst.

    The last ``recent`` tokens always stay; of equal counts the earlier token goes. Third-party defaults: history and drop
    ``budget // 2``, recent ``budget // 4``. As many tokens go from every head, at most those that are not recent.
    """
    heads, tokens = counts_GT.shape
    everything_GT = torch.arange(tokens, device=counts_GT.device).expand(heads, tokens)
    old = max(tokens - recent, 0)
    if tokens <= budget or not old:
        return everything_GT
    worst_GT = counts_GT[:, :old].sort(dim=1, descending=True, stable=True).indices[:, : min(drop, old)]
    stays_GT = torch.ones_like(everything_GT, dtype=torch.bool).scatter_(1, worst_GT, False)
    return everything_GT[stays_GT].view(heads, -1)
