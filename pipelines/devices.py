"""Which torch device a node runs on, and whether it is there. Imports torch only when asked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from connectors.errors import DeviceError

if TYPE_CHECKING:
    import torch

__all__ = ["device_problem", "resolve_device"]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def device_problem(name: str, runner: str) -> str | None:
    """Return what is wrong with ``name`` as the device of an operator under ``runner``; None where it can be one."""
    if not _DEVICE.fullmatch(name):
        return f"must be cpu, cuda, cuda:N (such as cuda:1) or auto, got {name!r}"
    if runner == "ray" and ":" in name:
        return f"is {name!r}, but on Ray every task sees only the GPU that it was given; write cuda, and num_gpus for a share"
    return None


def resolve_device(name: str, node: str) -> torch.device:
    """Return the device of this process that ``name`` means; ``auto`` is CUDA where there is a GPU, else the CPU.

    Raise ``DeviceError`` where the GPU that was asked for is not there. Does not initialise CUDA where it is absent.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= there:
        has = "there is no CUDA GPU" if there == 0 else f"there are {there} GPUs, cuda:0 to cuda:{there - 1}"
        raise DeviceError(f"{node}: device {name!r} is not there: on this machine {has}; set 'device: auto' or 'device: cpu'")
    return torch.device(name)
