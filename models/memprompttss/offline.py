"""A whole series segmented at once: windows, votes, states. What a stream gets piece by piece is this (spec section 6)."""

# L samples, P prompts, W windows, T samples of a window, C channels, N tokens, D width, K states

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.memprompttss.model import MemPromptTSS, Prompts
from models.memprompttss.sampling import PromptMix, contexts, draw_prompts, random_centers

__all__ = ["Segmented", "label_prompts", "remote", "segment", "standardize", "window_starts"]


class Segmented(NamedTuple):
    """States of a series."""

    state_L: Tensor
    confidence_L: Tensor
    """Mean probability of the state over the windows that see the sample."""
    votes_L: Tensor
    """How many windows do."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start: every ``stride`` samples, and one more that ends with the series."""
    starts = list(range(0, length - window + 1, stride))
    if starts and starts[-1] + window < length:
        starts.append(length - window)
    return starts


def standardize(model: MemPromptTSS, x_LC: Tensor) -> Tensor:
    """Take mean and deviation of the training data out, where the network knows them."""
    if not model.config.mean:
        return x_LC
    return (x_LC - x_LC.new_tensor(model.config.mean)) / x_LC.new_tensor(model.config.std)


@torch.inference_mode()
def label_prompts(
    model: MemPromptTSS, x_LC: Tensor, state_L: Tensor, count: int, seed: int, *, incorrect: bool = False
) -> tuple[Tensor, Tensor]:
    """Tell the state at ``count`` random places (or with ``incorrect`` one that it is not); return the bank, and the places."""
    generator, config, device = torch.Generator().manual_seed(seed), model.config, next(model.parameters()).device
    mix = PromptMix(labels=1.0, incorrect=float(incorrect), near_boundaries=0.0)
    center_1P = random_centers(state_L[None], count, config.context, mix, generator)
    prompts = draw_prompts(state_L[None], center_1P, config.classes, mix, generator)
    flat = Prompts(*(part[0].to(device) for part in (prompts.kind, prompts.state, prompts.boundary, prompts.incorrect)))
    around = contexts(standardize(model, x_LC)[None], center_1P, config.context)[0].to(device)
    return model.remember(flat, around, alone=True), center_1P[0]


def remote(length: int, center_P: Tensor, window: int) -> Tensor:
    """Return which samples are further than a window from all places, [L]."""
    away_LP = (torch.arange(length)[:, None] - center_P).abs()
    return (away_LP > window).all(1)


@torch.inference_mode()
def segment(
    model: MemPromptTSS,
    x_LC: Tensor,
    bank_ND: Tensor | None = None,
    *,
    stride: int | None = None,
    batch: int = 64,
    standardized: bool = False,
) -> Segmented:
    """Segment a series of at least one window with a bank (None: an empty one), on the model's device.

    States of samples are the mean of votes, on the CPU.
    ``standardized``: mean and deviation of the training data are already taken out.
    """
    config, x_LC = model.config, x_LC.to(next(model.parameters()).device)
    step = stride or config.stride
    starts = window_starts(len(x_LC), config.window, step)
    if not starts:
        raise ValueError(f"a series of {len(x_LC)} samples is shorter than a window of {config.window}")
    if not standardized:
        x_LC = standardize(model, x_LC)
    m_1ND = x_LC.new_zeros(1, 0, config.width) if bank_ND is None else bank_ND[None]
    # In a stream the samples that the last regular window sees last are final before the one that ends with the series comes.
    regular = (len(x_LC) - config.window) // step
    last, settled = regular * step + 1, (regular + 1) * step
    total_LK, votes_L = x_LC.new_zeros(len(x_LC), config.classes), x_LC.new_zeros(len(x_LC))
    for chosen in torch.split(torch.tensor(starts), batch):
        chosen = chosen.to(x_LC.device)
        at_WT = chosen[:, None] + torch.arange(config.window, device=x_LC.device)
        of_W = torch.zeros(len(chosen), dtype=torch.int64, device=x_LC.device)
        tokens = model.ts_encoder(x_LC[at_WT], alone=True)
        said_WTK = model.decode(tokens, m_1ND, None, of_W).softmax(2)
        counts_WT = (at_WT >= settled) | (chosen < last)[:, None]
        total_LK.index_add_(0, at_WT[counts_WT], said_WTK[counts_WT])
        votes_L.index_add_(0, at_WT[counts_WT], torch.ones_like(said_WTK[:, :, 0])[counts_WT])
    confidence_L, state_L = (total_LK / votes_L[:, None]).max(1)
    return Segmented(state_L.cpu(), confidence_L.cpu(), votes_L.long().cpu())
