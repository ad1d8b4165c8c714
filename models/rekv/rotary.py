"""Rotary positions applied at the time of use: angles in float64, one axis (text, most decoders) or three (Qwen-VL).

Keys are stored without rotation; whoever attends rotates. The index of a token in its sequence and its position on the axes
differ only for decoders with three axes, where the tokens of a frame lie on a (time, row, column) grid (:mod:`.layouts`).
"""

# A axes (1 or 3), N tokens, D head dim, F = D / 2 frequencies

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from connectors.errors import ConfigError
from models.uploads import upload

__all__ = ["Rotary", "Turn"]

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
        sections = parameters.get("mrope_section") or getattr(embedding, "mrope_section", None)
        if sections is not None and mode != "1d":
            # Qwen3-VL's rotation is interleaved whatever its config says.
            if parameters.get("mrope_interleaved") or type(embedding).__name__.startswith("Qwen3VL"):
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
