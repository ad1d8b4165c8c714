"""RowRing: the last C rows (key, values) of a stream of rows, with exact cosine nearest neighbors.

It knows no labels, filters or models: what to write is the operator's rule. Invariants: row number s lies at position
``(s - origin) mod C``, so the live rows are always the first ``len(ring)`` positions; sequence numbers only rise, also over
``clear``; nothing is allocated after the constructor except results and a bounded scratch.
"""

# B rows or queries of a call, C capacity, D dim, V value columns, k neighbors

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks.row_search import NOTHING, KeyScan, age_of, half_type, similarity_of, unit_rows
from operators.budget import check_budget, ring_bytes
from operators.state import Patch, State

__all__ = ["Neighbors", "RowRing"]

Numbers = TypeVar("Numbers", Tensor, npt.NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Neighbors:
    """What a search found, best first; where fewer than k rows were found, the last columns are not valid."""

    similarity_Bk: Tensor
    """float32 cosine; 0 where not valid, and for a zero vector."""
    sequence_Bk: Tensor
    """int64 write sequence number; -1 where not valid."""
    values_BkV: Tensor
    """float32; 0 where not valid."""
    valid_Bk: Tensor


class RowRing:
    """Rows in a ring, the oldest overwritten first (ReLoop2, arXiv 2306.08808, §3.2: the memory of raw samples)."""

    def __init__(
        self,
        capacity: int,
        dim: int,
        columns: Sequence[str] = ("label", "base"),
        *,
        name: str = "ring",
        device: torch.device | str = "cpu",
        budget_bytes: int | None = None,
        coarse: str = "auto",
    ) -> None:
        """Allocate the ring.

        ``columns`` names the value columns; ``name`` stands before their names in snapshots. ``coarse`` is the precision of the
        pass that finds candidates, a second copy of the keys: ``float16``, ``bfloat16``, ``float32`` (no copy), or ``auto``,
        what is fastest here. It never changes a result. Raise ``ConfigError`` where the sizes make no sense or
        ``budget_bytes`` is less than the ring needs.
        """
        if capacity < 1 or dim < 1:
            raise ConfigError(f"a ring of {capacity} rows of {dim} numbers: both must be at least 1")
        self.name, self.capacity, self.dim, self.columns = name, capacity, dim, tuple(columns)
        self.device = torch.device(device)
        if budget_bytes is not None:
            need = self.bytes_needed(capacity, dim, len(self.columns), half_type(coarse, dim, self.device) is not None)
            hint = "Lower the capacity, or set coarse to 'float32', which needs no second copy of the keys."
            check_budget("row ring", bytes_per_stream=need, streams=1, budget=budget_bytes, hint=hint)
        self._scan = KeyScan(capacity, dim, device=self.device, coarse=coarse)
        self._values_CV = torch.zeros((capacity, len(self.columns)), device=self.device)
        self._dirty_C = torch.zeros(capacity, dtype=torch.bool, device=self.device)
        self._written = self._origin = 0

    @staticmethod
    def bytes_needed(capacity: int, dim: int, columns: int, half: bool) -> int:
        """Return what a ring costs; ``half``: with a copy of the keys in half precision."""
        return ring_bytes(capacity, dim, columns, half=half)

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tensors of the ring; equals ``bytes_needed``."""
        values = self._values_CV.numel() * self._values_CV.element_size()
        return {"device": self._scan.bytes() + values + self._dirty_C.numel()}

    def __len__(self) -> int:
        return min(self._written - self._origin, self.capacity)

    @property
    def written(self) -> int:
        """How many rows were ever written; the next row's sequence number."""
        return self._written

    @property
    def oldest(self) -> int:
        """The sequence number of the oldest row still there; ``written`` if there is none."""
        return self._written - len(self)

    @torch.no_grad()
    def write(self, h_BD: Tensor, values_BV: Tensor) -> Tensor:
        """Append rows, the oldest overwritten first, and return their sequence numbers, int64 [B].

        Of more rows than the capacity the last ones stay. A row of zeros, or with NaN or infinity, is stored as one that is
        similar to nothing (similarity 0).
        """
        number = len(h_BD)
        sequence_B = torch.arange(self._written, self._written + number, device=self.device)
        kept_B = sequence_B[-self.capacity :]
        position_B = self.positions(kept_B)
        self._scan.put(position_B, unit_rows(h_BD[-self.capacity :].to(self.device)))
        self._values_CV[position_B] = values_BV[-self.capacity :].to(self._values_CV)
        self._dirty_C[position_B] = True
        self._written += number
        return sequence_B

    @torch.no_grad()
    def search(self, q_BD: Tensor, k: int) -> Neighbors:
        """Return the ``k`` rows of highest cosine for each query, best first, equal ones newest first.

        On the CPU the result of a query does not depend, bit for bit, on the other queries of the call.
        """
        if k < 1:
            raise ConfigError(f"k={k}: the number of neighbors must be at least 1")
        unit_BD = unit_rows(q_BD.to(self.device))
        return self._neighbors(self._scan.nearest(unit_BD, k, rows=len(self), oldest=self._first()))

    @torch.no_grad()
    def rank(self, q_BD: Tensor, sequence_BM: Tensor, valid_BM: Tensor, k: int) -> Neighbors:
        """Return the best ``k`` of these rows for each query, by the same numbers as ``search``.

        Valid ones must be distinct per query and still there.
        """
        position_BM = torch.where(valid_BM, self.positions(sequence_BM), 0)
        unit_BD = unit_rows(q_BD.to(self.device))
        return self._neighbors(self._scan.rank(unit_BD, position_BM, valid_BM, k, rows=len(self), oldest=self._first()))

    @torch.no_grad()
    def correct(self, sequence_B: Tensor, delta_BV: Tensor) -> Tensor:
        """Add to the values of rows that are still there; return which were, bool [B]. A row may be named twice."""
        sequence_B = sequence_B.to(self.device)
        there_B = self.alive(sequence_B)
        position_B = self.positions(sequence_B[there_B])
        self._values_CV.index_add_(0, position_B, delta_BV.to(self._values_CV)[there_B])
        self._dirty_C[position_B] = True
        return there_B

    def clear(self) -> None:
        """Forget all rows. Sequence numbers go on, so that an old one never names a new row."""
        self._origin = self._written
        self._scan.clear()

    def alive(self, sequence: Tensor) -> Tensor:
        """Return which of these sequence numbers are still in the ring."""
        return (sequence >= self.oldest) & (sequence < self._written)

    def positions(self, sequence: Numbers) -> Numbers:
        """Return where rows of these sequence numbers lie."""
        return (sequence - self._origin) % self.capacity

    # Snapshots

    def export(self, state: State, *, incremental: bool = False) -> None:
        """Add copies to ``state`` under ``<name>.``; where incremental, rows written or corrected since ``mark_clean``."""
        state.shared[f"{self.name}.counters"] = torch.tensor([self._written, self._origin])
        for key, rows in self._tensors().items():
            if incremental:
                changed = self._dirty_C.nonzero()[:, 0]
                state.patches[f"{self.name}.{key}"] = Patch(changed.cpu(), rows[changed].cpu())
            else:
                state.shared[f"{self.name}.{key}"] = rows.cpu().clone()

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._dirty_C.zero_()

    def load(self, state: State, /) -> None:
        """Take the content from a full ``state``. Raise ``RecoveryError`` where it does not fit."""
        for key, rows in self._tensors().items():
            stored = state.shared.get(f"{self.name}.{key}")
            if stored is None:
                raise RecoveryError(f"the snapshot has no {self.name}.{key}; it has {sorted(state.shared)}")
            if stored.shape != rows.shape:
                raise RecoveryError(
                    f"{self.name}.{key} of the snapshot is {list(stored.shape)}, the ring's is {list(rows.shape)}; "
                    "resume with the options of the first run"
                )
        self._written, self._origin = (int(n) for n in state.shared[f"{self.name}.counters"])
        self._scan.clear()
        everywhere = torch.arange(self.capacity, device=self.device)
        self._scan.put(everywhere, state.shared[f"{self.name}.keys"].to(self.device))
        self._values_CV.copy_(state.shared[f"{self.name}.values"])
        self._dirty_C.zero_()

    def _tensors(self) -> dict[str, Tensor]:
        return {"keys": self._scan.keys_RD[: self.capacity], "values": self._values_CV}

    def _first(self) -> int:
        return (self.oldest - self._origin) % self.capacity

    def _neighbors(self, key_Bk: Tensor) -> Neighbors:
        valid_Bk = key_Bk != NOTHING
        sequence_Bk = torch.where(valid_Bk, age_of(key_Bk) + self.oldest, -1)
        position_Bk = torch.where(valid_Bk, self.positions(sequence_Bk), 0)
        values_BkV = self._values_CV[position_Bk].masked_fill_(~valid_Bk[:, :, None], 0.0)
        return Neighbors(similarity_of(key_Bk), sequence_Bk, values_BkV, valid_Bk)
