"""Impressions that wait for their labels, and labels that wait for their impressions.

Knows rows, ids and event times; nothing of models or banks beyond an opaque key per row. Each slot (one for a global memory,
one per stream otherwise) is a ring of its latest impressions, which also answers for duplicates and for corrections that come
late, and a fixed number of early labels. Invariant: labels change a row's state at once; what they write waits, in order, until
``take_staged``. Rows are freed by ``free`` only, so nothing depends on how rows were cut into calls. All columns are allocated
in the constructors.
"""

# S slots, R rows and E early labels of a slot, B rows of a call, L slots of a call, W width of a key, N slots of a snapshot

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.uploads import upload_values
from operators.reloop2.budget import JOIN_BLOCK, join_rows
from operators.reloop2.ids import Bools, IdIndex, Ints, first_of_each
from operators.rounds import rank_within
from operators.state import Rows, State

__all__ = ["EarlyLabels", "JoinTable", "RowState", "Waiting"]

"""Rows that share a lower bound of their deadlines, so that looking for timeouts does not read the whole table."""
_NO_DEADLINE = np.iinfo(np.int64).max


class RowState(IntEnum):
    """What a row of the table is."""

    EMPTY = 0
    PENDING = 1
    STAGED = 2
    """Its label is known; the write waits for the end of the micro-batch."""
    DONE = 3
    """Written, dropped or made with an older model; kept to recognize duplicates."""
    NEGATIVE = 4
    """Timed out and written as a negative; a late positive may correct it."""
    CORRECTING = 5
    """A late positive is known; the correction waits for the end of the micro-batch."""
    EXPIRED = 6
    """Timed out and not written; or corrected too late to be."""


class Waiting(NamedTuple):
    """Impressions on their way into the table, [B]."""

    slots_B: Ints
    ids_B: Ints
    deadline_us_B: Ints
    base_B: Tensor
    model: int
    """Number of the model that made ``base_B`` and the keys."""
    keys_BW: Tensor


