"""A network compiled once per shape and batch bucket: on a GPU a CUDA graph each, so that a call is one launch.

Batches are padded to the next power of two, so that few sizes are compiled. The function that is wrapped is the reference: what
it returns, a compiled one returns up to rounding.
"""

# B batch, b bucket

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.uploads import upload

__all__ = ["bucket", "bucketed", "per_frame"]


def bucket(batch: int) -> int:
    """Return the batch that is computed for ``batch`` rows: the next power of two."""
    return 1 << max(batch - 1, 0).bit_length()


def bucketed(function: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return ``function``, of rows [B, ...] that do not depend on each other, compiled for ``device``.

    The first call of a size takes seconds to minutes.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    compiled = torch.compile(function, dynamic=False, mode=mode)

    def run(x_B: Tensor) -> Tensor:
        rows, wanted = x_B.shape[0], bucket(x_B.shape[0])
        if wanted > rows:
            x_B = torch.cat([x_B, x_B[-1:].expand(wanted - rows, *x_B.shape[1:])])
        # The memory of a graph is used again by its next call.
        result: Tensor = compiled(x_B)[:rows].clone()
        return result

    return run


def per_frame(network: Callable[[Tensor], Tensor], device: torch.device, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Return what runs ``network`` on frames [F, ...] of the host: the network itself, or compiled by :func:`bucketed`."""
    if not compiled:
        return network
    run = bucketed(network, device)
    return lambda frames_F: run(upload(frames_F, device))  # a graph takes what lies on the device
