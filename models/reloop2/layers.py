"""Layers that the click-through-rate networks share. Parameter names and numbering are those of FuxiCTR's state dicts."""

# B rows, D width, F fields

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MLP", "CrossNet", "Dice", "make_activation", "reset_linears"]


class Dice(nn.Module):
    """Data-adaptive activation (DIN, KDD 2018, eq. 8): p·x + (1 - p)·alpha·x with p = sigmoid(batch-normalized x)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-9, momentum=0.01)
        self.alpha = nn.Parameter(torch.zeros(dim))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return [B, D]."""
        p_BD: Tensor = torch.sigmoid(self.bn(x_BD))
        return p_BD * x_BD + (1 - p_BD) * self.alpha * x_BD


def make_activation(name: str, dim: int) -> nn.Module:
    """Return the activation of this name (``relu``, ``sigmoid``, ``tanh``, ``dice``) over ``dim`` columns."""
    if name == "dice":
        return Dice(dim)
    plain: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
    return plain[name]()


class MLP(nn.Module):
    """Linear, batch norm, activation, dropout per hidden layer, then a Linear to one column where ``output``.

    One ``nn.Sequential`` whose numbering skips what is not there (no batch norm, dropout of 0), as FuxiCTR's does.
    """

    def __init__(
        self, input_dim: int, units: Sequence[int], *, activation: str, batch_norm: bool, dropout: float, output: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((input_dim, *units), units, strict=False):
            layers.append(nn.Linear(before, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(make_activation(activation, width))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.hidden_layers = len(layers)
        self.hidden_dim = units[-1]
        if output:
            layers.append(nn.Linear(units[-1], 1))
        self.mlp = nn.Sequential(*layers)

    def hidden(self, x_BD: Tensor) -> Tensor:
        """Return the last hidden layer, [B, units[-1]]."""
        for layer in self.mlp[: self.hidden_layers]:
            x_BD = layer(x_BD)
        return x_BD

    def output(self, hidden_BD: Tensor) -> Tensor:
        """Return the output column of the hidden layer, [B]."""
        logit_B1: Tensor = self.mlp[self.hidden_layers](hidden_BD)
        return logit_B1[:, 0]


class CrossNet(nn.Module):
    """Cross layers of DCN-V2 (eq. 1): x ← x + x0 · (W x + b)."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.cross_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def forward(self, x0_BD: Tensor) -> Tensor:
        """Return [B, D]."""
        x_BD = x0_BD
        for layer in self.cross_layers:
            x_BD = x_BD + x0_BD * layer(x_BD)
        return x_BD


def reset_linears(module: nn.Module) -> None:
    """Draw all Linear weights Glorot-normal and zero their biases, as FuxiCTR does."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
