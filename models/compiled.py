"""A network compiled once per shape and batch bucket: on a GPU a CUDA graph each, so that a call is one launch.

Batches are padded to the next power of two, so that few sizes are compiled. The function that is wrapped is the reference: what
it returns, a compiled one returns up to rounding.
"""

# B batch, b bucket

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from models.uploads import upload

__all__ = ["bucket", "bucketed", "compile_alone", "padded", "per_frame"]


def bucket(batch: int) -> int:
    """Return the batch that is computed for ``batch`` rows: the next power of two."""
    return 1 << max(batch - 1, 0).bit_length()


def padded(x_B: Tensor, wanted: int) -> Tensor:
    """Return ``wanted`` rows: those of ``x_B``, and its last one again and again."""
    rows = x_B.shape[0]
    return x_B if rows == wanted else torch.cat([x_B, x_B[-1:].expand(wanted - rows, *x_B.shape[1:])])


def compile_alone(function: Callable[..., Any], device: torch.device, *, whole: bool = False) -> Callable[..., Any]:
    """Return ``function`` compiled for the one set of shapes that it will be called with.

    PyTorch's compiler keeps eight sets of shapes per piece of code, and runs any further one uncompiled without a word; so
    each gets code of its own. ``whole``: as one graph; what cannot be captured raises.
    """

    def call(*given: Any) -> Any:
        return function(*given)

    own = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    compiled: Callable[..., Any] = torch.compile(own, dynamic=False, fullgraph=whole, mode=mode)
    return compiled


def bucketed(function: Callable[[Tensor], Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return ``function``, of rows [B, ...] that do not depend on each other, compiled for ``device``.

    The first call of a size takes seconds to minutes.
    """
    compiled: dict[object, Callable[[Tensor], Tensor]] = {}

    def run(x_B: Tensor) -> Tensor:
        rows = x_B.shape[0]
        x_b = padded(x_B, bucket(rows))
        size = (x_b.shape, x_b.dtype)
        if size not in compiled:
            compiled[size] = compile_alone(function, device)
        # The memory of a graph is used again by its next call.
        return compiled[size](x_b)[:rows].clone()

    return run


def per_frame(network: Callable[[Tensor], Tensor], device: torch.device, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Return what runs ``network`` on frames [F, ...] of the host: the network itself, or compiled by :func:`bucketed`."""
    if not compiled:
        return network
    run = bucketed(network, device)
    return lambda frames_F: run(upload(frames_F, device))  # a graph takes what lies on the device
