"""The loss of MemPromptTSS: cross-entropy of all samples of a window, averaged over windows (spec section 5)."""

# B subsequences, W windows of each, T samples, K states

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["agreement", "window_losses"]


def window_losses(
    logits_BWTK: Tensor, state_BWT: Tensor, counts_B: Tensor | None = None, counts_BWT: Tensor | None = None
) -> Tensor:
    """Return the loss of each window, [W]: the mean over the samples of all subsequences.

    ``counts_B`` False: this subsequence does not count. ``counts_BWT`` False: this sample adds nothing to the mean. The loss of
    an update is the mean over windows.
    """
    losses_BWT = F.cross_entropy(logits_BWTK.movedim(-1, 1), state_BWT, reduction="none")
    return _means(losses_BWT if counts_BWT is None else losses_BWT * counts_BWT, counts_B)


def agreement(logits_BWTK: Tensor, with_BWTK: Tensor, counts_B: Tensor | None = None) -> Tensor:
    """Return for each window, [W], how far what logits say is from what others do: the mean divergence of their states."""
    apart_BWTK = F.kl_div(logits_BWTK.log_softmax(-1), with_BWTK.log_softmax(-1), reduction="none", log_target=True)
    return _means(apart_BWTK.sum(-1), counts_B)


def _means(losses_BWT: Tensor, counts_B: Tensor | None) -> Tensor:
    if counts_B is None:
        return losses_BWT.mean(dim=(0, 2))
    weight_B = counts_B.to(losses_BWT.dtype)
    return (losses_BWT.mean(2) * weight_B[:, None]).sum(0) / weight_B.sum().clamp_min(1.0)
