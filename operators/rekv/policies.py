"""How the blocks of a stream are stored and chosen: the option ``policy``, and what each of its types means for the bank.

What a policy judges tokens and channels by is known when a block is written: queries and keys of the block's own frame, before
rotation. The question that will be asked is not. Knows no stream and no Arrow.
"""

# F frames, N frames of a reader, T tokens per frame, H query heads, G key/value heads, R heads per group, D head dim

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.options import option
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

__all__ = ["EMLLM", "BlockFloat", "BlockPolicy", "KVMerger", "Policy", "Scissorhands", "ThinK", "block_policy", "policy_dict"]

_KEEP_DOC = "Share of a frame's tokens that is stored, per head; at least one token."


@dataclass(frozen=True, kw_only=True)
class BlockFloat:
    """Keys in block floating point: 4 bits a number, an exponent for several (arXiv 2403.20137). Rounds keys."""

    type: ClassVar[str] = "block_float"
    block: int | None = option(
        None,
        "Numbers that share an exponent: even, and a divisor of the head's width. Default: half a head where that is even.",
        unit="numbers",
        ge=2,
    )


@dataclass(frozen=True, kw_only=True)
class KVMerger:
    """Neighboring tokens of a frame with similar keys become one (arXiv 2407.08454). Merges keys and values."""

    type: ClassVar[str] = "kv_merger"
    keep: float = option(0.5, _KEEP_DOC, gt=0, le=1)
    heavy: float = option(0.0, "Share of the tokens that are not merged: those attended to most; below keep.", ge=0, lt=1)
    scale_values: bool = option(False, "Weight merged values by the number of their tokens, as the paper writes.")

    def __post_init__(self) -> None:
        if self.heavy >= self.keep:
            raise ConfigError(f"heavy={self.heavy} must be below keep={self.keep}: tokens that are kept as they are count, too")


@dataclass(frozen=True, kw_only=True)
class Scissorhands:
    """Only the tokens of a frame that its queries attend to most often are stored (arXiv 2305.17118). Drops tokens."""

    type: ClassVar[str] = "scissorhands"
    keep: float = option(0.5, _KEEP_DOC, gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class ThinK:
    """Key channels that the frame's queries hardly use are not stored (arXiv 2407.21018). Sets key channels to 0."""

    type: ClassVar[str] = "think"
    ratio: float = option(0.4, "Share of the pairs of key channels that is dropped, per head.", ge=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class EMLLM:
    """Whole events are read in place of single frames, cut where the frames surprise (arXiv 2407.09450). Loses nothing."""

    type: ClassVar[str] = "em_llm"
    window: int = option(64, "Frames before a frame that its surprise is compared with.", unit="frames", ge=1)
    gamma: float = option(1.0, "Standard deviations above their mean at which a frame begins an event.", ge=0)
    shortest: int = option(4, "Least length of an event; the paper's 8 are tokens.", unit="frames", ge=1)
    longest: int = option(16, "Most length of an event; the paper's 128 are tokens.", unit="frames", ge=1)
    refine: bool = option(False, "Move the boundaries to where the events on both sides hang together best. Slower answers.")
    contiguity: float = option(
        0.0, "Share of retrieve_frames that goes to neighbors of the frames chosen; the paper has 0.3.", ge=0, lt=1
    )

    def __post_init__(self) -> None:
        if self.shortest > self.longest:
            raise ConfigError(f"shortest={self.shortest} must not be above longest={self.longest}")


Policy = BlockFloat | KVMerger | Scissorhands | ThinK | EMLLM
"""Options of each policy."""

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


def policy_dict(policy: Policy | None) -> dict[str, Any] | None:
    """Return a policy as JSON, for snapshots."""
    return None if policy is None else {"type": policy.type, **dataclasses.asdict(policy)}


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
