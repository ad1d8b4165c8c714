"""The operator's own rules as plain functions: where a stream is cut into clips, how clips are stored, which are neighbors."""

# N blocks, G = 1, M tokens of a memory, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from operators.banks import BlockSpec, RowSpec
from operators.banks.blocks.spec import required

__all__ = ["FACTS", "ClipCodec", "Cut", "CutRules", "clip_spec", "cut_clips", "joined"]

FACTS = ("start_us", "end_us", "tokens")
"""What stands beside a memory: its clip's time, from the stream's first frame, and how many of its tokens are real."""


@dataclass(frozen=True, slots=True)
class CutRules:
    """When a clip ends."""

    frames: int
    clip_us: int
    gap_us: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip that ended: frames ``start`` to ``stop``, and the frame by which it is known to have ended."""

    start: int
    stop: int
    by: int


def cut_clips(times_us: Sequence[int], known: int, rules: CutRules) -> tuple[list[Cut], int]:
    """Return the clips that end with these frames, and the first frame of the one that is still open.

    The first ``known`` frames are those of the open clip so far. A clip ends with its last frame if it is full, else by the
    first frame that comes ``clip_us`` or more after its first one or more than ``gap_us`` after its last one, and which begins
    the next. A short clip keeps its real length.
    """
    cuts, start = [], 0
    for i in range(known, len(times_us)):
        if i > start and (times_us[i] - times_us[start] >= rules.clip_us or times_us[i] - times_us[i - 1] > rules.gap_us):
            cuts.append(Cut(start, i, i))
            start = i
        if i + 1 - start == rules.frames:
            cuts.append(Cut(start, i + 1, i))
            start = i + 1
    return cuts, start


def joined(clips: Sequence[int]) -> list[range]:
    """Return runs of neighboring clips as ranges of places in ``clips``, which ascend."""
    runs: list[range] = []
    for place, clip in enumerate(clips):
        if runs and clip == clips[place - 1] + 1:
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def clip_spec(tokens: int, width: int, dtype: torch.dtype) -> BlockSpec:
    """Return the shape of a clip's block: its memory; it is found by its indicator, [1, D]."""
    return BlockSpec(layers=1, groups=1, tokens=tokens, dim=width, dtype=dtype)


@dataclass(frozen=True, slots=True)
class ClipCodec:
    """A memory as it is (``keys``; ``values`` are not stored), and ``FACTS`` (``stats["facts"]``, int64)."""

    dtype: torch.dtype

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``memory`` and ``facts``."""
        memory = RowSpec((spec.groups, spec.tokens, spec.dim), self.dtype)
        return {"memory": memory, "facts": RowSpec((len(FACTS),), torch.int64)}

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return both fields."""
        return {"memory": keys_NGTD.to(self.dtype), "facts": required(stats, "facts").flatten(1)}

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return memories [N, 1, M, D] and facts [N, 3]."""
        return fields["memory"], fields["facts"]
