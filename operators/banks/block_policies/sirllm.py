"""SirLLM: what was surprising is kept, and its weight decays from turn to turn (arXiv 2405.12528).

The entropy of a text token is -log p under the model. A video token has no such number; :func:`patch_surprise` is our stand-in.
"""

# N tokens (or blocks) of a memory, K kept ones, T patches per frame, D width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.banks.block_policies.kept_tokens import highest

__all__ = ["decay_entropy", "keep_tokens", "patch_surprise"]


def decay_entropy(entropy_N: Tensor, ratio: float) -> Tensor:
    """Return what is left of the entropies before a new turn: ``ratio`` times (1: never forget; paper: 0.7)."""
    return entropy_N * ratio


def keep_tokens(entropy_N: Tensor, start: int, top: int, recent: int) -> Tensor:
    """Return the positions that stay, ascending, at most ``start + top + recent``: first ones, surprising ones, last ones.

    The first ``start`` (attention sinks, 4 in the paper) and the last ``recent`` stay; of those between, the ``top`` of highest
    entropy, of equal ones the later.
    """
    count = entropy_N.shape[0]
    if count <= start + top + recent:
        return torch.arange(count, device=entropy_N.device)
    middle = highest(entropy_N[start : count - recent], top) + start
    ends = torch.arange(count, device=entropy_N.device)
    return torch.cat([ends[:start], middle, ends[count - recent :]])


def patch_surprise(features_TD: Tensor, previous_TD: Tensor) -> Tensor:
    """Return 1 - cosine of each patch to the same patch of the frame before, [..., T], in float32: 0..2."""
    return 1 - F.cosine_similarity(features_TD.float(), previous_TD.float(), dim=-1)
