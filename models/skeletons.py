"""Networks of names and shapes alone: to compare a file with, or to be filled from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["skeleton"]


class _Undrawn(TorchFunctionMode):
    """Leaves out drawing initial values for tensors without memory.

    For normal numbers PyTorch imports its compiler there, which takes as long as importing PyTorch.
    """

    _DRAWS = (Tensor.normal_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            drawn: Tensor = args[0] if args else kwargs["tensor"]
            if drawn.is_meta:
                return drawn
        return func(*args, **kwargs)


@contextmanager
def skeleton() -> Iterator[None]:
    """Build networks on the meta device: parameters and buffers have names, shapes and types, but no memory and no values."""
    with torch.device("meta"), _Undrawn():
        yield
