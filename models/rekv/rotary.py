"""Rotary positions applied at the time of use: angles in float64, one axis (text, most decoders) or three (Qwen-VL).

Keys are stored without rotation; whoever attends rotates. The index of a token in its sequence and its position on the axes
differ only for decoders with three axes, where the tokens of a frame lie on a (time, row, column) grid.
"""

# A axes (1 or 3), N tokens, D head dim, F = D / 2 frequencies, T tokens per frame

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from connectors.errors import ConfigError
from models.uploads import upload

__all__ = ["Grid", "Rotary", "Turn"]

_REFUSED = ("dynamic", "longrope")  # their frequencies depend on the length seen so far, so that stored keys would go stale


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of some positions, [..., N, D] in float32."""

    cos_ND: Tensor
    sin_ND: Tensor
    """Negative in the first half: what is turned there is subtracted."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate ``x`` [..., N, D]; computed in float32, returned in the type of ``x``."""
        other = x.roll(x.shape[-1] // 2, dims=-1) * self.sin_ND
        return (x * self.cos_ND).add_(other).to(x.dtype)

    def __getitem__(self, part: slice) -> Turn:
        return Turn(self.cos_ND[..., part, :], self.sin_ND[..., part, :])


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tokens of one frame lie, relative to the frame's first position: ``offsets_AT``, next frame at ``span``."""

    offsets_AT: Tensor
    span: int

    @staticmethod
    def line(tokens: int) -> Grid:
        """One axis: the tokens of a frame follow each other."""
        return Grid(torch.arange(tokens).unsqueeze(0), tokens)

    @staticmethod
    def volume(time: int, rows: int, columns: int) -> Grid:
        """Three axes, tokens in the order time, row, column (Qwen2-VL, arXiv 2409.12191 section 2.1)."""
        axes = torch.meshgrid(torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij")
        return Grid(torch.stack([axis.flatten() for axis in axes]), max(time, rows, columns))

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.offsets_AT.shape[1]

    def positions(self, start: int, stop: int, prefix: int, frames: int) -> Tensor:
        """Return [A, stop - start] positions of tokens ``start`` to ``stop`` of: prefix, ``frames`` frames, text."""
        index_N = torch.arange(start, stop)
        frame_N = ((index_N - prefix).clamp(min=0) // self.tokens).clamp(max=max(frames - 1, 0))
        inside_N = (index_N - prefix - frame_N * self.tokens).clamp(0, self.tokens - 1)
        video_AN = prefix + frame_N * self.span + self.offsets_AT[:, inside_N]
        text_N = index_N + frames * (self.span - self.tokens)
        positions_AN = torch.where(index_N < prefix + frames * self.tokens, video_AN, text_N)
        return torch.where(index_N < prefix, index_N, positions_AN)


class Rotary:
    """The rotation of one decoder."""

    def __init__(self, frequencies_F: Tensor, axis_F: Tensor, factor: float = 1.0) -> None:
        """``axis_F``: which axis turns each frequency. ``factor``: what the decoder multiplies queries and keys with (YaRN)."""
        self.frequencies_F = frequencies_F.double()
        self.axis_F = axis_F
        self.factor = factor

    @property
    def axes(self) -> int:
        """1, or 3 for Qwen-VL's rotation."""
        return int(self.axis_F.max()) + 1

    @staticmethod
    def of(embedding: Any, parameters: Mapping[str, Any], mode: str = "auto") -> Rotary:
        """Read the rotation of a decoder from its ``rotary_emb`` module and ``config.rope_parameters``.

        ``mode="1d"`` puts all frequencies on one axis. Raises ``ConfigError`` for rotations that depend on the length.
        """
        kind = parameters.get("rope_type", "default")
        if kind in _REFUSED:
            raise ConfigError(
                f"rekv: the decoder's rope_type {kind!r} changes its frequencies with the length of the sequence, so keys "
                "cannot be stored once for all; use a checkpoint with rope_type default, linear, yarn or llama3"
            )
        frequencies_F = embedding.inv_freq.detach().float()
        axis_F = torch.zeros(frequencies_F.shape[0], dtype=torch.long)
        sections = parameters.get("mrope_section")
        if sections is not None and mode == "auto":
            if parameters.get("mrope_interleaved"):
                for axis in (1, 2):
                    axis_F[axis : 3 * sections[axis] : 3] = axis
            else:
                axis_F = torch.repeat_interleave(torch.arange(3), torch.tensor(sections))
        return Rotary(frequencies_F, axis_F.to(frequencies_F.device), float(embedding.attention_scaling))

    def turn(self, positions_AN: Tensor) -> Turn:
        """Return the rotation to positions [A, N] (A = 1 serves every axis)."""
        positions_AN = upload(positions_AN.double(), self.frequencies_F.device)
        positions_NF = positions_AN[self.axis_F].t() if len(positions_AN) > 1 else positions_AN[0, :, None]
        # float64: at 3.5 million tokens a float32 angle is off by 0.1 rad.
        angles_NF = positions_NF * self.frequencies_F
        cos_NF, sin_NF = angles_NF.cos().float(), angles_NF.sin().float()
        return Turn(torch.cat((cos_NF, cos_NF), dim=-1), torch.cat((-sin_NF, sin_NF), dim=-1))
