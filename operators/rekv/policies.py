"""The option ``policy``: how the blocks of a stream are stored and chosen. Needs no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from connectors.errors import ConfigError
from connectors.options import option

__all__ = ["EMLLM", "BlockFloat", "KVMerger", "Policy", "Scissorhands", "ThinK", "policy_dict"]

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

    def check_heads(self, width: int) -> None:
        """Raise ``ConfigError`` where ``block`` does not fit attention heads of ``width``."""
        if self.block is not None and (self.block % 2 or width % self.block):
            raise ConfigError(f"block={self.block} with heads of {width}; block must be even and divide the head's width")


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


def policy_dict(policy: Policy | None) -> dict[str, Any] | None:
    """Return a policy as JSON, for snapshots."""
    return None if policy is None else {"type": policy.type, **dataclasses.asdict(policy)}
