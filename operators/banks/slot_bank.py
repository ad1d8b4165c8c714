"""SlotBank: rows of memory for many streams in preallocated tensors ``[slots, capacity, *row]``, one slot per stream.

It knows slots, not stream ids (:class:`operators.streams.StreamTable` maps those), and copies rows where a policy of
:mod:`operators.banks.policies` says. Invariants: nothing is allocated after the constructor except results; positions
``0..fill-1`` of a slot hold its rows, the rest is garbage that reads mask; every call works on all its streams at once. The
slots of one call must be distinct.
"""

# S slots, C capacity, B streams of a call, N new rows per stream, K rows read per stream, R rows over all streams

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import RecoveryError
from models.uploads import upload
from operators.banks.draws import Sampler, sample_without_replacement
from operators.banks.policies import Fills, Policy, Writing
from operators.budget import slot_bytes
from operators.state import Rows, State

__all__ = ["ReadBuffer", "Readout", "RowSpec", "SlotBank"]

_HALF_MAX = torch.finfo(torch.float16).max
_COUNTERS = ("fill", "written", "step", "seed")


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Shape and storage type of one row."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Readout:
    """Rows read from a bank: copies. With a :class:`ReadBuffer` they last until the next read through the same buffer."""

    rows: dict[str, Tensor]
    """name → [B, K, *row], in the storage type; with ``split`` [B, H, K, ...] of rows [H, ...]."""
    valid_BK: Tensor
    """False: padding of a stream with fewer than K rows."""
    index_BK: Tensor
    """Positions within the slots."""
    full: bool | None = None
    """Every row is valid; None: the host does not know."""


