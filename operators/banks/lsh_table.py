"""LshTable: buckets of row numbers over a RowRing, whose candidates are ranked exactly.

It knows hashes and row numbers; keys and values lie in the ring. A slot holds a row's sequence number, which is its generation
stamp too: a row that the ring has overwritten is recognized by it. Invariants: the content depends on the order of the rows,
not on how they were cut into calls; a search equals ``RowRing.search`` restricted to the candidates.
"""

# B rows or queries of a call, D dim, K arrays, R slots per bucket, V value columns, M candidates, k neighbors, E entries

from __future__ import annotations

import itertools
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks.draws import random_numbers
from operators.banks.row_ring import Neighbors, RowRing
from operators.budget import check_budget, lsh_bytes
from operators.state import Patch, State

__all__ = ["BucketHash", "LshTable"]

_EMPTY = -1
_CANDIDATES = 1 << 21  # of one block of queries: bounds the memory of a search
_POLICIES = ("fifo", "reservoir")


class BucketHash(Protocol):
    """Names a bucket per array for each row: ``operators.banks.SignHash``."""

    def hash(self, x_BD: Tensor) -> Tensor:
        """Return int64 [B, K], each below 2**bits."""
        ...


class LshTable:
    """K tables of 2^bits buckets of R slots (locality-sensitive hashing, exact cosine re-rank).

    ``policy``: which row leaves a full bucket. ``fifo``: the oldest. ``reservoir``: the slots are a uniform sample of the
    bucket's rows since the ring's last full turn (a sample of all rows ever would be of rows that the ring has lost).
    """

    def __init__(
        self,
        ring: RowRing,
        arrays: int,
        bits: int,
        slots_per_bucket: int,
        hash: BucketHash,
        policy: str = "fifo",
        *,
        name: str = "table",
        seed: int = 0,
        budget_bytes: int | None = None,
    ) -> None:
        """Allocate the table beside ``ring``, which it writes to from now on. ``hash`` has ``arrays`` arrays of ``bits`` bits.

        ``name`` stands before the names of columns in snapshots. Raise ``ConfigError`` where the sizes make no sense or
        ``budget_bytes`` is less than the table needs.
        """
        if arrays < 1 or bits < 0 or slots_per_bucket < 1:
            raise ConfigError(
                f"a table of {arrays} arrays of {bits} bits with {slots_per_bucket} slots per bucket: needed are at least 1 "
                "array, 0 bits and 1 slot"
            )
        if policy not in _POLICIES:
            raise ConfigError(f"policy={policy!r}: allowed are 'fifo' and 'reservoir'")
        self.name, self.ring, self.arrays, self.bits, self.slots = name, ring, arrays, bits, slots_per_bucket
        self.policy, self.seed = policy, seed
        self._hash = hash
        if budget_bytes is not None:
            need = self.bytes_needed(arrays, bits, slots_per_bucket)
            hint = "Lower arrays, bits or slots per bucket."
            check_budget("LSH table", bytes_per_stream=need, streams=1, budget=budget_bytes, hint=hint)
        buckets = arrays << bits
        self._entries_E = torch.full((buckets * slots_per_bucket,), _EMPTY, device=ring.device)
        self._count_P = torch.zeros(buckets, dtype=torch.int64, device=ring.device)
        self._dirty_E = torch.zeros(len(self._entries_E), dtype=torch.bool, device=ring.device)
        self._dirty_P = torch.zeros(buckets, dtype=torch.bool, device=ring.device)

    @staticmethod
    def bytes_needed(arrays: int, bits: int, slots_per_bucket: int) -> int:
        """Return what a table costs beside its ring."""
        return lsh_bytes(arrays, bits, slots_per_bucket)

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tensors beside the ring; equals ``bytes_needed``."""
        tensors = (self._entries_E, self._count_P, self._dirty_E, self._dirty_P)
        return {"device": sum(t.numel() * t.element_size() for t in tensors)}

    @torch.no_grad()
    def write(self, h_BD: Tensor, values_BV: Tensor, *, buckets_BK: Tensor | None = None) -> Tensor:
        """Append rows to the ring and to their buckets; return their sequence numbers, int64 [B].

        ``buckets_BK``: the hashes, where the caller has them or hashes something else than the key (a centered one, say).
        """
        if buckets_BK is None:
            buckets_BK = self._hash.hash(h_BD.to(self.ring.device))
        first = self.ring.written
        sequence_B = self.ring.write(h_BD, values_BV)
        # A turn of the ring ends within the call: the counts of a reservoir start again there.
        number_B = np.arange(first, first + len(sequence_B))
        turn_B = np.flatnonzero(self.ring.positions(number_B) == 0).tolist() if self.policy == "reservoir" else []
        cuts = [0, *(t for t in turn_B if t), len(sequence_B)]
        for start, stop in itertools.pairwise(cuts):
            if start in turn_B:
                self._dirty_P |= self._count_P > 0
                self._count_P.zero_()
            self._insert(buckets_BK[start:stop], sequence_B[start:stop])
        return sequence_B

    @torch.no_grad()
    def search(self, q_BD: Tensor, k: int, *, buckets_BK: Tensor | None = None) -> Neighbors:
        """Return the ``k`` rows of highest cosine among those that share a bucket with the query, in any array."""
        if k < 1:
            raise ConfigError(f"k={k}: the number of neighbors must be at least 1")
        if buckets_BK is None:
            buckets_BK = self._hash.hash(q_BD.to(self.ring.device))
        step = max(1, _CANDIDATES // (self.arrays * self.slots))
        parts = []
        for i in range(0, max(len(q_BD), 1), step):
            sequence_BM, valid_BM = self.candidates(buckets_BK[i : i + step])
            parts.append(self.ring.rank(q_BD[i : i + step], sequence_BM, valid_BM, k))
        return Neighbors(
            similarity_Bk=torch.cat([p.similarity_Bk for p in parts]),
            sequence_Bk=torch.cat([p.sequence_Bk for p in parts]),
            values_BkV=torch.cat([p.values_BkV for p in parts]),
            valid_Bk=torch.cat([p.valid_Bk for p in parts]),
        )

    @torch.no_grad()
    def candidates(self, buckets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distinct live rows of these buckets, newest first, [B, M], and which columns count."""
        slot_R = torch.arange(self.slots, device=self.ring.device)
        index_BM = (self._buckets(buckets_BK)[:, :, None] * self.slots + slot_R).flatten(1)
        sequence_BM = _descending(self._entries_E[index_BM])
        valid_BM = self.ring.alive(sequence_BM)
        valid_BM[:, 1:] &= sequence_BM[:, 1:] != sequence_BM[:, :-1]
        # Once more, so that the rows that count stand first and the rest can be cut off; on a device they stay, since the host
        # would have to wait to know how many.
        most = sequence_BM.shape[1]
        if valid_BM.device.type == "cpu":
            most = int(valid_BM.sum(1).max()) if valid_BM.numel() else 0
        sequence_BM = _descending(sequence_BM.masked_fill_(~valid_BM, _EMPTY))[:, :most]
        return sequence_BM, sequence_BM != _EMPTY

    def clear(self) -> None:
        """Forget all rows, of the ring too."""
        self.ring.clear()
        self._entries_E.fill_(_EMPTY)
        self._count_P.zero_()
        self._dirty_E.fill_(True)
        self._dirty_P.fill_(True)

    # Snapshots: the ring exports itself.

    def export(self, state: State, *, incremental: bool = False) -> None:
        """Add copies to ``state`` under ``<name>.``; where incremental, entries changed since ``mark_clean``."""
        for key, (tensor, dirty) in self._tensors().items():
            if incremental:
                changed = dirty.nonzero()[:, 0]
                state.patches[f"{self.name}.{key}"] = Patch(changed.cpu(), tensor[changed].cpu())
            else:
                state.shared[f"{self.name}.{key}"] = tensor.cpu().clone()

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._dirty_E.zero_()
        self._dirty_P.zero_()

    def load(self, state: State, /) -> None:
        """Take the content from a full ``state``. Raise ``RecoveryError`` where it does not fit."""
        for key, (tensor, dirty) in self._tensors().items():
            stored = state.shared.get(f"{self.name}.{key}")
            if stored is None or stored.shape != tensor.shape:
                found = "missing" if stored is None else f"of {stored.numel()} entries"
                raise RecoveryError(
                    f"{self.name}.{key} of the snapshot is {found}, the table's has {tensor.numel()} entries "
                    f"({self.arrays} arrays of {self.bits} bits, {self.slots} slots); resume with the options of the first run"
                )
            tensor.copy_(stored)
            dirty.zero_()

    def _tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {"entries": (self._entries_E, self._dirty_E), "counts": (self._count_P, self._dirty_P)}

    def _buckets(self, buckets_BK: Tensor) -> Tensor:
        """Number the buckets of all arrays through."""
        return buckets_BK.to(self.ring.device) + (torch.arange(self.arrays, device=self.ring.device) << self.bits)

    def _insert(self, buckets_BK: Tensor, sequence_B: Tensor) -> None:
        bucket_M = self._buckets(buckets_BK).flatten()
        sequence_M = sequence_B.repeat_interleave(self.arrays)
        before_M = self._count_P[bucket_M] + _earlier_equals(bucket_M)
        slot_M = before_M % self.slots
        if self.policy == "reservoir":
            # The n-th row of a full bucket replaces a slot with probability R / n (Vitter 1985, algorithm R).
            seed_M = torch.full_like(sequence_M, self.seed)
            drawn_M = random_numbers(seed_M ^ bucket_M, sequence_M, 0, 1)[:, 0] % (before_M + 1)
            slot_M = torch.where(before_M < self.slots, before_M, drawn_M)
            # A row that is not kept is written as none, which changes nothing: so the host need not know which they are.
            keep_M = slot_M < self.slots
            slot_M, sequence_M = torch.where(keep_M, slot_M, 0), torch.where(keep_M, sequence_M, _EMPTY)
        index_M = bucket_M * self.slots + slot_M
        # Later rows have larger numbers, so the maximum is what writing one after the other would leave.
        self._entries_E.scatter_reduce_(0, index_M, sequence_M, "amax")
        self._count_P.index_add_(0, bucket_M, torch.ones_like(bucket_M))
        self._dirty_E[index_M] = True
        self._dirty_P[bucket_M] = True


def _earlier_equals(value_M: Tensor) -> Tensor:
    """Return for each entry how many equal ones stand before it."""
    sorted_M, order_M = value_M.sort(stable=True)
    index_M = torch.arange(len(value_M), device=value_M.device)
    first_M = torch.ones_like(sorted_M, dtype=torch.bool)
    first_M[1:] = sorted_M[1:] != sorted_M[:-1]
    start_M = torch.where(first_M, index_M, 0).cummax(0).values if len(value_M) else index_M
    return torch.empty_like(index_M).scatter_(0, order_M, index_M - start_M)


def _descending(value_BM: Tensor) -> Tensor:
    if value_BM.is_cuda:
        return value_BM.sort(dim=1, descending=True).values
    return torch.from_numpy(np.sort(value_BM.numpy(), axis=1)).flip(1)  # sorts with vector instructions
