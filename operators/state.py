"""What an operator hands over at an epoch: typed tensors of its streams, in a form that can be cut and merged by stream.

One ``State`` holds many streams in columns, never one object per stream. It knows nothing about shards or files; the
engine selects streams by key when the number of shards changes.
"""

# N streams of this state, R rows over all streams, C changed entries of a tensor

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from connectors.errors import RecoveryError

__all__ = ["Patch", "Rows", "State", "from_shared", "to_shared"]


@dataclass(slots=True)
class Rows:
    """Rows of different number per stream, stored back to back.

    A full snapshot holds all rows (``count == length`` and ``index`` runs 0..length-1 per stream); an incremental one holds
    only the rows that changed, with their positions.
    """

    length_N: Tensor
    """int64: how many rows each stream has in all."""
    count_N: Tensor
    """int64: how many of them are in this state."""
    index_R: Tensor
    """int64: the position of each stored row within its stream."""
    values_R: Tensor
    """[R, ...]: the rows."""

    @staticmethod
    def full(length_N: Tensor, values_R: Tensor) -> Rows:
        """Wrap all rows of each stream, in order."""
        starts_N = torch.cumsum(length_N, 0) - length_N
        index_R = torch.arange(values_R.shape[0]) - torch.repeat_interleave(starts_N, length_N)
        return Rows(length_N, length_N.clone(), index_R, values_R)

    def select(self, streams: Tensor) -> Rows:
        """Keep the streams at positions ``streams`` (int64, ascending), copying their rows."""
        keep_N = torch.zeros(self.count_N.shape[0], dtype=torch.bool)
        keep_N[streams] = True
        keep_R = torch.repeat_interleave(keep_N, self.count_N)
        return Rows(self.length_N[streams], self.count_N[streams], self.index_R[keep_R], self.values_R[keep_R])


@dataclass(slots=True)
class Patch:
    """Entries of a shared or additive tensor that changed: for a tensor that is too large to be written at every epoch."""

    index_C: Tensor
    """int64: positions along the first dimension, each at most once."""
    values_C: Tensor
    """[C, ...]: the present values (not differences)."""


