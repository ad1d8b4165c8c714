"""The frozen base model: loaded, checked against the options, and run; and what two runs must have in common. No streams.

Invariant: a row's numbers are the same bits whatever else is in its batch. Kernels round differently for different shapes, so
the network only ever sees batches of one size, padded.
"""

# B rows of a call, D hidden width

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import ConfigError, StreambankError
from models.hub import weights_file
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.uploads import download, upload
from operators.reloop2.budget import check_memory
from operators.reloop2.config import ReLoop2Options

__all__ = ["ROWS", "Scored", "Scorer", "load_model", "require_same_setup", "setup_of"]

ROWS = 128
"""Rows of every forward pass: large enough to be efficient, small enough that a single row does not wait long."""

_SHAPING = (
    "mode",
    "scope",
    "id_type",
    "arrays",
    "bits",
    "seed",
    "center",
    "capacity",
    "slots_per_bucket",
    "lists_per_query",
    "forgetting",
    "forget_rows",
    "micro_batch",
    "pending_capacity",
    "early_capacity",
)
"""Options that decide what a snapshot looks like or means."""


def load_model(path: str, options: ReLoop2Options, name: str) -> CtrModel:
    """Return the model of a checkpoint. Raise a ``StreambankError`` if it cannot be used with these options."""
    model = checkpoint.load(weights_file(path))
    if options.center == "train_mean" and not bool(model.hidden_mean_known):
        raise ConfigError(
            f"{name}: {path!r} has no training mean of the hidden vector, which center='train_mean' subtracts; measure it with "
            "models.reloop2.train.measure_hidden_mean and save the model again, or set center='none'"
        )
    check_memory(options, name, model.hidden_dim)
    return model


def setup_of(options: ReLoop2Options, model: CtrModel) -> dict[str, Any]:
    """Return what must be equal in two runs for one to go on with the other's memory, besides the model itself."""
    return {"hidden_dim": model.hidden_dim, **{name: getattr(options, name) for name in _SHAPING}}


def require_same_setup(given: Mapping[str, Any], wanted: Mapping[str, Any], what: str, error: type[StreambankError]) -> None:
    """Raise ``error`` naming every entry in which ``given``, which belongs to ``what``, differs from ``wanted``."""
    names = sorted(given.keys() | wanted.keys())
    differing = [f"{name} {given.get(name)!r} instead of {wanted.get(name)!r}" for name in names]
    differing = [text for text, name in zip(differing, names, strict=True) if given.get(name) != wanted.get(name)]
    if differing:
        raise error(f"{what} does not fit this operator: {', '.join(differing)}; use the options of the first run")


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
            block = {name: upload(_padded(column[start : start + ROWS]), self._device) for name, column in columns.items()}
            hidden_BD, logit_B = self.model(block)
            finites.append(hidden_BD.isfinite().all(1))
            keys.append(self._keys(hidden_BD))
            bases.append(logit_B.sigmoid())
        # What is not finite is no impression: the host has to know before it counts them.
        base_B, finite_B = download(torch.cat(bases)[:rows].float(), torch.cat(finites)[:rows])
        return Scored(torch.cat(keys)[:rows], base_B.numpy(), finite_B.numpy())


def _padded(block_BX: Tensor) -> Tensor:
    missing = ROWS - block_BX.shape[0]
    return block_BX if missing == 0 else torch.cat([block_BX, block_BX[-1:].expand(missing, *block_BX.shape[1:])])
