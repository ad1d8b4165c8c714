"""What an operator may name as its device in a pipeline file. Imports torch only when a device is resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.devices import DEVICE, resolve_device

if TYPE_CHECKING:
    import torch

__all__ = ["device_problem", "resolve_device", "resolve_source_device"]


def device_problem(name: str, runner: str) -> str | None:
    """Return what is wrong with ``name`` as the device of an operator under ``runner``; None where it can be one."""
    if not DEVICE.fullmatch(name):
        return f"must be cpu, cuda, cuda:N (such as cuda:1) or auto, got {name!r}"
    if runner == "ray" and ":" in name:
        return f"is {name!r}, but on Ray every task sees only the GPU that it was given; write cuda, and num_gpus for a share"
    return None


def resolve_source_device(name: str, where: str) -> torch.device:
    """Return the device on which a source keeps its frames. Raises ``DeviceError`` where it is not there."""
    return resolve_device(name, where, remedy="set 'device: cpu', or remove it")