@dataclass(slots=True)
class State:
    """All that an operator must know to go on, on the CPU. Owns its tensors (copies, never views of a bank)."""

    streams: list[str] = field(default_factory=list)
    """Stream ids, in the order of every leading N."""
    dense: dict[str, Tensor] = field(default_factory=dict)
    """name → [N, ...]: one entry per stream."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """name → rows of varying number per stream."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """name → tensor that belongs to no stream (a pool, a draw of projections). Every shard gets all of it."""
    additive: dict[str, Tensor] = field(default_factory=dict)
    """name → integer tensor that belongs to no stream and of which every shard holds a part: the whole is the sum (counters, a
    sketch). Where the number of shards changes, shard 0 gets the sum and the others zeros of the same shape."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON: what the operator wants to check at ``restore`` (its options, a model id)."""
    incremental: bool = False
    """True: holds only streams and rows that changed since the previous snapshot."""
    closed: list[str] = field(default_factory=list)
    """Incremental only: streams that ended since the previous snapshot."""
    patches: dict[str, Patch] = field(default_factory=dict)
    """Incremental only: name in ``shared`` or ``additive`` → what changed in it. What is in neither is as it was."""

    def select(self, keep: Sequence[bool] | np.ndarray) -> State:
        """Return the streams whose flag is true; what belongs to no stream stays whole."""
        flags = np.asarray(keep, dtype=bool)
        chosen = torch.from_numpy(np.flatnonzero(flags))
        return State(
            streams=[name for name, flag in zip(self.streams, flags, strict=True) if flag],
            dense={name: tensor[chosen] for name, tensor in self.dense.items()},
            rows={name: rows.select(chosen) for name, rows in self.rows.items()},
            shared=self.shared,
            additive=self.additive,
            meta=self.meta,
            incremental=self.incremental,
            closed=self.closed,
            patches=self.patches,
        )

    def without_additive(self) -> State:
        """Return the same with zeros in ``additive``: the part of a shard that has counted nothing yet. Shares the rest."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in self.additive.items()}
        return dataclasses.replace(self, additive=zeros)

    def bytes(self) -> int:
        """Return the size of all tensors in bytes."""
        tensors = [*self.dense.values(), *self.shared.values(), *self.additive.values()]
        for rows in self.rows.values():
            tensors += [rows.length_N, rows.count_N, rows.index_R, rows.values_R]
        for patch in self.patches.values():
            tensors += [patch.index_C, patch.values_C]
        return sum(t.numel() * t.element_size() for t in tensors)

    @staticmethod
    def merge(states: Sequence[State]) -> State:
        """Join the streams of several full states (shards of one operator) and add up what is additive.

        A stream may stand in one of them only.
        """
        if not states:
            return State()
        streams = [name for state in states for name in state.streams]
        if len(set(streams)) != len(streams):
            raise RecoveryError("a stream stands in the snapshots of two shards; the state folder is damaged")
        filled = [state for state in states if state.streams] or [states[0]]
        return State(
            streams=streams,
            dense={name: torch.cat([s.dense[name] for s in filled]) for name in filled[0].dense},
            rows={
                name: Rows(*(torch.cat([getattr(s.rows[name], part) for s in filled]) for part in _ROW_PARTS))
                for name in filled[0].rows
            },
            shared=states[0].shared,
            additive=_sum([state.additive for state in states]),
            meta=states[0].meta,
        )

    def apply(self, change: State) -> State:
        """Return the full state after an incremental one. ``self`` must be full and the state directly before."""
        gone = set(change.closed) | set(change.streams)
        old_of = {name: i for i, name in enumerate(self.streams)}
        kept = self.select([name not in gone for name in self.streams])
        kept.additive = {}  # set below; merging is to add up streams only
        rows = {name: self._apply_rows(name, change, old_of) for name in change.rows}
        fresh = State(change.streams, change.dense, rows)
        merged = State.merge([kept, fresh]) if kept.streams and fresh.streams else (fresh if fresh.streams else kept)
        unknown = change.patches.keys() - self.shared.keys() - self.additive.keys()
        if unknown:
            raise RecoveryError(
                f"a snapshot changes {sorted(unknown)}, which the snapshot before has not; the chain is damaged"
            )
        merged.shared = _patched(self.shared | change.shared, change.patches)
        merged.additive = _patched(self.additive | change.additive, change.patches)
        merged.meta = change.meta or self.meta
        return merged

    def _apply_rows(self, name: str, change: State, old_of: dict[str, int]) -> Rows:
        new = change.rows[name]
        old = self.rows.get(name)
        # Zeros: of a table of fixed size, a stream that is new names only the rows that are not zero.
        values_R = new.values_R.new_zeros((int(new.length_N.sum()), *new.values_R.shape[1:]))
        ended = set(change.closed)  # and has started over, if it is here
        start = taken = 0
        # Per stream, not per row: recovery is the only caller, and streams of one shard are at most thousands.
        starts = (torch.cumsum(old.count_N, 0) - old.count_N).tolist() if old is not None else []
        lengths, counts = new.length_N.tolist(), new.count_N.tolist()
        for stream, length, count in zip(change.streams, lengths, counts, strict=True):
            here = values_R[start : start + length]
            before = old_of.get(stream) if stream not in ended else None
            if old is not None and before is not None:
                n = min(length, int(old.length_N[before]))
                here[:n] = old.values_R[starts[before] : starts[before] + n]
            here[new.index_R[taken : taken + count]] = new.values_R[taken : taken + count]
            start, taken = start + length, taken + count
        return Rows.full(new.length_N, values_R)


def _sum(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, tensor in part.items():
            if tensor.is_floating_point():
                raise TypeError(f"additive tensor {name!r} is {tensor.dtype}; it must be of integers, whose sum has no order")
            before = total.get(name)
            if before is not None and before.shape != tensor.shape:
                raise RecoveryError(
                    f"additive tensor {name!r} has shape {list(before.shape)} in one shard and {list(tensor.shape)} in "
                    "another; the state folder is damaged"
                )
            total[name] = tensor.clone() if before is None else before.add_(tensor)
    return total


def _patched(tensors: dict[str, Tensor], patches: dict[str, Patch]) -> dict[str, Tensor]:
    """Return the tensors with their patches laid over copies of them."""
    return {
        name: tensor.index_copy(0, patches[name].index_C, patches[name].values_C) if name in patches else tensor
        for name, tensor in tensors.items()
    }


_ROW_PARTS = ("length_N", "count_N", "index_R", "values_R")

_DENSE, _ROWS = "dense.", "rows."


def to_shared(state: State) -> None:
    """Make what ``state`` holds of one nameless stream belong to no stream; for operators with one memory for all streams.

    ``dense`` and ``rows`` go into ``shared``, rows that are not all in this state into ``patches``.
    """
    for name, tensor in state.dense.items():
        state.shared[_DENSE + name] = tensor
    for name, rows in state.rows.items():
        if int(rows.count_N[0]) == int(rows.length_N[0]):
            state.shared[_ROWS + name] = rows.values_R
        else:
            state.patches[_ROWS + name] = Patch(rows.index_R, rows.values_R)
    state.dense, state.rows = {}, {}


def from_shared(state: State) -> State:
    """Return what ``to_shared`` was given, from a full state. Shares its tensors."""
    one = State(meta=state.meta, additive=state.additive)
    for name, tensor in state.shared.items():
        if name.startswith(_DENSE):
            one.dense[name.removeprefix(_DENSE)] = tensor
        elif name.startswith(_ROWS):
            one.rows[name.removeprefix(_ROWS)] = Rows.full(torch.tensor([len(tensor)]), tensor)
        else:
            one.shared[name] = tensor
    return one
