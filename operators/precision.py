"""How the networks of operators run: in which type (``precision``; banks have their own types), and compiled or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from connectors.options import option

if TYPE_CHECKING:
    import torch

__all__ = ["CompileOptions", "NetworkOptions", "network_dtype"]


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Options of every operator that has frames go through a network."""

    compile: bool = option(
        False,
        "Compile the network that frames go through, once per frame size and power of two of frames, and the step that makes "
        "one token of an answer or a sound, once per power of two of them and of what they see (CUDA graphs on a GPU): the "
        "first ones of a size take minutes, later ones less time. Results differ by rounding.",
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(CompileOptions):
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
