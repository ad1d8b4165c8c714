"""Memory that nobody has written holds NaN, or the largest integer: whoever reads it is wrong each time, not at times.

Fresh memory of the system is zero, so that such reads are right by chance until memory is used again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = ["fill_unwritten"]

_DONE: set[str] = set()
_MOST_BYTES = 16 << 20
"""Of what is filled: a larger reserve is memory that the machine may not have."""
_LAYERS = ("torch.nn.", "transformers.")
"""Modules that reserve weights: large networks are built without a value, and given those of a file."""


def fill_unwritten() -> None:
    """Have what NumPy and PyTorch allocate without content filled, where they are imported and Python code asked for it."""
    for name, fill in (("numpy", _fill_numpy), ("torch", _fill_torch)):
        if name in sys.modules and name not in _DONE:
            _DONE.add(name)
            fill(sys.modules[name])


def _fill_numpy(np: Any) -> None:
    def mark(array: Any) -> Any:
        if array.nbytes > _MOST_BYTES:
            return array
        if array.dtype.kind in "fc":
            array.fill(np.nan)
        elif array.dtype.kind in "iu":
            array.fill(np.iinfo(array.dtype).max)
        return array

    for name in ("empty", "empty_like"):
        _wrap(np, name, mark)


def _fill_torch(torch: Any) -> None:
    from torch.utils._device import _device_constructors

    _device_constructors()  # notes, once, which functions ``with torch.device(...)`` is for: those that are replaced below, too

    def mark(tensor: Any) -> Any:
        inner = tensor.inner if type(tensor).__name__ == "DeviceTensor" else tensor  # of tests/support/launches.py
        if inner.device.type != "cpu" or inner.dtype == torch.bool or inner.nbytes > _MOST_BYTES:
            return tensor
        floats = inner.dtype.is_floating_point or inner.dtype.is_complex
        with torch.no_grad():
            inner.fill_(float("nan") if floats else torch.iinfo(inner.dtype).max)
        return tensor

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        _wrap(owner, name, mark)


def _wrap(owner: Any, name: str, mark: Callable[[Any], Any]) -> None:
    plain = getattr(owner, name)

    @wraps(plain)
    def filled(*args: Any, **kwargs: Any) -> Any:
        made = plain(*args, **kwargs)
        if kwargs.get("out") is not None or sys._getframe(1).f_globals.get("__name__", "").startswith(_LAYERS):
            return made
        return mark(made)

    setattr(owner, name, filled)
