"""The option ``precision``: in which type a network computes. Banks have their own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from connectors.options import option

if TYPE_CHECKING:
    import torch

__all__ = ["NetworkOptions", "network_dtype"]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every operator whose network can compute in half precision."""

    precision: Literal["float32", "bfloat16"] | None = option(
        None,
        "In what the network computes; null: the checkpoint's own. bfloat16 takes half the memory and is made for GPUs; "
        "answers and scores may differ in the third digit.",
    )


def network_dtype(options: NetworkOptions) -> torch.dtype | None:
    """Return the type to convert a network to; None keeps the checkpoint's."""
    import torch

    return None if options.precision is None else {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.precision]
