"""From logits to tokens, and the grids of whole sounds: one window, or a window that slides (spec 8.1 and 8.2).

A token is drawn as argmax(p / e) with exponential noise e that the caller gives: the same noise gives the same tokens in any
batch. Nothing is kept between calls.
"""

# B batch, K codes, N tokens, E feature width, F features

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.specvqgan.config import ROWS
from models.specvqgan.transformer import KVCache, SoundTransformer

__all__ = ["Noise", "centered_start", "choose", "generate", "hopping_start", "keep_top"]

Noise = Callable[[int], Tensor]
"""Place of a token in the sequence → its exponential noise [B, K]."""


def keep_top(logits_BK: Tensor, k: int | None) -> Tensor:
    """Return the logits with all but the ``k`` greatest at minus infinity. Those equal to the least kept stay, too."""
    if not k or k >= logits_BK.shape[1]:
        return logits_BK
    least_B1 = logits_BK.topk(k, dim=1).values[:, -1:]
    return logits_BK.masked_fill(logits_BK < least_B1, -torch.inf)


def choose(logits_BK: Tensor, noise_BK: Tensor | None, *, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Return one token each [B]. Without noise, or at temperature 0, the most likely one."""
    if noise_BK is None or temperature == 0:
        return logits_BK.argmax(dim=1)
    p_BK = keep_top(logits_BK.float() / temperature, top_k).softmax(dim=1)
    return (p_BK / noise_BK).argmax(dim=1)


def centered_start(column: int, start: int, columns: int, total: int) -> int:
    """Return the first column of the published window for ``column``: it stands in the middle where the sound allows."""
    return min(max(0, column - columns // 2), max(0, total - columns))


def hopping_start(hop: int) -> Callable[[int, int, int, int], int]:
    """Return the rule by which a full window drops its ``hop`` oldest columns."""

    def rule(column: int, start: int, columns: int, total: int) -> int:
        return start + hop * max(0, -(-(column - start - columns + 1) // hop))

    return rule


@torch.inference_mode()
def generate(
    model: SoundTransformer,
    feats_BEF: Tensor,
    columns: int,
    *,
    noise: Noise | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    prime_BN: Tensor | None = None,
    rule: Callable[[int, int, int, int], int] = centered_start,
    cache: KVCache | None = None,
) -> Tensor:
    """Return the tokens [B, 5 x columns] of sounds that one set of features belongs to.

    ``prime_BN`` tokens are given rather than drawn. ``rule``: where the window of a column begins (column, begin so far,
    columns of a window, columns in all). Where it moves, features and kept columns are read once; else only new tokens are:
    the same tokens as a full pass for each (spec 8.2).
    """
    size, device = len(feats_BEF), feats_BEF.device
    cache = cache or KVCache.empty(model.config, size, device=device, dtype=next(model.parameters()).dtype)
    slots_B = torch.arange(size)
    tokens_BN = torch.zeros(size, ROWS * columns, dtype=torch.int64, device=device)
    primed = 0
    if prime_BN is not None:
        primed = min(prime_BN.shape[1], tokens_BN.shape[1])
        tokens_BN[:, :primed] = prime_BN[:, :primed]
    start, read_to = 0, -1  # of the window, in columns; tokens of it that the cache holds, -1: not even the features
    for place in range(primed, tokens_BN.shape[1]):
        moved = rule(place // ROWS, start, model.config.columns, columns)
        if moved != start:
            start, read_to = moved, -1
        first = ROWS * start
        new_BN = tokens_BN[:, first + max(read_to, 0) : place]
        x_BNC = model.embed(feats_BEF if read_to < 0 else None, new_BN if new_BN.shape[1] or read_to >= 0 else None)
        at = 0 if read_to < 0 else model.config.features + read_to
        logits_BK = model.read(x_BNC, cache, slots_B, torch.full_like(slots_B, at))
        noise_BK = None if noise is None else noise(place)
        tokens_BN[:, place] = choose(logits_BK, noise_BK, temperature=temperature, top_k=top_k)
        read_to = place - first
    return tokens_BN