class ReadBuffer:
    """Memory that reads of one or several banks share, as large as the largest read so far.

    For the CPU: memory fresh from the system costs a page fault per 4 KiB, up to ten times the copy itself. On a GPU the
    allocator keeps memory on its own, and banks do without a buffer.
    """

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape on the CPU, content undefined, that the next call with this ``key`` reuses."""
        size = math.prod(shape)
        flat = self._flat.get((key, dtype))
        if flat is None or flat.numel() < size:
            with torch.inference_mode(False):  # so that the buffer can be reused outside inference mode, too
                flat = self._flat[key, dtype] = torch.empty(size, dtype=dtype)
        return flat[:size].view(shape)


def _looked_at(fill_B: Tensor) -> Fills:
    """Return what a look at the counters tells; on a device the host waits for it."""
    fills = fill_B.tolist()
    return Fills(min(fills, default=0), max(fills, default=0))


class SlotBank:
    """Rows of one kind for ``slots`` streams. ``rows`` names the tensors that make up a row (keys and values, say)."""

    def __init__(
        self,
        name: str,
        rows: Mapping[str, RowSpec],
        *,
        slots: int,
        capacity: int,
        device: torch.device | str = "cpu",
        sampler: Sampler = sample_without_replacement,
        buffer: ReadBuffer | None = None,
    ) -> None:
        self.name = name
        self.slots = slots
        self.capacity = capacity
        self.device = torch.device(device)
        self.sampler = sampler
        self._buffer = buffer if self.device.type == "cpu" else None
        self.specs = dict(rows)
        # Zeros, not empty: reads multiply garbage by a weight of 0, which is 0 only if the garbage is finite.
        self.rows = {
            key: torch.zeros((slots, capacity, *spec.shape), dtype=spec.dtype, device=self.device) for key, spec in rows.items()
        }
        """name → [S, C, *row]"""
        self._fill_S, self._written_S, self._step_S, self._seed_S = (
            torch.zeros(slots, dtype=torch.int64, device=self.device) for _ in _COUNTERS
        )
        self._dirty_SC = torch.zeros((slots, capacity), dtype=torch.bool, device=self.device)

    @staticmethod
    def bytes_per_slot(rows: Mapping[str, RowSpec], capacity: int) -> int:
        """Return what one stream costs: rows, one flag per row, counters."""
        return slot_bytes(sum(spec.bytes for spec in rows.values()), capacity)

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tensors of this bank, all on the device; they are ``slots * bytes_per_slot``."""
        tensors = [*self.rows.values(), self._dirty_SC, self._fill_S, self._written_S, self._step_S, self._seed_S]
        return {"device": sum(t.numel() * t.element_size() for t in tensors)}

    # Slots

    def open(self, slots_B: Tensor, seeds_B: Tensor) -> None:
        """Hand slots to new streams: empty, at step 0, with these generator seeds."""
        for counter_S in (self._fill_S, self._written_S, self._step_S):
            counter_S[slots_B] = 0
        self._seed_S[slots_B] = upload(seeds_B, self.device)

    def release(self, slots_B: Tensor) -> None:
        """Take slots back from streams that have ended: empty, at step 0."""
        for counter_S in (self._fill_S, self._written_S, self._step_S, self._seed_S):
            counter_S[slots_B] = 0

    def clear(self, slots_B: Tensor) -> None:
        """Forget all rows of these streams; step and seed go on."""
        self._fill_S[slots_B] = 0
        self._written_S[slots_B] = 0

    def advance(self, slots_B: Tensor, wanted_B: Tensor | None = None) -> None:
        """Go to the next step: draws from now on are new ones. ``wanted_B``: of these streams only."""
        self._step_S[slots_B] += 1 if wanted_B is None else wanted_B.long()

    def fill(self, slots_B: Tensor) -> Tensor:
        """Return how many rows each stream holds, [B]."""
        return self._fill_S[slots_B]

    def written(self, slots_B: Tensor) -> Tensor:
        """Return how many rows each stream was given since it was opened or cleared, [B]."""
        return self._written_S[slots_B]

    def step(self, slots_B: Tensor) -> Tensor:
        """Return how often each stream was advanced, [B]."""
        return self._step_S[slots_B]

    def seed(self, slots_B: Tensor) -> Tensor:
        """Return the generator seed of each stream, [B]."""
        return self._seed_S[slots_B]

    # Reads

    def draw(self, slots_B: Tensor, k: int, purpose: int, *, known: Fills | None = None) -> Tensor:
        """Draw ``k`` distinct positions per stream, [B, k]. Columns from a stream's fill on are padding."""
        fill_B, seed_B, step_B = self._fill_S[slots_B], self._seed_S[slots_B], self._step_S[slots_B]
        if known is not None and self.sampler is sample_without_replacement:
            return sample_without_replacement(fill_B, k, seed_B=seed_B, step_B=step_B, purpose=purpose, known=known)
        return self.sampler(fill_B, k, seed_B=seed_B, step_B=step_B, purpose=purpose)

    def gather(
        self, slots_B: Tensor, index_BK: Tensor, valid_BK: Tensor, *, split: bool = False, full: bool | None = None
    ) -> Readout:
        """Read these positions. ``split`` delivers rows [H, ...] by their first dimension, as attention heads want them."""
        flat = slots_B[:, None] * self.capacity + index_BK
        rows = {}
        for key, rows_SC in self.rows.items():
            source, wanted, row = rows_SC.flatten(0, 1), flat, rows_SC.shape[2:]
            if split:
                part = torch.arange(row[0], device=self.device)[:, None]
                source, wanted, row = source.flatten(0, 1), flat[:, None] * row[0] + part, row[1:]
            shape = (wanted.numel(), *row)
            out = self._buffer.take(key, shape, rows_SC.dtype) if self._buffer is not None else rows_SC.new_empty(shape)
            torch.index_select(source, 0, wanted.flatten(), out=out)
            rows[key] = out.view(*wanted.shape, *row)
        return Readout(rows, valid_BK, index_BK, full)

    def read(self, slots_B: Tensor, *, split: bool = False, known: Fills | None = None) -> Readout:
        """Read all rows of each stream, oldest position first; K is the largest fill.

        ``known``: what the host knows of the fills. Then it looks at no counter, and K may be larger than it need be.
        """
        fill_B = self._fill_S[slots_B]
        known = known or _looked_at(fill_B)
        index_K = torch.arange(known.most, device=self.device)
        valid_BK = index_K < fill_B[:, None]
        return self.gather(slots_B, index_K.expand_as(valid_BK), valid_BK, split=split, full=known.least == known.most)

    def sample(self, slots_B: Tensor, k: int, *, purpose: int, split: bool = False, known: Fills | None = None) -> Readout:
        """Read ``k`` rows drawn uniformly without replacement; all rows of a stream that holds no more than ``k``.

        ``known``: see :meth:`read`.
        """
        fill_B = self._fill_S[slots_B]
        fills = known or _looked_at(fill_B)
        if fills.most <= k:
            return self.read(slots_B, split=split, known=fills)
        index_K = torch.arange(k, device=self.device)
        # A young stream reads its rows in order whether or not an older one in the batch makes a draw necessary.
        index_BK = torch.where(fill_B[:, None] <= k, index_K, self.draw(slots_B, k, purpose, known=known))
        return self.gather(slots_B, index_BK, index_K < fill_B[:, None], split=split, full=fills.least >= k)

    def top_k(self, slots_B: Tensor, score_BC: Tensor, k: int) -> Readout:
        """Read the ``k`` rows of highest score, best first. ``score_BC`` covers the whole capacity; garbage is ignored."""
        fill_B = self._fill_S[slots_B]
        index_C = torch.arange(self.capacity, device=self.device)
        score_BC = score_BC.masked_fill(index_C >= fill_B[:, None], -torch.inf)
        index_BK = score_BC.topk(min(k, self.capacity), dim=1, sorted=True).indices
        valid_BK = torch.arange(index_BK.shape[1], device=self.device) < fill_B[:, None]
        return self.gather(slots_B, index_BK, valid_BK)

    # Writes

    def write(
        self,
        slots_B: Tensor,
        rows: Mapping[str, Tensor],
        count_B: Tensor,
        policy: Policy,
        *,
        purpose: int = 0,
        known: Fills | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Store the first ``count_B`` of each stream's N new rows where ``policy`` says.

        ``rows``: name → [B, N, *row], all names of the bank; converted to the storage type. Zero rows change nothing. Returns
        ``(position_BN, valid_BN)``: where each row went, and whether it was stored. ``known``: see :meth:`read`.
        """
        width = next(iter(rows.values())).shape[1]
        plan = policy(Writing(self, slots_B, rows, count_B, width, purpose, known))
        flat_BN = slots_B[:, None] * self.capacity + plan.position_BN
        blind = self.device.type != "cpu"
        whole = not blind and bool(plan.valid_BN.all())
        if blind:
            flat_R, instead = self._redirected(flat_BN, plan.valid_BN)
        else:
            flat_R = flat_BN.flatten() if whole else flat_BN[plan.valid_BN]
        for key, rows_SC in self.rows.items():
            if blind:
                values_R = instead(rows_SC.flatten(0, 1), rows[key])
            else:
                values_R = rows[key].flatten(0, 1) if whole else rows[key][plan.valid_BN]
            if rows_SC.dtype == torch.float16:  # an infinite row would spoil every read that draws it
                values_R = values_R.clamp(-_HALF_MAX, _HALF_MAX)
            rows_SC.flatten(0, 1)[flat_R] = values_R.to(rows_SC.dtype)
        self._dirty_SC.flatten()[flat_R] = True
        self._fill_S[slots_B] = plan.fill_B
        self._written_S[slots_B] += count_B
        return plan.position_BN, plan.valid_BN

    def _redirected(self, flat_BN: Tensor, valid_BN: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Return places for all rows, as many as there are, and what makes the values for them.

        A row that is not stored goes where its stream's first stored one goes, with its value; where none is stored, all go
        to one place with the value that is there. So nothing changes but what should, and no shape depends on the content.
        """
        streams, width = flat_BN.shape
        first_B1 = valid_BN.int().argmax(1, keepdim=True)
        any_B1 = valid_BN.any(1, keepdim=True)
        column_BN = torch.where(valid_BN, torch.arange(width, device=self.device), first_B1)
        last_B1 = torch.arange(streams, device=self.device)[:, None] * width
        end = self.slots * self.capacity - 1
        place_BN = flat_BN.gather(1, column_BN).clamp_max(end)
        source_R, place_R = (last_B1 + column_BN).flatten(), place_BN.flatten()
        any_R = any_B1.expand(-1, width).flatten()

        def values(held_F: Tensor, new_BN: Tensor) -> Tensor:
            new_R = new_BN.flatten(0, 1).index_select(0, source_R)
            return torch.where(any_R.view(-1, *(1,) * (new_R.dim() - 1)), new_R, held_F.index_select(0, place_R))

        return place_R, values

    def assign(self, slots_B: Tensor, key: str, values_BC: Tensor) -> None:
        """Replace one tensor [B, C, *row] of these streams where they are: marks and the like, not whole rows."""
        held = self.rows[key]
        changed_BC = (held[slots_B] != values_BC).flatten(2).any(2) if held.dim() > 2 else held[slots_B] != values_BC
        held[slots_B] = values_BC.to(held.dtype)
        self._dirty_SC[slots_B] |= changed_BC

    def put(self, slot_R: Tensor, position_R: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Replace some of the tensors [R, *row] of rows where they are, none of them twice; for few rows among many."""
        flat_R = slot_R * self.capacity + position_R
        for key, values_R in rows.items():
            held = self.rows[key].flatten(0, 1)
            held[flat_R] = values_R.to(held.dtype)
        self._dirty_SC.flatten()[flat_R] = True

    # Snapshots

    def export(self, slots_N: Tensor, state: State, *, incremental: bool) -> None:
        """Add copies of these slots to ``state`` under ``<bank>.<name>``; of the rows only those changed where incremental."""
        for key, counter_S in self._counters().items():
            state.dense[f"{self.name}.{key}"] = counter_S[slots_N].cpu()
        fill_N = self._fill_S[slots_N]
        index_C = torch.arange(self.capacity, device=self.device)
        held_NC = index_C < fill_N[:, None]
        if incremental:
            held_NC &= self._dirty_SC[slots_N]
        stream_R, index_R = held_NC.nonzero(as_tuple=True)
        flat_R = slots_N[stream_R] * self.capacity + index_R
        for key, rows_SC in self.rows.items():
            values_R = rows_SC.flatten(0, 1).index_select(0, flat_R).cpu()
            state.rows[f"{self.name}.{key}"] = Rows(fill_N.cpu(), held_NC.sum(1).cpu(), index_R.cpu(), values_R)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._dirty_SC.zero_()

    def load(self, slots_N: Tensor, state: State) -> None:
        """Take these slots' content from a full ``state``. Raise ``RecoveryError`` where it does not fit."""
        for key, rows_SC in self.rows.items():
            stored = state.rows.get(f"{self.name}.{key}")
            if stored is None:
                raise RecoveryError(f"the snapshot has no rows {self.name}.{key}; it has {sorted(state.rows)}")
            if stored.values_R.dtype != rows_SC.dtype or stored.values_R.shape[1:] != rows_SC.shape[2:]:
                raise RecoveryError(
                    f"rows {self.name}.{key} of the snapshot are {tuple(stored.values_R.shape[1:])} {stored.values_R.dtype}, "
                    f"the bank's are {tuple(rows_SC.shape[2:])} {rows_SC.dtype}; resume with the options of the first run"
                )
            if stored.length_N.numel() and int(stored.length_N.max()) > self.capacity:
                raise RecoveryError(
                    f"a stream of the snapshot holds {int(stored.length_N.max())} rows of {self.name}, the bank's capacity is "
                    f"{self.capacity}; resume with the options of the first run"
                )
            start_R = torch.repeat_interleave(slots_N * self.capacity, stored.count_N.to(self.device))
            rows_SC.flatten(0, 1)[start_R + stored.index_R.to(self.device)] = stored.values_R.to(self.device)
        for key, counter_S in self._counters().items():
            counter_S[slots_N] = state.dense[f"{self.name}.{key}"].to(self.device)

    def _counters(self) -> dict[str, Tensor]:
        return {"fill": self._fill_S, "written": self._written_S, "step": self._step_S, "seed": self._seed_S}
