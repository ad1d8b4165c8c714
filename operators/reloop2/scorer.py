"""The frozen base model at work: rows of a batch to base predictions and hidden vectors. Knows no memory and no labels.

Invariant: a row's numbers are the same bits whatever else is in its batch. Kernels round differently for different shapes, so
the network only ever sees batches of one size, padded.
"""

# B rows of a call, D hidden width

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.reloop2.base import CtrModel

__all__ = ["ROWS", "Scored", "Scorer"]

ROWS = 128
"""Rows of every forward pass: large enough to be efficient, small enough that a single row does not wait long."""


class Scored(NamedTuple):
    """Base predictions of B rows."""

    keys_BW: Tensor
    """What the memory knows a row by, on the device."""
    base_B: npt.NDArray[np.float32]
    finite_B: npt.NDArray[np.bool_]
    """The hidden vector is finite."""


class Scorer:
    """Runs ``model`` on ``device``; ``keys`` turns hidden vectors into the keys of a memory."""

    def __init__(self, model: CtrModel, device: torch.device, keys: Callable[[Tensor], Tensor]) -> None:
        self.model = model.to(device).eval()
        self._device = device
        self._keys = keys

    @torch.inference_mode()
    def score(self, columns: Mapping[str, Tensor]) -> Scored:
        """Score the columns of ``models.reloop2.features.encode``, at least one row."""
        rows = next(iter(columns.values())).shape[0]
        keys, bases, finites = [], [], []
        for start in range(0, rows, ROWS):
            block = {name: _padded(column[start : start + ROWS]).to(self._device) for name, column in columns.items()}
            hidden_BD, logit_B = self.model(block)
            finites.append(hidden_BD.isfinite().all(1))
            keys.append(self._keys(hidden_BD))
            bases.append(logit_B.sigmoid())
        return Scored(
            torch.cat(keys)[:rows],
            torch.cat(bases)[:rows].float().cpu().numpy(),
            torch.cat(finites)[:rows].cpu().numpy(),
        )


def _padded(block_BX: Tensor) -> Tensor:
    missing = ROWS - block_BX.shape[0]
    return block_BX if missing == 0 else torch.cat([block_BX, block_BX[-1:].expand(missing, *block_BX.shape[1:])])
