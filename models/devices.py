"""Which torch device a name means, and whether it is there. Imports torch only when asked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from connectors.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import torch

__all__ = ["DEVICE", "resolve_device"]

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
"""What a device may be called."""


def resolve_device(name: str, where: str, *, remedy: str = "set 'device: auto' or 'device: cpu'") -> torch.device:
    """Return the device of this process that ``name`` means; ``auto`` is CUDA where there is a GPU, else the CPU.

    ``where``: who asks, and ``remedy``: what to do without that GPU, for messages. Raises ``ConfigError`` for a name that means
    nothing and ``DeviceError`` where the GPU that was asked for is not there. Does not initialize CUDA where it is absent.
    """
    import torch

    if not DEVICE.fullmatch(name):
        raise ConfigError(f"{where}: device must be cpu, cuda, cuda:N (such as cuda:1) or auto, got {name!r}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= there:
        has = "there is no CUDA GPU" if there == 0 else f"there are {there} GPUs, cuda:0 to cuda:{there - 1}"
        raise DeviceError(f"{where}: device {name!r} is not there: on this machine {has}; {remedy}")
    return torch.device(name)
