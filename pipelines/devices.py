"""What an operator may name as its device in a pipeline file. Imports torch only when a device is resolved."""

from __future__ import annotations

from models.devices import DEVICE, resolve_device

__all__ = ["device_problem", "resolve_device"]


def device_problem(name: str, runner: str) -> str | None:
    """Return what is wrong with ``name`` as the device of an operator under ``runner``; None where it can be one."""
    if not DEVICE.fullmatch(name):
        return f"must be cpu, cuda, cuda:N (such as cuda:1) or auto, got {name!r}"
    if runner == "ray" and ":" in name:
        return f"is {name!r}, but on Ray every task sees only the GPU that it was given; write cuda, and num_gpus for a share"
    return None
