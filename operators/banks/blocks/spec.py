"""What a block is and how it is stored: its shape, and the codec that turns keys and values into the fields of a page.

A *block* is what a stream appends at once (a frame); its *page* holds its part of a layer. Knows nothing of where pages lie.
Invariant: :class:`PlainCodec` gives back what it was given bit for bit; other codecs say what they lose.
"""

# N blocks, G key/value heads, T tokens per block, D head dim

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.slot_bank import RowSpec

__all__ = ["REPRESENTATIVES", "BlockCodec", "BlockSpec", "PlainCodec", "page_bytes", "required"]

REPRESENTATIVES = "representatives"
"""Name of the representatives beside a codec's fields in files and snapshots."""

_HALF_MAX = torch.finfo(torch.float16).max
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """Shape of a block: ``layers`` x (keys, values) x [groups, tokens, dim]."""

    layers: int
    groups: int
    """Key/value heads of a layer."""
    tokens: int
    """Tokens of a block: those of a frame."""
    dim: int
    """Numbers per head."""
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the numbers. Raises ``ConfigError``."""
        for name in ("layers", "groups", "tokens", "dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"BlockSpec: {name}={getattr(self, name)}; it must be at least 1")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"BlockSpec: dtype={self.dtype}; use one of {', '.join(map(str, _DTYPES))}")

    @property
    def representative(self) -> RowSpec:
        """The representative of a page: the mean of its keys in float32, [G, D]."""
        return RowSpec((self.groups, self.dim), torch.float32)


class BlockCodec(Protocol):
    """Turns keys and values of one layer into named fields and back. Stateless; picklable, so that other processes can read.

    ``fields`` must not be called ``representatives``.
    """

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return name → shape and type of each field of a page."""

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the fields, [N, *shape] each. ``stats``: what else the writer knows, [N, ...] each, as the codec documents."""

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return keys and values, [N, G, T', D] each; T' may be smaller than T where a codec drops or merges tokens."""


@dataclass(frozen=True, slots=True)
class PlainCodec:
    """Keys and values as they are. Float32 written to a float16 bank is clamped, so that no block holds infinities."""

    dtype: torch.dtype = torch.float32

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``keys`` and ``values``."""
        row = RowSpec((spec.groups, spec.tokens, spec.dim), self.dtype)
        return {"keys": row, "values": row}

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert to the storage type."""
        return {"keys": self._cast(keys_NGTD), "values": self._cast(values_NGTD)}

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return both fields."""
        return fields["keys"], fields["values"]

    def _cast(self, x: Tensor) -> Tensor:
        if self.dtype == torch.float16 and x.dtype != torch.float16:
            x = x.clamp(-_HALF_MAX, _HALF_MAX)
        return x.to(self.dtype)


def page_bytes(fields: Mapping[str, RowSpec]) -> int:
    """Return the bytes of one page."""
    return sum(row.bytes for row in fields.values())


def required(stats: Mapping[str, Tensor], name: str) -> Tensor:
    """Return what a codec cannot do without. Raise ``ValueError`` if the writer did not give it."""
    if name not in stats:
        raise ValueError(f"this codec needs stats[{name!r}] with every append, got {sorted(stats)}; see the codec's docstring")
    return stats[name]
