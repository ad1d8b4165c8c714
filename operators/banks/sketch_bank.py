"""SketchBank: sums over all rows that were ever hashed into a bucket; constant memory, O(1) reads and writes.

A RACE sketch (Coleman & Shrivastava 2020) with value sums: per slot K arrays of 2**L buckets, each with a count and V sums, as
ReLoop2 (arXiv 2306.08808, §3.2.3) uses it with V = 2 and SDIM (arXiv 2205.10249, §4.2) with V = the width of a behavior. It
knows buckets, not vectors (:class:`operators.banks.SignHash` makes them). Invariants: values are fixed-point integers, so the
content is the same, bit for bit, whatever the order, batching, device or merging of writes; what is forgotten depends on the
number of rows written to a slot alone; nothing is allocated after the constructor except results.
"""

# B rows of a call, K arrays, L bits, V value columns, C columns of a cell (count, then values), S slots, M cells of a slot
# (K 2**L), T slices, N slots of a snapshot, H cells of a list

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from models.uploads import upload, upload_values
from operators.banks.forgetting import Forgetting, HalfLife, Never, ResetEvery, Slices
from operators.banks.sign_hash import MAX_BITS
from operators.budget import check_budget, sketch_bytes
from operators.rounds import rank_within
from operators.state import Rows, State

__all__ = ["FIXED_POINT", "SketchBank", "SketchRead", "mean_direction"]

FIXED_POINT = 1 << 24
"""Values are stored as multiples of 1 / FIXED_POINT: as fine as float32 between 0.5 and 1."""

_MOST_ROWS = 1 << 38
"""Rows of a slot at which its sums could leave int64, for values up to 1: beyond, counts and sums are halved."""

_FINE = 1 << 12
"""Weights of a half-life are the product of a coarse and a fine power: two short tables."""

_FAINT = FIXED_POINT >> 12
"""A cell of less weight is emptied when weights are shifted back: its means would soon be rounding errors."""

# Marks of a cell: changed since the last snapshot; may be other than zero. Resets and slices then visit few of many cells.
_CHANGED, _HELD = 1, 2

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SketchRead:
    """What stands in the buckets of some rows."""

    count_BK: Tensor
    """float64: rows, with a half-life the sum of their weights."""
    sums_BKV: Tensor
    """float64: sums of the values."""


