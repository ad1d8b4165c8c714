"""Scissorhands: tokens that were hardly attended to lately will hardly be attended to (arXiv 2305.17118).

Knows attention weights, not where they come from. Keys may be raw or rotated: a token is kept as a whole or dropped.
"""

# W steps of the history, G heads, T tokens

from __future__ import annotations

from torch import Tensor

__all__ = ["unimportant_counts"]


def unimportant_counts(attention_WGT: Tensor, seen_W: Tensor) -> Tensor:
    """Return how often each token was unimportant, int64 [G, T]: attended below 1/t, t being the tokens seen at that step.

    ``attention_WGT``: the weights of the last W steps, each the mean over the step's queries.
    """
    return (attention_WGT < 1.0 / seen_W.to(attention_WGT)[:, None, None]).sum(0)
