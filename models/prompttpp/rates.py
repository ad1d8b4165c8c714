"""Time encoding and the functions that turn hidden states into rates of events."""

# K types, T time dimensions

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.uploads import upload

__all__ = ["RateHead", "encode_time", "scaled_softplus"]


def encode_time(time: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return φ(t), [..., dim]: sines in even, cosines in odd places, frequencies 10000^(-2m/dim).

    ``time`` is float64 in model units since the key's first event; only the result is of ``dtype``.
    """
    # The frequencies are rounded to float32, as those of the official code: a difference of 1e-8 in what networks compute.
    frequency_m = (torch.arange(0, dim, 2, dtype=torch.float32) * -(math.log(10_000.0) / dim)).exp()
    angle = time.to(torch.float64)[..., None] * upload(frequency_m.double(), time.device)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(dtype)


def scaled_softplus(x: Tensor, log_beta: Tensor | None = None) -> Tensor:
    """Return log(1 + exp(βx)) / β per type; linear where βx is above 20. None: β = 1."""
    if log_beta is None:
        return F.softplus(x)
    beta_K = log_beta.exp()
    scaled = beta_K * x
    soft = torch.log1p(scaled.clamp(max=20.0).exp()) / beta_K
    return torch.where(scaled > 20.0, x, soft)


class RateHead(nn.Module):
    """Rates of all types from a hidden state."""

    def __init__(self, width: int, types: int, *, scaled: bool, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, types, bias=bias)
        self.log_beta = nn.Parameter(torch.zeros(types)) if scaled else None

    def forward(self, hidden: Tensor, change: Tensor | None = None) -> Tensor:
        """Return λ, [..., G, K], per unit of model time; ``change`` [..., K, D] is added to the weights."""
        x = self.linear(hidden)
        return scaled_softplus(x if change is None else x + hidden @ change.transpose(-1, -2), self.log_beta)
