"""A sketch as a dict of cells, one row at a time, in whole numbers and fractions: what SketchBank must equal, bit for bit."""

# B rows of a call, K arrays, V value columns

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import torch
from torch import Tensor

from operators.banks import Forgetting, Never, ResetEvery, SketchBank, Slices

ONE = 1 << 24


class CellDict:
    """Rows of every slot that still count. Never, ResetEvery and Slices; for HalfLife see ``decayed``."""

    def __init__(self, forgetting: Forgetting) -> None:
        self.forgetting = forgetting
        self.rows: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
        self.written: dict[int, int] = defaultdict(int)  # since the last clear, forgotten ones too

    def write(self, buckets_BK: Tensor, values_BV: Tensor, slots_B: Tensor) -> None:
        for buckets, values, slot in zip(buckets_BK.tolist(), values_BV.tolist(), slots_B.tolist(), strict=True):
            self.forget(slot)
            self.rows[slot].append((buckets, [round(value * ONE) for value in values]))
            self.written[slot] += 1

    def forget(self, slot: int) -> None:
        match self.forgetting:
            case ResetEvery(rows=rows):
                if self.written[slot] % rows == 0:
                    self.rows[slot] = []
            case Slices(rows=rows, slices=slices):
                part = rows // slices
                if self.written[slot] % part == 0 and len(self.rows[slot]) == part * slices:
                    self.rows[slot] = self.rows[slot][part:]
            case Never():
                pass

    def cell(self, slot: int, array: int, bucket: int) -> list[int]:
        inside = [values for buckets, values in self.rows[slot] if buckets[array] == bucket]
        return [len(inside), *(sum(column) for column in zip(*inside, strict=True))] if inside else []


def decayed(buckets_BK: Tensor, values_BV: Tensor, query_K: Tensor, half_life: int) -> list[list[Fraction | float]]:
    """Return per array the weight and the weighted sums of the rows in the query's bucket, the last row weighing 1."""
    number = len(buckets_BK)
    cells = []
    for array, bucket in enumerate(query_K.tolist()):
        sums = [0.0] * (1 + values_BV.shape[1])
        for row in range(number):
            if int(buckets_BK[row, array]) == bucket:
                weight = 0.5 ** ((number - 1 - row) / half_life)
                for column, value in enumerate([1.0, *values_BV[row].tolist()]):
                    sums[column] += weight * value
        cells.append(sums)
    return cells


def everything(bank: SketchBank) -> Tensor:
    """Return counts and sums of all buckets of all slots, float64 [S, 2**L, K, 1 + V]."""
    buckets_BK = torch.arange(1 << bank.bits)[:, None].expand(-1, bank.arrays)
    reads = [bank.read(buckets_BK, slots_B=torch.full((len(buckets_BK),), slot)) for slot in range(bank.slots)]
    return torch.stack([torch.cat([read.count_BK[..., None].double(), read.sums_BKV], dim=2) for read in reads])


def same(bank: SketchBank, reference: CellDict) -> bool:
    """Return whether every cell and every count of rows is equal, bit for bit."""
    cells = everything(bank)
    wanted = torch.zeros_like(cells)
    for slot in range(bank.slots):
        for array in range(bank.arrays):
            for bucket in {buckets[array] for buckets, _ in reference.rows[slot]}:
                count, *sums = reference.cell(slot, array, bucket)
                wanted[slot, bucket, array] = torch.tensor([count, *(value / ONE for value in sums)], dtype=torch.float64)
    held = [len(reference.rows[slot]) for slot in range(bank.slots)]
    return torch.equal(cells, wanted) and bank.written.tolist() == held
