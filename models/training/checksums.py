"""Short names for what a training starts from, so that a stopped one is not resumed with other data or other weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

__all__ = ["data_checksum", "weights_checksum"]

_LEADING = 64
"""Values of each tensor that count: two trainings differ nearly everywhere, and large models stay quick."""


def data_checksum(columns: Iterable[ArrayLike]) -> str:
    """Return eight hexadecimal digits for some arrays of numbers, in order."""
    checksum = 0
    for column in columns:
        checksum = zlib.crc32(np.ascontiguousarray(column).tobytes(), checksum)
    return f"{checksum:08x}"


def weights_checksum(model: nn.Module) -> str:
    """Return eight hexadecimal digits for the leading values of all weights."""
    tensors = (tensor.detach().flatten()[:_LEADING].cpu() for tensor in model.state_dict().values())
    return data_checksum((tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors)
