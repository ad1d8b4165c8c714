"""Exact cosine search over rows of unit length: a coarse matmul names candidates, a re-rank in float32 decides.

It knows keys and their age, no values and no ring. Invariants: the result is the exact top k whatever the coarse precision; on
the CPU its bits depend on the query and the keys alone, not on what else is in the batch; equal similarities go to the newest
row; memory beside the keys is bounded, whatever the number of rows and queries.
"""

# B queries, b queries of a block, R rows, D dim, n columns of a score tile, W rows per group, G groups of rows, M candidates,
# k neighbors

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.slot_bank import ReadBuffer
from operators.budget import ring_rows

__all__ = ["COARSE", "NOTHING", "KeyScan", "age_of", "best", "order_keys", "similarities", "similarity_of", "unit_rows"]

NOTHING = torch.iinfo(torch.int64).min
"""The order key of no row; below every other."""
COARSE = ("auto", "float32", "bfloat16", "float16")

_WIDEST_GROUP = 64
# By device type. On the CPU the selection and the re-rank stay within the cache of one core.
_TILE_ROWS = {"cpu": 40_000, "cuda": 1 << 18}  # rows per product
_BLOCK = {"cpu": 256, "cuda": 1024}  # queries per product
_SELECT = {"cpu": 64, "cuda": 1024}  # queries per selection
_SCRATCH_BYTES = {"cpu": 1 << 19, "cuda": 1 << 28}  # gathered rows of a re-rank
_WORTH_IT = 1.3  # times faster that bfloat16 must be for a second copy of the keys
_SPARE = 40  # candidates beyond 1.5 k: enough for nearly all queries on clustered and on Gaussian rows
_CROWDED_SHARE = 0.5  # of a block's queries: from here on the half-precision pass costs more than it saves
_PAUSE = 64  # blocks until half precision is tried again
_CROWDED_BLOCK = 16  # queries at a time where all rows may be candidates
_FEW_ROWS = 1 << 16  # on a device so few are all ranked: to choose candidates the host would have to wait for it
_FEW_PRODUCTS = 1 << 19  # on the CPU: so few are made in less time than it takes to choose candidates

_LOW = 0xFFFFFFFF
_MAGNITUDE = 0x7FFFFFFF


def unit_rows(x_BD: Tensor) -> Tensor:
    """Return the rows scaled to length 1 in float32. A zero row, or one with NaN or infinity, becomes zeros."""
    x_BD = x_BD.to(torch.float32)
    largest_B1 = x_BD.abs().amax(1, keepdim=True)
    usable_B1 = (largest_B1 > 0) & largest_B1.isfinite()
    # Scaled by the largest entry first: squares of very large or very small entries leave the range of float32.
    x_BD = torch.where(usable_B1, x_BD / largest_B1, 0.0)
    length_B1 = x_BD.square().sum(1, keepdim=True).sqrt()
    return torch.where(usable_B1, x_BD / length_B1, 0.0)


def order_keys(similarity: Tensor, age: Tensor) -> Tensor:
    """Pack float32 similarity and age (0 = oldest, below 2**32) into int64 that sorts by similarity, then by newness."""
    bits = (similarity + 0.0).view(torch.int32).long()  # + 0.0: minus zero equals zero
    return ((bits ^ ((bits >> 63) & _MAGNITUDE)) << 32) | age


def similarity_of(key: Tensor) -> Tensor:
    """Return the float32 similarity packed in order keys; 0 for ``NOTHING``."""
    high = torch.where(key == NOTHING, 0, key >> 32)
    return (high ^ ((high >> 63) & _MAGNITUDE)).to(torch.int32).view(torch.float32)


def age_of(key: Tensor) -> Tensor:
    """Return the age packed in order keys."""
    return key & _LOW


