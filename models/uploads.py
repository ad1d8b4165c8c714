"""Copies from the host to a device that the host does not wait for, and back, for which it waits once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["download", "upload", "upload_values"]


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a host tensor on ``device``; on CUDA through page-locked memory, so that the host goes on at once.

    Returns the tensor itself where it is there already.
    """
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    if torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def upload_values(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers, in lists or an array, as a new tensor on ``device``, as :func:`upload` does."""
    if isinstance(values, np.ndarray) and dtype is None:
        return upload(torch.from_numpy(values.copy()), device)
    return upload(torch.tensor(values, dtype=dtype), device)


def download(*tensors: Tensor) -> list[Tensor]:
    """Return tensors on the host. All are asked for before the host waits; tensors that are there are returned as they are."""
    found = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if torch.cuda.is_available():
        for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()
    return found