class JoinTable:
    """Rings of ``capacity`` rows for each of ``slots`` slots, and room for ``slack`` rows between two calls of ``free``."""

    def __init__(
        self,
        slots: int,
        capacity: int,
        slack: int,
        *,
        key_width: int,
        key_dtype: torch.dtype,
        device: torch.device,
        known_base: bool = False,
    ) -> None:
        """``known_base``: the host keeps base predictions, too, once it has come to know them."""
        self.slots, self.capacity, self.slack = slots, capacity, slack
        self.rows = join_rows(capacity, slack)
        total = slots * self.rows
        self.state = np.zeros(total, np.uint8)
        self.ids = np.zeros(total, np.int64)
        self.deadline_us = np.zeros(total, np.int64)
        self.label = np.zeros(total, np.float32)
        self.model = np.zeros(total, np.int64)
        self.written = np.zeros(total, np.int64)
        """Where the row stands in the memory, for corrections: what ``ErrorMemory.write`` returned."""
        self.base_R = torch.zeros(total, device=device)
        self.known_base_R = np.full(total if known_base else 0, np.nan, np.float32)
        """The same on the host; NaN where it does not know it yet."""
        self.keys_RW = torch.zeros((total, key_width), dtype=key_dtype, device=device)
        self._head_S = np.zeros(slots, np.int64)
        self._staged_SR = np.zeros((slots, self.rows), np.int32)
        self._staged_count_S = np.zeros(slots, np.int64)
        self._earliest_SQ = np.full((slots, self.rows // JOIN_BLOCK), _NO_DEADLINE)
        self._dirty_key = np.zeros(total, np.bool_)
        self._dirty = np.zeros(total, np.bool_)
        self._index = IdIndex(lambda ids, rows: (self.ids[rows] == ids) & (self.state[rows] != RowState.EMPTY))

    def find(self, ids_B: Ints) -> Ints:
        """Return the row of each id, -1 where the table does not hold it (anymore)."""
        return self._index.find(ids_B)

    def add(self, new: Waiting) -> tuple[Ints, Bools]:
        """Append impressions as pending; return their rows and which were not appended since their id is there already.

        Of equal ids in one call the first is appended. A slot takes ``slack`` rows at most until its next ``free``.
        """
        duplicate_B = (self.find(new.ids_B) >= 0) | ~first_of_each(new.ids_B)
        fresh_B = np.flatnonzero(~duplicate_B)
        slots_B = new.slots_B[fresh_B]
        place_B = (self._head_S[slots_B] + rank_within(slots_B)) % self.rows
        row_B = slots_B * self.rows + place_B
        np.add.at(self._head_S, slots_B, 1)
        self.state[row_B] = RowState.PENDING
        self.ids[row_B] = new.ids_B[fresh_B]
        self.deadline_us[row_B] = new.deadline_us_B[fresh_B]
        self.label[row_B] = 0.0
        self.model[row_B] = new.model
        self.written[row_B] = 0
        if len(self.known_base_R):
            self.known_base_R[row_B] = np.nan
        to_B, from_B = self._on_device(row_B), self._on_device(fresh_B)
        self.keys_RW[to_B] = new.keys_BW[from_B].to(self.keys_RW.dtype)
        self.base_R[to_B] = new.base_B[from_B]
        np.minimum.at(self._earliest_SQ, (slots_B, place_B // JOIN_BLOCK), new.deadline_us_B[fresh_B])
        self._dirty[row_B] = self._dirty_key[row_B] = True
        self._index.put(new.ids_B[fresh_B], row_B)
        rows_B = np.full(len(new.ids_B), -1, np.int64)
        rows_B[fresh_B] = row_B
        return rows_B, duplicate_B

    def note_base(self, row_B: Ints, base_B: npt.NDArray[np.float32]) -> None:
        """Note base predictions that have come to the host; of equal rows the last one counts, and of those below 0 none."""
        self.known_base_R[row_B[row_B >= 0]] = base_B[row_B >= 0]

    def stage(self, row_B: Ints, label_B: np.ndarray) -> None:
        """Note the labels of rows, all different: of pending ones to be written, of negative ones to be corrected."""
        pending_B = self.state[row_B] == RowState.PENDING
        self.state[row_B] = np.where(pending_B, np.uint8(RowState.STAGED), np.uint8(RowState.CORRECTING))
        self.label[row_B] = label_B
        self._dirty[row_B] = True
        slots_B = row_B // self.rows
        self._staged_SR[slots_B, self._staged_count_S[slots_B] + rank_within(slots_B)] = row_B % self.rows
        np.add.at(self._staged_count_S, slots_B, 1)

    def take_staged(self, slots_L: Ints) -> Ints:
        """Return the staged rows of these slots, slot by slot, each in the order of ``stage``, and forget that order."""
        count_L = self._staged_count_S[slots_L]
        taken = np.arange(int(count_L.max(initial=0))) < count_L[:, None]
        rows_LT = self._staged_SR[slots_L, : taken.shape[1]] + slots_L[:, None] * self.rows
        self._staged_count_S[slots_L] = 0
        staged: Ints = rows_LT[taken].astype(np.int64)
        return staged

    def due(self, slots_L: Ints, watermark_us_L: Ints) -> Ints:
        """Return the pending rows of these slots whose deadline the watermark has reached, oldest first in each slot."""
        at_L, block_L = np.nonzero(self._earliest_SQ[slots_L] <= watermark_us_L[:, None])
        if not len(at_L):
            return np.empty(0, np.int64)
        row_LB = ((slots_L[at_L] * self.rows) + block_L * JOIN_BLOCK)[:, None] + np.arange(JOIN_BLOCK)
        pending_LB = self.state[row_LB] == RowState.PENDING
        deadline_LB = np.where(pending_LB, self.deadline_us[row_LB], _NO_DEADLINE)
        due_LB = deadline_LB <= watermark_us_L[at_L][:, None]
        self._earliest_SQ[slots_L[at_L], block_L] = np.where(due_LB, _NO_DEADLINE, deadline_LB).min(1)
        row_B = row_LB[due_LB]
        slot_B = row_B // self.rows
        age_B = (row_B - self._head_S[slot_B]) % self.rows  # the oldest stands at the head
        ordered: Ints = row_B[np.lexsort((age_B, slot_B))]
        return ordered

    def settle(self, row_B: Ints, state: RowState, written_B: Ints | int = 0) -> None:
        """Set the state of rows."""
        self.state[row_B] = state
        self.written[row_B] = written_B
        self._dirty[row_B] = True

    def free(self, slots_L: Ints) -> int:
        """Forget all but the latest ``capacity`` rows of these slots; return how many were still waiting for a label."""
        oldest_L = self._head_S[slots_L] - self.capacity - self.slack
        row_B = (slots_L[:, None] * self.rows + (oldest_L[:, None] + np.arange(self.slack)) % self.rows).ravel()
        row_B = row_B[self.state[row_B] != RowState.EMPTY]
        waiting = int(np.count_nonzero(self.state[row_B] == RowState.PENDING))
        self.settle(row_B, RowState.EMPTY)
        return waiting

    def clear(self, slot: int) -> None:
        """Forget all rows of a slot."""
        rows = slice(slot * self.rows, (slot + 1) * self.rows)
        self.state[rows] = RowState.EMPTY
        self._dirty[rows] = self._dirty_key[rows] = False
        self._head_S[slot] = self._staged_count_S[slot] = 0
        self._earliest_SQ[slot] = _NO_DEADLINE

    def waiting(self) -> int:
        """Return how many rows wait for their label."""
        return int(np.count_nonzero(self.state == RowState.PENDING))

    # Snapshots

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        """Add these slots to ``state`` under ``join.``; where incremental, only rows that changed."""
        state.dense["join.head"] = torch.from_numpy(self._head_S[slots_N])
        # A single slot belongs to no stream and is a tensor of fixed size in the snapshot; see ``operators.state.to_shared``.
        length_N = np.minimum(self._head_S[slots_N], self.rows) if self.slots > 1 else np.array([self.rows] * len(slots_N))
        used_NR = np.arange(self.rows) < length_N[:, None]
        for name, dirty in (("rows", self._dirty), ("keys", self._dirty_key)):
            held_NR = used_NR & dirty.reshape(self.slots, -1)[slots_N] if incremental else used_NR
            at_R, index_R = np.nonzero(held_NR)
            row_R = slots_N[at_R] * self.rows + index_R
            values_R = torch.from_numpy(self._columns(row_R)) if name == "rows" else self.keys_RW[self._on_device(row_R)].cpu()
            count_N = torch.from_numpy(held_NR.sum(1))
            state.rows[f"join.{name}"] = Rows(torch.from_numpy(length_N), count_N, torch.from_numpy(index_R), values_R)
        staged_N = self._staged_count_S[slots_N]
        staged_R = self._staged_SR[slots_N][np.arange(self.rows) < staged_N[:, None]]
        state.rows["join.staged"] = Rows.full(torch.from_numpy(staged_N), torch.from_numpy(staged_R))

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._dirty[:] = False
        self._dirty_key[:] = False

    def load(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``; all others must be empty."""
        self._head_S[slots_N] = state.dense["join.head"].numpy()
        rows, keys, staged = (state.rows[f"join.{name}"] for name in ("rows", "keys", "staged"))
        row_R = np.repeat(slots_N * self.rows, rows.count_N.numpy()) + rows.index_R.numpy()
        values = rows.values_R.numpy()
        self.ids[row_R], self.deadline_us[row_R], self.model[row_R], self.written[row_R] = values[:, :4].T
        self.state[row_R] = values[:, 4].astype(np.uint8)
        base_R, self.label[row_R] = values[:, 5:].astype(np.int32).view(np.float32).T
        there_R = self._on_device(row_R)
        self.keys_RW[there_R] = keys.values_R.to(self.keys_RW)
        self.base_R[there_R] = upload_values(base_R, self.base_R.device)
        if len(self.known_base_R):
            self.known_base_R[row_R] = base_R
        count_N = staged.count_N.numpy()
        self._staged_count_S[slots_N] = count_N
        self._staged_SR[np.repeat(slots_N, count_N), staged.index_R.numpy()] = staged.values_R.numpy()
        live_R = row_R[self.state[row_R] != RowState.EMPTY]
        self._index.put(self.ids[live_R], live_R)
        waiting_R = row_R[self.state[row_R] == RowState.PENDING]
        block_R = waiting_R % self.rows // JOIN_BLOCK
        np.minimum.at(self._earliest_SQ, (waiting_R // self.rows, block_R), self.deadline_us[waiting_R])

    def _columns(self, row_R: Ints) -> Ints:
        """Return all but the keys of rows as int64 [R, 7], floats by their bits."""
        whole: list[npt.NDArray[Any]] = [self.ids, self.deadline_us, self.model, self.written, self.state]
        base_R = self.base_R[self._on_device(row_R)].cpu().numpy()
        bits = [column_R.view(np.int32).astype(np.int64) for column_R in (base_R, self.label[row_R])]
        return np.stack([*(column[row_R].astype(np.int64) for column in whole), *bits], axis=1)

    def _on_device(self, row_B: Ints) -> Tensor:
        return upload_values(row_B, self.keys_RW.device)


class EarlyLabels:
    """Up to ``capacity`` labels for each of ``slots`` slots."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self._held_SE = np.zeros((slots, capacity), np.bool_)
        self._held = self._held_SE.reshape(-1)
        self._ids = np.zeros(slots * capacity, np.int64)
        self._label = np.zeros(slots * capacity, np.float32)
        self._time_us = np.zeros(slots * capacity, np.int64)
        self._count_S = np.zeros(slots, np.int64)
        self._index = IdIndex(lambda ids, rows: self._held[rows] & (self._ids[rows] == ids))

    def __len__(self) -> int:
        return int(self._count_S.sum())

    def add(self, slots_B: Ints, ids_B: Ints, label_B: np.ndarray, time_us_B: Ints) -> tuple[int, int]:
        """Hold labels; return how many were there already (the first one stays) and how many found no room."""
        new_B = np.flatnonzero(first_of_each(ids_B) & (self._index.find(ids_B) < 0))
        slot_B = slots_B[new_B]
        rank_B = rank_within(slot_B)
        room_B = rank_B < self.capacity - self._count_S[slot_B]
        refused_ids = ids_B[new_B[~room_B]]
        refused = int(np.isin(ids_B, refused_ids).sum()) if len(refused_ids) else 0
        new_B, slot_B, rank_B = new_B[room_B], slot_B[room_B], rank_B[room_B]
        row_B = np.empty(len(new_B), np.int64)
        for slot in np.unique(slot_B).tolist():  # slots that had early labels in this call: few
            mine_B = slot_B == slot
            row_B[mine_B] = slot * self.capacity + np.flatnonzero(~self._held_SE[slot])[: int(mine_B.sum())]
        self._held[row_B] = True
        self._ids[row_B], self._label[row_B], self._time_us[row_B] = ids_B[new_B], label_B[new_B], time_us_B[new_B]
        np.add.at(self._count_S, slot_B, 1)
        self._index.put(ids_B[new_B], row_B)
        return len(ids_B) - len(new_B) - refused, refused

    def take(self, ids_B: Ints) -> tuple[Bools, np.ndarray]:
        """Return which ids have a label here, and those labels; they are held no longer."""
        if not len(self):
            return np.zeros(len(ids_B), np.bool_), np.empty(0, np.float32)
        row_B = self._index.find(ids_B)
        found_B = row_B >= 0
        label_B = self._label[row_B[found_B]]
        self._drop(row_B[found_B])
        return found_B, label_B

    def expire(self, slots_L: Ints, before_us_L: Ints) -> int:
        """Drop the labels of these slots with a time up to ``before_us_L``; return how many."""
        busy_L = self._count_S[slots_L] > 0
        if not busy_L.any():
            return 0
        slots_L, before_us_L = slots_L[busy_L], before_us_L[busy_L]
        old_LE = self._held_SE[slots_L] & (self._time_us.reshape(self.slots, -1)[slots_L] <= before_us_L[:, None])
        at_L, column_L = np.nonzero(old_LE)
        self._drop(slots_L[at_L] * self.capacity + column_L)
        return len(at_L)

    def clear(self, slot: int) -> None:
        """Forget all labels of a slot."""
        self._held_SE[slot] = False
        self._count_S[slot] = 0

    def _drop(self, row_B: Ints) -> None:
        self._held[row_B] = False
        np.subtract.at(self._count_S, row_B // self.capacity, 1)

    # Snapshots: always whole, since the labels held are few.

    def export(self, slots_N: Ints, state: State) -> None:
        """Add these slots to ``state`` as ``early``, ordered by id."""
        at_R, column_R = np.nonzero(self._held_SE[slots_N])
        row_R = slots_N[at_R] * self.capacity + column_R
        row_R = row_R[np.lexsort((self._ids[row_R], at_R))]
        columns = [self._ids[row_R], self._time_us[row_R], self._label[row_R].view(np.int32).astype(np.int64)]
        length_N = torch.from_numpy(self._count_S[slots_N])
        state.rows["early"] = Rows.full(length_N, torch.from_numpy(np.stack(columns, axis=1)))

    def load(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``; all others must be empty."""
        stored = state.rows["early"]
        count_N = stored.count_N.numpy()
        row_R = np.repeat(slots_N * self.capacity, count_N) + stored.index_R.numpy()
        values = stored.values_R.numpy()
        self._held[row_R] = True
        self._ids[row_R], self._time_us[row_R] = values[:, 0], values[:, 1]
        self._label[row_R] = values[:, 2].astype(np.int32).view(np.float32)
        self._count_S[slots_N] = count_N
        self._index.put(self._ids[row_R], row_R)