class SketchBank:
    """Sketches for ``slots`` streams, or one for all."""

    def __init__(
        self,
        arrays: int,
        bits: int,
        columns: Sequence[str],
        *,
        name: str = "sketch",
        slots: int = 1,
        forgetting: Forgetting | None = None,
        device: torch.device | str = "cpu",
        budget_bytes: int | None = None,
        most_rows: int = _MOST_ROWS,
    ) -> None:
        """Allocate empty sketches. Raise ``ConfigError`` where the sizes make no sense or exceed ``budget_bytes``.

        ``name`` stands before the names of columns in snapshots. ``most_rows``: beyond this many rows of a slot, counts and
        sums are halved, which ``halvings`` counts.
        """
        if arrays < 1 or not 0 <= bits <= MAX_BITS or slots < 1 or most_rows < 2:
            raise ConfigError(
                f"a sketch of {arrays} arrays with {bits} bits for {slots} streams: arrays and streams must be at least 1, "
                f"bits 0 to {MAX_BITS}"
            )
        self.name, self.arrays, self.bits, self.columns, self.slots = name, arrays, bits, tuple(columns), slots
        self.forgetting = forgetting or Never()
        self.device = torch.device(device)
        if budget_bytes is not None:
            need = self.bytes_needed(arrays, bits, len(self.columns), self.forgetting)
            hint = "Lower 'arrays' or 'bits' (one bit less halves a sketch), or forget without slices."
            check_budget("sketch", bytes_per_stream=need, streams=slots, budget=budget_bytes, hint=hint)
        self._cells = arrays << bits
        self._most_rows = most_rows
        shape = (slots * self._cells, 1 + len(self.columns))
        self._total_SMC = torch.zeros(shape, dtype=torch.int64, device=self.device)
        """[S M, C]: what reads see; a slot's cells follow each other."""
        self._marks_SM = torch.zeros(shape[0], dtype=torch.uint8, device=self.device)
        slices = self.forgetting.slices if isinstance(self.forgetting, Slices) else 0
        self._slices_STMC = torch.zeros((slots * slices * self._cells, shape[1]), dtype=torch.int64, device=self.device)
        self._slices_marks_STM = torch.zeros(len(self._slices_STMC), dtype=torch.uint8, device=self.device)
        self._offset_K = torch.arange(arrays, device=self.device) << bits
        self._column_C = torch.arange(shape[1], device=self.device)
        # Per slot, on the CPU: rows of this period, rows that reads see, periods so far.
        self._period_rows_S: Ints = np.zeros(slots, np.int64)
        self._written_S: Ints = np.zeros(slots, np.int64)
        self._periods_S: Ints = np.zeros(slots, np.int64)
        self._slice_rows_ST: Ints = np.zeros((slots, slices), np.int64)
        self._coarse, self._fine = _powers(self.forgetting, self.device)

    @staticmethod
    def bytes_needed(arrays: int, bits: int, columns: int, forgetting: Forgetting | None = None) -> int:
        """Return what the tables of one slot cost."""
        return sketch_bytes(arrays, bits, columns, forgetting.slices if isinstance(forgetting, Slices) else 0)

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tables; equals ``slots * bytes_needed``."""
        tensors = (self._total_SMC, self._marks_SM, self._slices_STMC, self._slices_marks_STM)
        return {"device": sum(t.numel() * t.element_size() for t in tensors)}

    # Slots

    def open(self, slots_N: Tensor, seeds_N: Tensor | None = None, /) -> None:
        """Make slots ready for new streams: empty. Nothing is drawn, so seeds do not matter."""
        self.clear(slots_N)

    def release(self, slots_N: Tensor, /) -> None:
        """Empty the slots of streams that have ended, so that the next snapshot does not carry them."""
        self.clear(slots_N)

    def clear(self, slots_N: Tensor | None = None) -> None:
        """Forget everything in these slots, or in all."""
        slot_N = np.arange(self.slots) if slots_N is None else slots_N.cpu().numpy()
        for slot in slot_N.tolist():
            for _, cells, marks, length in self._tables():
                _zero(cells, marks, slot * length, length)
        for counter in self._counters().values():
            counter[slot_N] = 0

    @property
    def written(self) -> Tensor:
        """How many rows reads of each slot see, int64 [S]; with a half-life the sum of their weights, float64."""
        if isinstance(self.forgetting, HalfLife):
            rate = math.log(2.0) / self.forgetting.rows
            return torch.from_numpy(np.expm1(-rate * self._written_S) / math.expm1(-rate))
        return torch.from_numpy(self._written_S.copy())

    @property
    def halvings(self) -> Tensor:
        """How often each slot was halved because it had seen ``most_rows`` rows, int64 [S]."""
        return torch.from_numpy(self._periods_S * isinstance(self.forgetting, Never))

    # Rows

    @torch.no_grad()
    def write(self, buckets_BK: Tensor, values_BV: Tensor, *, slots_B: Tensor | None = None) -> None:
        """Count rows in their buckets and add their values, in order within each slot.

        ``values_BV`` are finite floats; up to 1 in size no sum can overflow.
        """
        cells_BK, slot_B = self._address(buckets_BK, slots_B)
        values_BV = upload(values_BV, self.device)
        if values_BV.shape != (len(cells_BK), len(self.columns)):
            raise ConfigError(f"values of shape {list(values_BV.shape)} for {len(cells_BK)} rows of {list(self.columns)}")
        while True:
            rank_B = rank_within(slot_B)
            fits_B = rank_B < self._room()[slot_B]
            if fits_B.all():
                self._put(cells_BK, values_BV, slot_B, rank_B)
                return
            now_B, later_B = (upload_values(np.flatnonzero(part_B), self.device) for part_B in (fits_B, ~fits_B))
            self._put(cells_BK[now_B], values_BV[now_B], slot_B[fits_B], rank_B[fits_B])
            self._roll(np.unique(slot_B[~fits_B]))
            cells_BK, values_BV, slot_B = cells_BK[later_B], values_BV[later_B], slot_B[~fits_B]

    @torch.no_grad()
    def correct(self, buckets_BK: Tensor, values_BV: Tensor, *, slots_B: Tensor | None = None) -> None:
        """Add to the sums of rows that were counted before, as if they had been written with these values besides.

        Raise ``ConfigError`` where rows have lost weight since (``Slices``, ``HalfLife``): it could not be exact.
        """
        if isinstance(self.forgetting, Slices | HalfLife):
            raise ConfigError(
                f"a sketch with {self.forgetting} cannot be corrected: its rows have lost weight since; use Never or ResetEvery"
            )
        cells_BK, _ = self._address(buckets_BK, slots_B)
        fixed_BV = (upload(values_BV, self.device).double() * FIXED_POINT).round().long()
        rows_BC = torch.cat([torch.zeros_like(fixed_BV[:, :1]), fixed_BV], dim=1)
        self._scatter(self._total_SMC, self._marks_SM, cells_BK, rows_BC)

    @torch.no_grad()
    def read(self, buckets_BK: Tensor, *, slots_B: Tensor | None = None) -> SketchRead:
        """Return counts and sums of the rows' buckets. An empty bucket has count 0."""
        cells_BK, slot_B = self._address(buckets_BK, slots_B)
        shape = (*cells_BK.shape, len(self._column_C))
        found_BKC = self._total_SMC.index_select(0, cells_BK.reshape(-1)).view(shape)
        count_BK, sums_BKV = found_BKC[..., 0].double(), found_BKC[..., 1:].double() / FIXED_POINT
        if isinstance(self.forgetting, HalfLife):
            weight_B11 = self._weights(self._period_rows_S[slot_B])[:, None, None]
            count_BK, sums_BKV = count_BK / FIXED_POINT / weight_B11[..., 0], sums_BKV / weight_B11
        return SketchRead(count_BK, sums_BKV)

    @torch.no_grad()
    def merge(self, other: SketchBank) -> None:
        """Add another bank's content: the two then equal one that had all rows. Both must have hashed with the same weights.

        Raise ``ConfigError`` naming what differs; only banks that forget nothing can be merged.
        """
        for name in ("arrays", "bits", "columns", "slots"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ConfigError(f"banks cannot be merged: {name} {mine} and {theirs}")
        if not (isinstance(self.forgetting, Never) and isinstance(other.forgetting, Never)):
            raise ConfigError(
                f"banks cannot be merged: {self.forgetting} and {other.forgetting}; only Never keeps all rows of both"
            )
        if self._periods_S.any() or other._periods_S.any() or ((self._written_S + other._written_S) > self._most_rows).any():
            raise ConfigError(f"banks cannot be merged: together they saw more than {self._most_rows} rows")
        self._total_SMC += other._total_SMC.to(self.device)
        held_SM = other._marks_SM.to(self.device) & _HELD
        self._marks_SM |= held_SM | (held_SM >> 1)
        self._written_S += other._written_S
        self._period_rows_S += other._period_rows_S

    # Snapshots

    def export(self, slots_N: Tensor, state: State, *, incremental: bool = False) -> None:
        """Add copies of these slots to ``state`` under ``<name>.``; where incremental, cells changed since ``mark_clean``."""
        slot_N = slots_N.cpu().numpy()
        for key, counter in self._counters().items():
            state.dense[f"{self.name}.{key}"] = torch.from_numpy(counter[slot_N].copy())
        slot = slots_N.to(self.device)
        for key, cells, marks, length in self._tables():
            lengths = torch.full((len(slot_N),), length)
            if not incremental:
                values = cells.view(self.slots, length, -1)[slot].flatten(0, 1).to("cpu", copy=True)
                state.rows[f"{self.name}.{key}"] = Rows.full(lengths, values)
                continue
            changed = _marked(marks.view(self.slots, length)[slot].view(-1), _CHANGED)
            stream, position = changed // length, changed % length
            values = cells[slot[stream] * length + position].cpu()
            count = torch.bincount(stream, minlength=len(slot_N))
            state.rows[f"{self.name}.{key}"] = Rows(lengths, count.cpu(), position.cpu(), values)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._marks_SM &= _HELD
        self._slices_marks_STM &= _HELD

    def load(self, slots_N: Tensor, state: State, /) -> None:
        """Take the content of these slots from a full ``state``; all others are empty afterwards.

        Raise ``RecoveryError`` where it does not fit.
        """
        slot_N = slots_N.cpu().numpy()
        slot = slots_N.to(self.device)
        for key, cells, _, length in self._tables():
            rows = state.rows.get(f"{self.name}.{key}")
            wanted = (len(slot_N) * length, cells.shape[1])
            if rows is None or tuple(rows.values_R.shape) != wanted or rows.values_R.dtype != cells.dtype:
                found = "missing" if rows is None else f"{list(rows.values_R.shape)} of {rows.values_R.dtype}"
                raise RecoveryError(
                    f"{self.name}.{key} of the snapshot is {found}, the sketch's is {list(wanted)} of {cells.dtype}; "
                    "resume with the arrays, bits and forgetting of the first run"
                )
        self.clear()
        self.mark_clean()
        for key, cells, marks, length in self._tables():
            rows = state.rows[f"{self.name}.{key}"]
            values = rows.values_R.to(self.device).view(len(slot_N), length, -1)
            cells.view(self.slots, length, -1)[slot] = values
            marks.view(self.slots, length)[slot] = (values != 0).any(2).to(torch.uint8) * _HELD
        for key, counter in self._counters().items():
            counter[slot_N] = state.dense[f"{self.name}.{key}"].numpy()

    # Inside

    def _address(self, buckets_BK: Tensor, slots_B: Tensor | None) -> tuple[Tensor, Ints]:
        """Return the cell of each row and array, and the slot of each row."""
        if buckets_BK.ndim != 2 or buckets_BK.shape[1] != self.arrays:
            raise ConfigError(f"buckets of shape {list(buckets_BK.shape)} do not fit {self.arrays} arrays")
        cells_BK = buckets_BK.to(self.device, torch.int64) + self._offset_K
        if slots_B is None or self.slots == 1:
            return cells_BK, np.zeros(len(cells_BK), np.int64)
        slot_B: Ints = slots_B.cpu().numpy().astype(np.int64, copy=False)
        return cells_BK + upload(slots_B.long(), self.device)[:, None] * self._cells, slot_B

    def _put(self, cells_BK: Tensor, values_BV: Tensor, slot_B: Ints, rank_B: Ints) -> None:
        """Write rows that need no roll."""
        if not len(slot_B):
            return
        values_BV = values_BV.double() * FIXED_POINT
        rows_BC = torch.cat([torch.ones_like(values_BV[:, :1]), values_BV], dim=1)
        if isinstance(self.forgetting, HalfLife):
            rows_BC[:, 0] = FIXED_POINT
            rows_BC *= self._weights(self._period_rows_S[slot_B] + rank_B + 1)[:, None]
        rows_BC = rows_BC.round().long()
        self._scatter(self._total_SMC, self._marks_SM, cells_BK, rows_BC)
        rows_S = np.bincount(slot_B, minlength=self.slots)
        if isinstance(self.forgetting, Slices):
            slices = self.forgetting.slices
            current_B = upload_values(slot_B * (slices - 1) + self._periods_S[slot_B] % slices, self.device)
            # From [S, M] to [S, T, M]: a slot's cells move by the slices of the slots before it, then by its current slice.
            self._scatter(self._slices_STMC, self._slices_marks_STM, cells_BK + current_B[:, None] * self._cells, rows_BC)
            self._slice_rows_ST[np.arange(self.slots), self._periods_S % slices] += rows_S
        self._period_rows_S += rows_S
        self._written_S += rows_S

    def _scatter(self, cells_XC: Tensor, marks_X: Tensor, index_BK: Tensor, rows_BC: Tensor) -> None:
        """Add a row to each of its cells. Over the flat table, where adding is fastest."""
        columns = len(self._column_C)
        flat = (index_BK[:, :, None] * columns + self._column_C).view(-1)
        cells_XC.view(-1).scatter_add_(0, flat, rows_BC[:, None].expand(-1, index_BK.shape[1], -1).reshape(-1))
        marks_X[index_BK.reshape(-1)] = _CHANGED | _HELD

    def _room(self) -> Ints:
        """Return how many rows each slot takes before its period ends."""
        period = self._most_rows if isinstance(self.forgetting, Never) else self.forgetting.period
        room_S: Ints = period - self._period_rows_S
        return room_S

    def _weights(self, rows_B: Ints) -> Tensor:
        """Return 2 ** (rows / half-life). From tables: a power computed alone and among others may differ in the last bit."""
        coarse_B, fine_B = (upload_values(part, self.device) for part in np.divmod(rows_B, _FINE))
        return self._coarse[coarse_B] * self._fine[fine_B]

    def _roll(self, slot_N: Ints) -> None:
        """End the period of slots: halve, reset, take out the oldest slice, or shift weights back."""
        for slot in slot_N.tolist():
            span = self._span(slot)
            match self.forgetting:
                case Never():
                    self._shift(span, 1)
                    self._written_S[slot] = self._period_rows_S[slot] = self._period_rows_S[slot] >> 1
                case ResetEvery():
                    _zero(self._total_SMC, self._marks_SM, span.start, self._cells)
                    self._written_S[slot] = self._period_rows_S[slot] = 0
                case Slices(slices=slices):
                    oldest = int(self._periods_S[slot] + 1) % slices
                    start = (slot * slices + oldest) * self._cells
                    self._subtract(span, slice(start, start + self._cells))
                    _zero(self._slices_STMC, self._slices_marks_STM, start, self._cells)
                    self._written_S[slot] -= self._slice_rows_ST[slot, oldest]
                    self._slice_rows_ST[slot, oldest] = self._period_rows_S[slot] = 0
                case HalfLife():
                    self._shift(span, self.forgetting.shift)
                    _zero(self._total_SMC, self._marks_SM, span.start, self._cells, below=_FAINT)
                    self._period_rows_S[slot] = 0
            self._periods_S[slot] += 1

    def _subtract(self, span: slice, of: slice) -> None:
        """Take cells of a slice out of those that reads see."""
        if self.device.type == "cpu":
            held = _held(self._slices_marks_STM, of.start, self._cells)
            gone_HC = self._slices_STMC.index_select(0, held)
            self._scatter(self._total_SMC, self._marks_SM, (held - of.start + span.start)[:, None], -gone_HC)
            return
        self._total_SMC[span] -= self._slices_STMC[of]
        held_M = self._slices_marks_STM[of] & _HELD
        self._marks_SM[span] |= held_M | (held_M >> 1)

    def _shift(self, span: slice, bits: int) -> None:
        """Divide all cells by a power of two, rounding down."""
        self._total_SMC[span] >>= bits
        self._marks_SM[span] |= self._marks_SM[span] >> 1  # what is held has changed

    def _span(self, slot: int) -> slice:
        return slice(slot * self._cells, (slot + 1) * self._cells)

    def _counters(self) -> dict[str, Ints]:
        counters = {"period_rows": self._period_rows_S, "written": self._written_S, "periods": self._periods_S}
        return counters | ({"slice_rows": self._slice_rows_ST} if isinstance(self.forgetting, Slices) else {})

    def _tables(self) -> list[tuple[str, Tensor, Tensor, int]]:
        """Return name, cells, their marks, and the number of cells of one slot."""
        tables = [("cells", self._total_SMC, self._marks_SM, self._cells)]
        if isinstance(self.forgetting, Slices):
            tables.append(("slices", self._slices_STMC, self._slices_marks_STM, self.forgetting.slices * self._cells))
        return tables


def mean_direction(read: SketchRead) -> Tensor:
    """Return the mean over arrays of the sums, each scaled to length 1: SDIM's user interest (§4.2), float64 [B, V]."""
    length_BK1 = read.sums_BKV.square().sum(2, keepdim=True).sqrt()
    return torch.where(length_BK1 > 0, read.sums_BKV / length_BK1, 0.0).mean(1)


def _powers(forgetting: Forgetting, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 2 ** (n _FINE / half-life) and 2 ** (n / half-life), as far as a period needs them."""
    if not isinstance(forgetting, HalfLife):
        return torch.empty(0), torch.empty(0)
    coarse = torch.arange(forgetting.period // _FINE + 1, dtype=torch.float64) * _FINE
    fine = torch.arange(_FINE, dtype=torch.float64)
    return torch.exp2(coarse / forgetting.rows).to(device), torch.exp2(fine / forgetting.rows).to(device)


def _marked(marks_X: Tensor, mark: int) -> Tensor:
    """Return the positions of cells that carry a mark, ascending."""
    chosen_X = (marks_X & mark) != 0
    if marks_X.is_cuda:
        return chosen_X.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(chosen_X.numpy()))  # faster than nonzero


def _held(marks_X: Tensor, start: int, length: int) -> Tensor:
    """Return the positions of cells in a stretch that may be other than zero."""
    return start + _marked(marks_X[start : start + length], _HELD)


def _zero(cells_XC: Tensor, marks_X: Tensor, start: int, length: int, *, below: int | None = None) -> None:
    """Empty the cells of a stretch that are held; ``below``: of them those whose count is below this.

    On the CPU cell by cell, as few are held. A device goes through all of them: to list them it would have to be waited for.
    """
    if not marks_X.is_cuda:
        held_H = _held(marks_X, start, length)
        if below is not None:
            held_H = held_H[cells_XC[held_H, 0] < below]
        cells_XC.index_fill_(0, held_H, 0)
        marks_X[held_H] = _CHANGED
        return
    cells_MC, marks_M = cells_XC[start : start + length], marks_X[start : start + length]
    gone_M = (marks_M & _HELD) != 0
    if below is not None:
        gone_M &= cells_MC[:, 0] < below
    cells_MC.masked_fill_(gone_M[:, None], 0)
    marks_M.masked_fill_(gone_M, _CHANGED)
