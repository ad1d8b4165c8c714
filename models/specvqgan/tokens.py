"""The grid of tokens as a sequence: column by column, each from low to high frequencies (spec 6)."""

# B batch, H rows, W columns, N tokens

from __future__ import annotations

from torch import Tensor

from models.specvqgan.config import ROWS

__all__ = ["grid_of", "sequence_of"]


def sequence_of(tokens_BHW: Tensor) -> Tensor:
    """Return the sequence [B, 5 W] of a grid [B, 5, W]: place 5 w + h holds row h of column w."""
    return tokens_BHW.transpose(1, 2).flatten(1)


def grid_of(tokens_BN: Tensor) -> Tensor:
    """Return the grid [B, 5, W] of a sequence [B, 5 W]. Raises ``ValueError`` where the last column is not whole."""
    if tokens_BN.shape[1] % ROWS:
        raise ValueError(f"{tokens_BN.shape[1]} tokens are no whole number of columns of {ROWS}")
    return tokens_BN.reshape(len(tokens_BN), -1, ROWS).transpose(1, 2)