def best(key_BM: Tensor, k: int) -> Tensor:
    """Return the ``k`` largest order keys per row, largest first; ``NOTHING`` where there are fewer."""
    missing = k - key_BM.shape[1]
    if missing > 0:
        key_BM = torch.nn.functional.pad(key_BM, (0, missing), value=NOTHING)
    if key_BM.is_cuda:
        return key_BM.topk(k, dim=1).values
    # numpy partitions and sorts with vector instructions: about five times faster than torch.topk on the CPU.
    keys = key_BM.numpy()
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return torch.from_numpy(np.sort(keys, axis=1)).flip(1)


def similarities(q_BD: Tensor, rows_RD: Tensor, index_BM: Tensor, scratch: ReadBuffer | None = None) -> Tensor:
    """Return the dot products [B, M] of each query with the rows ``index_BM``, each summed alone and in the same order.

    A matrix product would be faster, but its rounding depends on the shapes.
    """
    (B, M), D = index_BM.shape, rows_RD.shape[1]
    out_BM = q_BD.new_empty((B, M))
    limit = _SCRATCH_BYTES[q_BD.device.type]
    columns = max(1, min(M, limit // (4 * D)))
    step = max(1, limit // (4 * D * columns))
    for i in range(0, B, step):
        for j in range(0, M, columns):
            index_bm = index_BM[i : i + step, j : j + columns]
            shape = (index_bm.numel(), D)
            gathered = q_BD.new_empty(shape) if scratch is None else scratch.take("rows", shape, torch.float32)
            torch.index_select(rows_RD, 0, index_bm.flatten(), out=gathered)
            product_bmD = gathered.view(*index_bm.shape, D).mul_(q_BD[i : i + step, None])
            out_BM[i : i + step, j : j + columns] = product_bmD.sum(2)
    return out_BM


class KeyScan:
    """Keys of unit length in one block of memory, and the search over its first rows."""

    def __init__(self, capacity: int, dim: int, *, device: torch.device, coarse: str = "auto") -> None:
        padded = ring_rows(capacity)
        self.keys_RD = torch.zeros((padded, dim), dtype=torch.float32, device=device)
        half = half_type(coarse, dim, device)
        self.half_RD = None if half is None else torch.zeros((padded, dim), dtype=half, device=device)
        self._residual = torch.zeros((), device=device)  # the largest length that rounding took from a key
        self._scratch = ReadBuffer() if device.type == "cpu" else None
        self._paused = 0

    def put(self, position_B: Tensor, unit_BD: Tensor) -> None:
        """Store keys; positions are distinct."""
        self.keys_RD[position_B] = unit_BD
        if self.half_RD is not None and len(unit_BD):
            half_BD = unit_BD.to(self.half_RD.dtype)
            self.half_RD[position_B] = half_BD
            lost = (unit_BD - half_BD.float()).square().sum(1).amax().sqrt()
            self._residual.copy_(torch.maximum(self._residual, lost))

    def clear(self) -> None:
        """Forget the error bound of keys that are no longer searched."""
        self._residual.zero_()

    def bytes(self) -> int:
        """Return the bytes of the keys and of their copy in half precision."""
        return sum(t.numel() * t.element_size() for t in (self.keys_RD, self.half_RD) if t is not None)

    def nearest(self, q_BD: Tensor, k: int, *, rows: int, oldest: int = 0) -> Tensor:
        """Return order keys [B, k] of the ``k`` best of the first ``rows`` rows, best first; ``q_BD`` has unit rows.

        A row's age is ``(position - oldest) mod rows``.
        """
        out_Bk = torch.full((len(q_BD), k), NOTHING, device=q_BD.device)
        if rows == 0:
            return out_Bk
        if rows <= _FEW_ROWS if q_BD.device.type != "cpu" else q_BD.numel() * rows <= _FEW_PRODUCTS:
            position_1R = torch.arange(rows, device=q_BD.device)[None]
            all_BR = torch.ones(len(q_BD), rows, dtype=torch.bool, device=q_BD.device)
            return self.rank(q_BD, position_1R.expand_as(all_BR), all_BR, k, rows=rows, oldest=oldest)
        # A query without a direction is equally similar to all rows; comparing them all would take longest of all.
        aimed_B = (q_BD != 0).any(1)
        newest_k = torch.arange(rows - 1, max(rows - 1 - k, -1), -1, device=q_BD.device)
        out_Bk[~aimed_B, : len(newest_k)] = order_keys(torch.zeros(len(newest_k), device=q_BD.device), newest_k)
        todo_B = aimed_B.nonzero()[:, 0]
        block = _BLOCK[q_BD.device.type]
        for start in range(0, len(todo_B), block):
            part_b = todo_B[start : start + block]
            half = self.half_RD is not None and self._paused == 0
            self._paused = max(0, self._paused - 1)
            out_Bk[part_b] = self._block(q_BD[part_b], k, rows, oldest, half=half)
        return out_Bk

    def rank(self, q_BD: Tensor, position_BM: Tensor, valid_BM: Tensor, k: int, *, rows: int, oldest: int) -> Tensor:
        """Return order keys [B, k] of the best among candidates that are distinct, best first."""
        similarity_BM = similarities(q_BD, self.keys_RD, position_BM, self._scratch)
        key_BM = order_keys(similarity_BM, (position_BM - oldest) % max(rows, 1))
        return best(key_BM.masked_fill_(~valid_BM, NOTHING), k)

    def _block(self, q_bD: Tensor, k: int, rows: int, oldest: int, *, half: bool) -> Tensor:
        position_bM, valid_bM, floor_b, complete_b = self._candidates(q_bD, k, rows, half=half)
        key_bk = self.rank(q_bD, position_bM, valid_bM, k, rows=rows, oldest=oldest)
        open_b = (~complete_b).nonzero()[:, 0]
        if len(open_b) == 0:
            return key_bk
        if half:
            if len(open_b) > _CROWDED_SHARE * len(q_bD):
                self._paused = _PAUSE
            key_bk[open_b] = self._block(q_bD[open_b], k, rows, oldest, half=False)
        else:
            for start in range(0, len(open_b), _CROWDED_BLOCK):
                few_b = open_b[start : start + _CROWDED_BLOCK]
                key_bk[few_b] = self._crowded(q_bD[few_b], floor_b[few_b], k, rows, oldest)
        return key_bk

    def _candidates(self, q_bD: Tensor, k: int, rows: int, *, half: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return positions, which of them count, the score that a row needs, and whether all such rows are among them.

        Let a be the k-th best coarse score and e the bound of a coarse score's error. k rows have an exact similarity of at
        least a - e, so each row of the exact top k has, too, and a coarse score of at least a - 2e: the floor.
        """
        wanted = k + _SPARE + k // 2  # more than k, for the rows between the floor and a
        left_out_b = q_bD.new_full((len(q_bD),), -torch.inf)
        values, positions = [], []
        for start, count in _tiles(rows, q_bD.device):
            width = _group_width(count, wanted)
            score_bn = self._scores(q_bD, start, math.ceil(count / width) * width, half=half)
            score_bn[:, count:] = -torch.inf
            parts = torch.split(score_bn, _SELECT[q_bD.device.type])
            picked = [self._best_of_tile(part_bn, width, wanted) for part_bn in parts]
            value_bm, position_bm, cut_b = (torch.cat(part) for part in zip(*picked, strict=True))
            left_out_b = torch.maximum(left_out_b, cut_b)
            values.append(value_bm)
            positions.append(position_bm + start)
        value_bm, position_bm = torch.cat(values, dim=1), torch.cat(positions, dim=1)
        floor_b = self._floor(q_bD, _kth(value_bm, k), half=half)
        above_bm = value_bm >= floor_b[:, None]
        pick_bm = _largest(value_bm, int(above_bm.sum(1).max()))
        valid_bm = value_bm.gather(1, pick_bm) > -torch.inf
        position_bm = torch.where(valid_bm, position_bm.gather(1, pick_bm), 0)
        return position_bm, valid_bm, floor_b, (left_out_b < floor_b) | left_out_b.isneginf()

    def _best_of_tile(self, score_bn: Tensor, width: int, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return value and column of the ``wanted`` best scores of each row, and a bound of all others.

        Columns i, i + G, i + 2 G, ... form group i, so that the maximum of groups is one of whole vectors. The best ``wanted``
        columns are members of the ``wanted`` groups of highest maximum.

        Scores in half precision are compared as 16-bit integers on the CPU, several times faster. That is their order as long
        as they are positive; the bound is then at least 0, so that a floor that is not positive counts as not complete.
        """
        dtype = score_bn.dtype
        if dtype.itemsize == 2 and not score_bn.is_cuda:
            score_bn = score_bn.view(torch.int16)
        groups = score_bn.shape[1] // width
        column_bm: Tensor | None = None
        cut_b = torch.full((len(score_bn),), -torch.inf, device=score_bn.device)
        if groups > wanted:
            most_bG = score_bn.view(-1, width, groups).amax(1)
            group_bg = _largest(most_bG, wanted)
            cut_b = _bound(most_bG.gather(1, group_bg).amin(1), dtype)
            member_W1 = torch.arange(width, device=score_bn.device)[:, None] * groups
            column_bm = self._take("column", (len(score_bn), width * wanted), torch.int64, score_bn.device)
            torch.add(group_bg[:, None], member_W1, out=column_bm.view(-1, width, wanted))
            score_bn = score_bn.gather(1, column_bm)
        pick_bm = _largest(score_bn, wanted)
        value_bm = score_bn.gather(1, pick_bm)
        if score_bn.shape[1] > wanted:
            cut_b = torch.maximum(cut_b, _bound(value_bm.amin(1), dtype))
        column_bm = pick_bm if column_bm is None else column_bm.gather(1, pick_bm)
        return value_bm.view(dtype).float(), column_bm, cut_b

    def _take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self._scratch is None:
            return torch.empty(shape, dtype=dtype, device=device)
        return self._scratch.take(name, shape, dtype)

    def _crowded(self, q_bD: Tensor, floor_b: Tensor, k: int, rows: int, oldest: int) -> Tensor:
        """Rank every row above the floor, however many: where many rows are equally similar, as repeated rows are."""
        key_bk = torch.full((len(q_bD), k), NOTHING, device=q_bD.device)
        for start, count in _tiles(rows, q_bD.device):
            score_bn = self._scores(q_bD, start, count, half=False)
            above_b = (score_bn >= floor_b[:, None]).sum(1)
            most = int(above_b.max())
            if most == 0:
                continue
            index_bm = _largest(score_bn, most)
            valid_bm = score_bn.gather(1, index_bm) >= floor_b[:, None]
            found_bk = self.rank(q_bD, index_bm + start, valid_bm, k, rows=rows, oldest=oldest)
            key_bk = best(torch.cat([key_bk, found_bk], dim=1), k)
        return key_bk

    def _scores(self, q_bD: Tensor, start: int, count: int, *, half: bool) -> Tensor:
        keys = self.half_RD if half and self.half_RD is not None else self.keys_RD
        shape = (len(q_bD), count)
        out = self._take("score", shape, keys.dtype, keys.device)
        return torch.mm(q_bD.to(keys.dtype), keys[start : start + count].T, out=out)

    def _floor(self, q_bD: Tensor, kth_b: Tensor, *, half: bool) -> Tensor:
        """Return the k-th coarse score less twice the bound of its error (Cauchy-Schwarz on what rounding took away)."""
        summing = q_bD.shape[1] * 2.0**-23
        if half and self.half_RD is not None:
            number = torch.finfo(self.half_RD.dtype)
            lost_b = (q_bD - q_bD.to(self.half_RD.dtype).float()).square().sum(1).sqrt()
            # Scores are stored in half precision; on a GPU partial sums may be, too. Subnormal entries may count as zero.
            stored_b = number.eps / 2 * (4 if q_bD.is_cuda else 1) * kth_b.abs()
            flushed = 2 * number.smallest_normal * math.sqrt(q_bD.shape[1])
            error_b = self._residual + lost_b + stored_b + flushed + summing
        elif torch.get_float32_matmul_precision() != "highest":
            error_b = torch.full_like(kth_b, 2.0**-7 + summing)  # the user allows bfloat16 in float32 products
        else:
            error_b = torch.full_like(kth_b, summing)
        return kth_b - 2.02 * error_b


def half_type(coarse: str, dim: int, device: torch.device) -> torch.dtype | None:
    """Return the type of the coarse pass, None for float32. ``auto``: float16 on a GPU, bfloat16 on a CPU that gains by it."""
    if coarse not in COARSE:
        raise ConfigError(f"coarse={coarse!r}: allowed are {', '.join(map(repr, COARSE))}")
    if coarse != "auto":
        return None if coarse == "float32" else getattr(torch, coarse)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _bfloat16_gain(dim) > _WORTH_IT else None


@functools.cache
def _bfloat16_gain(dim: int) -> float:
    """Time a product in both types: processors with matrix units gain four times and more, others lose.

    The choice changes speed only, never a result.
    """
    best_s = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones((128, dim), dtype=dtype), torch.ones((8192, dim), dtype=dtype)
        times = []
        for _ in range(6):  # the least of them: other programs only ever add time
            begin = time.perf_counter()
            torch.mm(a, b.T)
            times.append(time.perf_counter() - begin)
        best_s[dtype] = min(times)
    return best_s[torch.float32] / best_s[torch.bfloat16]


def _group_width(count: int, wanted: int) -> int:
    """Return the power of two that makes both selections together cheapest; a member costs about three times a group."""
    return min(_WIDEST_GROUP, 1 << round(math.log2(max(1.0, count / (3 * wanted))) / 2))


def _largest(value_BN: Tensor, n: int) -> Tensor:
    """Return the positions of the ``n`` largest values per row, in no order."""
    if value_BN.shape[1] <= n:
        return torch.arange(value_BN.shape[1], device=value_BN.device).expand(value_BN.shape)
    if value_BN.is_cuda:
        return value_BN.topk(n, dim=1, sorted=False).indices
    if value_BN.dtype == torch.int16:
        # Value and position in one number: numpy partitions numbers faster than their positions.
        packed_BN = (value_BN.int() << 16) | torch.arange(value_BN.shape[1], dtype=torch.int32)
        packed_Bn = np.partition(packed_BN.numpy(), -n, axis=1)[:, -n:]
        return torch.from_numpy(packed_Bn).bitwise_and(0xFFFF).long()
    return torch.from_numpy(np.argpartition(value_BN.numpy(), -n, axis=1)[:, -n:])


def _bound(smallest_b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what no score that was left out exceeds, given the smallest one that was not."""
    bound_b = smallest_b.view(dtype).float()
    return bound_b.clamp_min(0) if smallest_b.dtype == torch.int16 else bound_b


def _tiles(rows: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Cut rows into parts of about equal size, each starting where a group may start; yield start and number."""
    parts = max(1, math.ceil(rows / _TILE_ROWS[device.type]))
    step = ring_rows(math.ceil(rows / parts))
    for start in range(0, rows, max(step, 1)):
        yield start, min(step, rows - start)


def _kth(value_BN: Tensor, k: int) -> Tensor:
    """Return the k-th largest value per row, minus infinity where there are fewer."""
    if value_BN.shape[1] < k:
        return value_BN.new_full((len(value_BN),), -torch.inf)
    if value_BN.is_cuda:
        return value_BN.topk(k, dim=1).values[:, -1]
    return torch.from_numpy(np.partition(value_BN.numpy(), -k, axis=1)[:, -k])
