"""Where new rows go: one small function per published write rule, each over all streams of a batch at once.

A policy sees a :class:`Writing` (fill counters, new rows, the bank) and returns a :class:`Plan` of positions; the bank does the
copying. Policies never write, keep nothing between calls, and name no position twice for one stream.
"""

# B streams of a batch, N new rows per stream (padded), C capacity

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from operators.banks.slot_bank import SlotBank

__all__ = [
    "Fills",
    "Plan",
    "Policy",
    "Writing",
    "append",
    "drop_redundant_neighbor",
    "fifo_pinned",
    "random_replacement",
    "ring",
]

_LAST = torch.iinfo(torch.int64).max


class Fills(NamedTuple):
    """What the host knows, without looking at a device, of how many rows some slots hold."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Writing:
    """One call of ``SlotBank.write``, before anything is copied."""

    bank: SlotBank
    slots_B: Tensor
    rows: Mapping[str, Tensor]
    """name → [B, N, *row]"""
    count_B: Tensor
    """How many of the N rows count; the first ones."""
    width: int
    """N"""
    purpose: int
    """Keeps the random numbers of this write apart from other draws of the same step."""
    known: Fills | None = None
    """What the host knows of the fills; then a policy looks at no counter."""

    @property
    def column_N(self) -> Tensor:
        """0..N-1 on the bank's device."""
        return torch.arange(self.width, device=self.count_B.device)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the new rows go."""

    position_BN: Tensor
    valid_BN: Tensor
    """False: this row is not stored."""
    fill_B: Tensor
    """Fill counters afterwards."""


Policy = Callable[[Writing], Plan]


def append(writing: Writing) -> Plan:
    """Append after the newest row; rows beyond the capacity are refused."""
    fill_B, count_B = writing.bank.fill(writing.slots_B), writing.count_B
    position_BN = fill_B[:, None] + writing.column_N
    valid_BN = (writing.column_N < count_B[:, None]) & (position_BN < writing.bank.capacity)
    return Plan(position_BN, valid_BN, (fill_B + count_B).clamp_max(writing.bank.capacity))


def ring(writing: Writing) -> Plan:
    """Overwrite the oldest rows once full. Of more rows than the capacity the last ones stay."""
    bank, count_B = writing.bank, writing.count_B
    position_BN = (bank.written(writing.slots_B)[:, None] + writing.column_N) % bank.capacity
    used_BN = writing.column_N < count_B[:, None]
    valid_BN = used_BN & (writing.column_N >= (count_B - bank.capacity)[:, None])
    return Plan(position_BN, valid_BN, (bank.fill(writing.slots_B) + count_B).clamp_max(bank.capacity))


def random_replacement(limit: int, *, overshoot: bool = False) -> Policy:
    """Append until ``limit`` rows are there, then overwrite uniformly random rows in place (MAMBA, AAAI 2021).

    ``overshoot=False`` keeps at most ``limit`` rows: a write that crosses the limit appends what fits and overwrites old rows
    with the rest. ``overshoot=True`` is the published rule: a bank below the limit appends the whole write, so it ends with
    up to ``limit + n - 1`` rows (1125 + 75·t stops at 20025 for a limit of 20000), and a write of more rows than a full bank
    holds takes the place of all of them; the bank's capacity must allow that. Rows overwritten are always old ones, never rows
    of the same write.
    """

    def plan(writing: Writing) -> Plan:
        bank, column_N, count_B = writing.bank, writing.column_N, writing.count_B
        fill_B = bank.fill(writing.slots_B)
        if overshoot:
            beyond_B = (count_B - fill_B).clamp_min(0)  # more rows than a full bank can replace
            room_B = torch.where(fill_B < limit, bank.capacity, fill_B + beyond_B).clamp_max(bank.capacity) - fill_B
        else:
            room_B = (limit - fill_B).clamp_min(0)
        append_BN = column_N < room_B[:, None]
        # Row j of the ones that replace takes the j-th drawn position; there are at most fill_B of those.
        rank_BN = (column_N - room_B[:, None]).clamp_min(0)
        valid_BN = (column_N < count_B[:, None]) & (append_BN | (rank_BN < fill_B[:, None]))
        known = writing.known
        may_replace = known.most + writing.width > limit if known else bool((valid_BN & ~append_BN).any())
        if may_replace:
            drawn_BN = bank.draw(writing.slots_B, writing.width, writing.purpose, known=known)
            replaced_BN = drawn_BN.gather(1, rank_BN)
        else:
            replaced_BN = rank_BN
        position_BN = torch.where(append_BN, fill_B[:, None] + column_N, replaced_BN)
        return Plan(position_BN, valid_BN, fill_B + torch.minimum(count_B, room_B))

    return plan


def fifo_pinned(order: str = "order", pinned: str = "pinned") -> Policy:
    """Take free positions, then overwrite the lowest ``order`` that is not pinned; refuse when all are pinned.

    The bank needs two scalar rows with these names: ``order`` (int64, rises with every row the caller writes) and ``pinned``
    (bool).
    """

    def plan(writing: Writing) -> Plan:
        bank, fill_B = writing.bank, writing.bank.fill(writing.slots_B)
        index_C = torch.arange(bank.capacity, device=fill_B.device)
        free_BC = index_C >= fill_B[:, None]
        rank_BC = bank.rows[order][writing.slots_B].masked_fill(bank.rows[pinned][writing.slots_B], _LAST)
        rank_BC = torch.where(free_BC, index_C - _LAST, rank_BC)
        found = min(writing.width, bank.capacity)
        rank_BN, position_BN = rank_BC.topk(found, dim=1, largest=False, sorted=True)
        pad = writing.width - found
        rank_BN, position_BN = F.pad(rank_BN, (0, pad), value=_LAST), F.pad(position_BN, (0, pad))
        valid_BN = (writing.column_N < writing.count_B[:, None]) & (rank_BN < _LAST)
        taken_B = (valid_BN & (position_BN >= fill_B[:, None])).sum(1)  # orders below 0 are of rows that are there, too
        return Plan(position_BN, valid_BN, fill_B + taken_B)

    return plan


def drop_redundant_neighbor(feature: str = "feature", order: str = "order") -> Policy:
    """Once full, drop the older of the two time-neighbors that are most alike (4D-VLA, memory bank sampling).

    Likeness is the cosine of the rows ``feature``; neighbors are adjacent in ``order`` (int64 scalar rows), the new row being
    the newest; ties go to the oldest pair. The newest row always stays. Takes one new row per stream and call.
    """

    def plan(writing: Writing) -> Plan:
        if writing.width != 1:
            raise ValueError(f"drop_redundant_neighbor takes 1 row per stream and call, got {writing.width}")
        bank, slots_B = writing.bank, writing.slots_B
        fill_B = bank.fill(slots_B)
        sorted_BC = bank.rows[order][slots_B].argsort(dim=1)
        old_BCD = bank.rows[feature][slots_B].flatten(2).float()
        old_BCD = old_BCD.gather(1, sorted_BC[:, :, None].expand_as(old_BCD))
        all_BCD = F.normalize(torch.cat([old_BCD, writing.rows[feature].flatten(2).float()], dim=1), dim=2)
        likeness_BC = (all_BCD[:, :-1] * all_BCD[:, 1:]).sum(2)
        # max, not argmax: argmax promises no order among equal values.
        best_BC = likeness_BC == likeness_BC.amax(1, keepdim=True)
        oldest_B = best_BC.int().cumsum(1).eq(0).sum(1)
        redundant_B = sorted_BC.gather(1, oldest_B[:, None])[:, 0]
        full_B = fill_B >= bank.capacity
        position_B = torch.where(full_B, redundant_B, fill_B)
        return Plan(position_B[:, None], writing.count_B[:, None] > 0, (fill_B + writing.count_B).clamp_max(bank.capacity))

    return plan
