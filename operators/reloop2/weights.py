"""The frozen base model: loaded, checked against the options, and run; and what two runs must have in common. No streams.

Invariant: a row's numbers are the same bits whatever else is in its batch. Kernels round differently for different shapes, so
the network only ever sees batches of one size, padded.
"""

# B rows of a call, D hidden width

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import ConfigError, StreambankError
from models.bounds import largest_of
from models.hub import weights_file
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel, CtrOutput
from models.uploads import download, upload
from operators.reloop2.budget import check_memory
from operators.reloop2.config import ReLoop2Options

__all__ = ["ROWS", "Scored", "Scorer", "load_model", "require_same_setup", "setup_of"]

ROWS = 128
"""Rows of every forward pass: large enough to be efficient, small enough that a single row does not wait long."""

_LIMITS = (1e6, 1e4, 1e2, 1e1)
"""Of numbers in a row, up to which the network is tried to be proved to give finite numbers."""

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
    base_B: Tensor
    """float32, on the device."""
    sound_B: npt.NDArray[np.bool_]
    """The base prediction is finite."""
    finite_B: npt.NDArray[np.bool_]
    """The hidden vector is finite."""


class Scorer:
    """Runs ``model`` on ``device``; ``keys`` turns hidden vectors into the keys of a memory."""

    def __init__(self, model: CtrModel, device: torch.device, keys: Callable[[Tensor], Tensor]) -> None:
        self.model = model.to(device).eval()
        self._device = device
        self._keys = keys
        self._proved: float | None = None
        """No number of a row may be larger for the network's results to be proved finite; None: nothing was tried yet."""

    @torch.inference_mode()
    def score(self, columns: Mapping[str, Tensor]) -> Scored:
        """Score the columns of ``models.reloop2.features.encode``, at least one row."""
        rows = next(iter(columns.values())).shape[0]
        keys, bases, hiddens = [], [], []
        for start in range(0, rows, ROWS):
            block = {name: upload(_padded(column[start : start + ROWS]), self._device) for name, column in columns.items()}
            hidden_BD, logit_B = self.model(block)
            hiddens.append(hidden_BD)
            keys.append(self._keys(hidden_BD))
            bases.append(logit_B.sigmoid())
        keys_BW, base_B = torch.cat(keys)[:rows], torch.cat(bases)[:rows].float()
        # What is not finite is no impression: the host has to know before it counts them.
        if self._device.type != "cpu" and self._gives_numbers(columns):
            return Scored(keys_BW, base_B, np.ones(rows, np.bool_), np.ones(rows, np.bool_))
        finite_B = torch.cat([hidden_BD.isfinite().all(1) for hidden_BD in hiddens])[:rows]
        looks = download(base_B.isfinite(), finite_B)
        return Scored(keys_BW, base_B, *(look_B.numpy() for look_B in looks))

    def _gives_numbers(self, columns: Mapping[str, Tensor]) -> bool:
        """Tell whether it is proved that the results for these rows are finite."""
        names, numbers = list(columns), [column_B for column_B in columns.values() if column_B.is_floating_point()]
        if self._proved is None:
            examples = [upload(_padded(columns[name][:1]), self._device) for name in names]

            def scores(*columns_B: Tensor) -> CtrOutput:
                found: CtrOutput = self.model(dict(zip(names, columns_B, strict=True)))
                return found

            limits = _LIMITS if numbers else _LIMITS[:1]
            proved = (x for x in limits if math.isfinite(largest_of(scores, *((example, x) for example in examples))))
            self._proved = next(proved, -1.0)
        return max((float(column_B.abs().max()) for column_B in numbers), default=0.0) <= self._proved


def _padded(block_BX: Tensor) -> Tensor:
    missing = ROWS - block_BX.shape[0]
    return block_BX if missing == 0 else torch.cat([block_BX, block_BX[-1:].expand(missing, *block_BX.shape[1:])])
