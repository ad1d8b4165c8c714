"""Steps of one token, compiled per bucket of streams and of positions: on a GPU each is one CUDA graph."""

# B streams, b their bucket, K codes

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.compiled import bucket, compile_alone, padded
from models.specvqgan.sampling import choose
from models.specvqgan.transformer import KVCache, SoundTransformer
from models.uploads import upload

__all__ = ["CompiledSteps", "Draw", "Step", "compiled_draws", "drawn", "eager_step"]

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens [B] on the device, slots [B] and positions [B] on the host → logits [B, K]."""

Draw = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
""":func:`drawn` at some temperature."""


def eager_step(network: SoundTransformer, cache: KVCache) -> Step:
    """Return what reads one token of each slot: the reference of the compiled one."""

    def step(tokens_B: Tensor, slots_B: Tensor, at_B: Tensor) -> Tensor:
        return network.read(network.embed(None, tokens_B[:, None]), cache, slots_B, at_B)

    return step


def drawn(
    logits_BK: Tensor,
    good_B: Tensor,
    greedy_B: Tensor,
    noise_BK: Tensor | None,
    *,
    temperature: float,
    top_k: int | None,
) -> tuple[Tensor, Tensor]:
    """Return a token of each stream [B], and which streams have had no logit but finite ones so far.

    See :func:`models.specvqgan.sampling.choose`; streams that are ``greedy_B`` get the most likely token.
    """
    good_B = good_B & logits_BK.isfinite().all(1)
    logits_BK = torch.where(good_B[:, None], logits_BK, torch.zeros_like(logits_BK))
    best_B = logits_BK.argmax(1)
    if noise_BK is None or temperature == 0:
        return best_B, good_B
    return torch.where(greedy_B, best_B, choose(logits_BK, noise_BK, temperature=temperature, top_k=top_k)), good_B


def compiled_draws(draw: Draw, device: torch.device) -> Draw:
    """Return ``draw`` compiled per batch bucket."""
    compiled: dict[int, Draw] = {}

    def run(logits_BK: Tensor, good_B: Tensor, greedy_B: Tensor, noise_BK: Tensor | None) -> tuple[Tensor, Tensor]:
        count = len(logits_BK)
        size = bucket(count)
        if size not in compiled:
            compiled[size] = compile_alone(draw, device, whole=True)
        noise_bK = None if noise_BK is None else padded(noise_BK, size)
        logits_bK, good_b, greedy_b = (padded(x_B, size) for x_B in (logits_BK, good_B, greedy_B))
        next_b, good_b = compiled[size](logits_bK, good_b, greedy_b, noise_bK)
        return next_b[:count].clone(), good_b[:count].clone()

    return run


class CompiledSteps:
    """Steps of one transformer over one cache. Batches and positions are rounded up to powers of two."""

    def __init__(self, network: SoundTransformer, cache: KVCache) -> None:
        self._network, self._cache = network, cache
        self._compiled: dict[tuple[int, int, bool], Callable[..., Tensor]] = {}
        for held_SHPD in (*cache.keys, *cache.values):
            torch._dynamo.mark_static_address(held_SHPD)  # without it a graph copies them in and out in every step

    def __call__(self, tokens_B: Tensor, slots_B: Tensor, at_B: Tensor) -> Tensor:
        """Read one token of each slot; return the logits."""
        network, cache, count = self._network, self._cache, len(slots_B)
        size = bucket(count)
        rows = min(bucket(int(at_B.max()) + 1), network.config.positions)
        beside = size == count and torch.equal(slots_B, torch.arange(count))
        key = size, rows, beside
        if key not in self._compiled:

            def step(tokens_b: Tensor, slots_b: Tensor, at_b: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
                return network.read_one(tokens_b, slots_b, at_b, keys, values, rows, beside=beside)

            self._compiled[key] = compile_alone(step, tokens_B.device, whole=True)
        given = (padded(tokens_B, size), *(upload(padded(x_B, size), tokens_B.device) for x_B in (slots_B, at_B)))
        # The memory of a graph is used again by its next call.
        return self._compiled[key](*given, cache.keys, cache.values)[:count].clone()
