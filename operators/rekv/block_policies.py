"""What each type of the option ``policy`` means for the bank.

What a policy judges tokens and channels by is known when a block is written: queries and keys of the block's own frame, before
rotation. The question that will be asked is not. Knows no stream and no Arrow.
"""

# F frames, N frames of a reader, T tokens per frame, H query heads, G key/value heads, R heads per group, D head dim

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rekv.config import ReKVConfig
from models.rekv.store import ReadableBlocks
from operators.banks import BlockCodec, BlockSpec, PlainCodec
from operators.banks.block_policies import (
    BlockFloatCodec,
    KeptTokensCodec,
    KVMergerCodec,
    ThinKCodec,
    event_starts,
    frame_surprise,
    refine_starts,
    select_events,
    unimportant_counts,
    with_neighbors,
)
from operators.rekv.policies import EMLLM, BlockFloat, KVMerger, Policy, Scissorhands, ThinK

__all__ = ["BlockPolicy", "Stats", "block_policy"]

Stats = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Queries [F, H, T, D] and keys [F, G, T, D] of a layer → what the codec judges by."""

Select = Callable[[int, Tensor], Tensor]
"""Layer and scores [N] → frames to read, ascending."""


@dataclass(frozen=True, slots=True)
class BlockPolicy:
    """What a policy means for blocks of one shape."""

    codec: BlockCodec
    tokens: int
    """Tokens of a block as it is read."""
    stats: Stats | None = None
    """None: the codec needs nothing but keys and values."""
    select: Callable[[ReadableBlocks, ReKVConfig], Select] | None = None
    """None: the frames of highest score."""
    is_exact: bool = False
    """Blocks are read as they were written, so a window can be rebuilt from them."""


def block_policy(policy: Policy | None, spec: BlockSpec) -> BlockPolicy:
    """Return what a policy means for blocks of this shape; None: stored as they are, best frames are read."""
    dtype, tokens = spec.dtype, spec.tokens
    match policy:
        case BlockFloat():
            block = policy.block or (spec.dim // 2 if spec.dim % 4 == 0 else spec.dim)
            return BlockPolicy(BlockFloatCodec(block, dtype), tokens)
        case KVMerger():
            kept = _kept(policy.keep, tokens)
            heavy = min(int(policy.heavy * tokens), kept - 1)
            return BlockPolicy(KVMergerCodec(kept, heavy, policy.scale_values, dtype), kept, _merger_stats)
        case Scissorhands():
            kept = _kept(policy.keep, tokens)
            return BlockPolicy(KeptTokensCodec(kept, dtype), kept, _scissorhands_stats)
        case ThinK():
            return BlockPolicy(ThinKCodec(policy.ratio, dtype), tokens, _think_stats)
        case EMLLM():
            select = lambda blocks, config: _select_events(policy, blocks, config)  # noqa: E731
            return BlockPolicy(PlainCodec(dtype), tokens, select=select, is_exact=True)
        case None:
            return BlockPolicy(PlainCodec(dtype), tokens, is_exact=True)


def _kept(share: float, tokens: int) -> int:
    return max(1, int(share * tokens))


def _frame_attention(queries_FHTD: Tensor, keys_FGTD: Tensor) -> Tensor:
    """Return what each query of a frame gives each of its tokens, [F, G, queries, T], mean over heads that share keys."""
    frames, _, tokens, dim = queries_FHTD.shape
    queries_FGRTD = queries_FHTD.reshape(frames, keys_FGTD.shape[1], -1, tokens, dim)
    logits = queries_FGRTD.float() @ keys_FGTD.float()[:, :, None].transpose(3, 4) * dim**-0.5
    attention_FGQT: Tensor = logits.softmax(dim=-1).mean(dim=2)
    return attention_FGQT


def _scissorhands_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Score tokens by how seldom a query of the frame found them unimportant."""
    attention_WFGT = _frame_attention(queries_FHTD, keys_FGTD).permute(2, 0, 1, 3)
    steps, frames, groups, tokens = attention_WFGT.shape
    counts = unimportant_counts(attention_WFGT.reshape(steps, frames * groups, tokens), torch.full((steps,), tokens))
    return {"score": -counts.view(frames, groups, tokens).float()}


def _merger_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Return the attention that tokens received, summed over the frame's queries."""
    return {"attention": _frame_attention(queries_FHTD, keys_FGTD).sum(dim=2)}


def _think_stats(queries_FHTD: Tensor, keys_FGTD: Tensor) -> dict[str, Tensor]:
    """Return the mean squares of the frame's queries per channel, over the heads that share keys."""
    frames, dim = len(queries_FHTD), queries_FHTD.shape[-1]
    return {"query_squares": queries_FHTD.float().square().reshape(frames, keys_FGTD.shape[1], -1, dim).mean(dim=2)}


def _select_events(policy: EMLLM, blocks: ReadableBlocks, config: ReKVConfig) -> Select:
    """Retrieve whole events, and with ``contiguity`` what lies beside them."""
    room = int(config.retrieve_frames * policy.contiguity)

    def select(layer: int, scores_N: Tensor) -> Tensor:
        representatives_ND = blocks.representatives(layer).flatten(1)
        surprise_N = frame_surprise(representatives_ND)
        starts_E = event_starts(
            surprise_N, window=policy.window, gamma=policy.gamma, shortest=policy.shortest, longest=policy.longest
        )
        if policy.refine:
            starts_E = refine_starts(starts_E, representatives_ND)
        chosen_K = select_events(scores_N, starts_E, config.retrieve_frames - room)
        return blocks.first + (with_neighbors(chosen_K, scores_N, room) if room else chosen_K)

    return select
