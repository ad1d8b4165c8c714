"""TailBank: what each stream still needs of its newest rows, rewritten as a whole: samples under a filter, frames of a block.

Rows of one kind in ``[slots, capacity, *row]``, the oldest first. A snapshot holds the whole capacity of a stream, zeros behind
its rows, so its size never depends on how far a stream happens to be. Knows no method and no stream id.
"""

# S slots, C capacity, N streams of a snapshot, R rows

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from connectors.errors import RecoveryError
from operators.banks.slot_bank import RowSpec
from operators.state import State

__all__ = ["TailBank"]


class TailBank:
    """At most ``capacity`` rows for each of ``slots`` streams."""

    def __init__(self, name: str, row: RowSpec, *, slots: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self.name, self.row, self.slots, self.capacity = name, row, slots, capacity
        self.rows_SC = torch.zeros((slots, capacity, *row.shape), dtype=row.dtype, device=device)
        self.count_S = torch.zeros(slots, dtype=torch.int64)

    @staticmethod
    def bytes_per_slot(row: RowSpec, capacity: int) -> int:
        """Return what one stream costs."""
        return capacity * row.bytes + 8

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tensors; they are ``slots * bytes_per_slot``."""
        return {"device": self.rows_SC.numel() * self.rows_SC.element_size() + 8 * self.slots}

    def open(self, slots: Sequence[int], seeds: object = None, /) -> None:
        """Make slots ready for new streams: empty."""
        self.release(slots)

    def release(self, slots: Sequence[int], /) -> None:
        """Forget what stands in slots."""
        for slot in slots:
            self.write(slot, self.rows_SC[slot, :0])

    def read(self, slot: int) -> Tensor:
        """Return the rows of a stream, [R, *row]: a view, which the next ``write`` changes."""
        return self.rows_SC[slot, : int(self.count_S[slot])]

    def write(self, slot: int, rows_R: Tensor) -> None:
        """Replace the rows of a stream. They may be a part of what ``read`` gave."""
        count = len(rows_R)
        if count > self.capacity:
            raise ValueError(f"{self.name}: {count} rows do not fit; the capacity is {self.capacity}")
        held_C = self.rows_SC[slot]
        if count:
            held_C[:count] = rows_R.clone()  # they may lie where they go to
        held_C[count : max(count, int(self.count_S[slot]))] = 0
        self.count_S[slot] = count

    def export(self, slots: Sequence[int], state: State, /, *, incremental: bool) -> None:
        """Add these slots to ``state``. A stream that changed stands there as a whole."""
        chosen = torch.tensor(list(slots), dtype=torch.int64)
        state.dense[f"{self.name}.rows"] = self.rows_SC[chosen.to(self.rows_SC.device)].cpu()
        state.dense[f"{self.name}.count"] = self.count_S[chosen]

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot. Nothing to do: the table of streams knows which have changed."""

    def load(self, slots: Sequence[int], state: State, /) -> None:
        """Take these slots from a full ``state``; all others are empty afterwards. ``RecoveryError`` where it does not fit."""
        stored_NC = state.dense.get(f"{self.name}.rows")
        self.release(range(self.slots))
        if stored_NC is None or not len(slots):
            return
        if stored_NC.shape[1:] != self.rows_SC.shape[1:] or stored_NC.dtype != self.rows_SC.dtype:
            raise RecoveryError(
                f"{self.name} of the snapshot is {tuple(stored_NC.shape[1:])} {stored_NC.dtype}, this one "
                f"{tuple(self.rows_SC.shape[1:])} {self.rows_SC.dtype}; resume with the options of the first run"
            )
        chosen = torch.tensor(list(slots), dtype=torch.int64)
        self.rows_SC[chosen.to(self.rows_SC.device)] = stored_NC.to(self.rows_SC.device)
        self.count_S[chosen] = state.dense[f"{self.name}.count"]
