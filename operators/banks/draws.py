"""Random numbers for banks: a counter-based generator (SplitMix64's finalizer) in int64 tensor operations.

A number is a pure function of (seed, step, purpose, index). There is no generator state, so a draw cannot depend on what
else stands in the batch, is the same on every device, and a snapshot needs the seed and the step only.
"""

# B streams of a batch, M numbers of a stretch of the random sequence

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Sampler", "random_numbers", "sample_without_replacement", "stream_seed"]


_ALL = (1 << 64) - 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# Constants of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), as two's complement.
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


class Sampler(Protocol):
    """Draws positions. Banks take one as an argument so that a test can hand in recorded draws."""

    def __call__(self, fill_B: Tensor, k: int, *, seed_B: Tensor, step_B: Tensor, purpose: int) -> Tensor:
        """Return positions [B, k] of which the first m are a uniform sample of m rows, for every m up to ``fill_B``."""
        ...


def stream_seed(seed: int, *names: str) -> int:
    """Return the int64 seed of one stream (and bank) from the user's ``seed`` and the names, equal on all machines."""
    text = "\x00".join([str(seed), *names]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without dragging the sign along: int64 tensors have no unsigned shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def random_numbers(seed_B: Tensor, step_B: Tensor, purpose: int, size: int) -> Tensor:
    """Return int64 [B, size], uniform over 0..2**63-1: the first ``size`` numbers of an endless sequence per stream.

    ``purpose`` (a small int) keeps the draws of one step apart from each other.
    """
    base_B = _mix(_mix(seed_B + _signed((purpose + 1) * _MIX_1 & _ALL)) + step_B * _GOLDEN)
    index_M = torch.arange(1, size + 1, device=seed_B.device)
    return _shift(_mix(base_B[:, None] + index_M * _GOLDEN), 1)


def sample_without_replacement(
    fill_B: Tensor, k: int, *, seed_B: Tensor, step_B: Tensor, purpose: int, known: tuple[int, int] | None = None
) -> Tensor:
    """Draw ``k`` distinct positions below ``fill_B`` per stream, uniformly, in O(k) work rather than O(fill).

    The draw is *the first k distinct values of an endless sequence of uniform positions*, which is sampling without
    replacement to the letter. How long a stretch of the sequence gets computed at once cannot change the result. Returns int64
    [B, k]; the first m columns are a uniform sample of m. Where a stream has fewer than ``k`` rows, the columns from
    ``fill_B`` on are 0; the caller masks them. ``known``: the least and the largest fill as the host knows them; then it does
    not look at the device, and computes a stretch that is too short once in 2**64 draws.
    """
    need_B = fill_B.clamp_max(k)
    if known is not None:
        least, most = known
        if k == 0 or not most:
            return fill_B.new_zeros((fill_B.shape[0], k))
        worst = min(max(k, least, 1), most)
        stretch = max(_certain_tries(fill, min(k, fill)) for fill in (max(least, 1), worst, most))
    else:
        fills = fill_B.tolist()
        if k == 0 or not any(fills):
            return fill_B.new_zeros((len(fills), k))
        stretch = max(_expected_tries(fill, min(k, fill)) for fill in fills if fill)
    while True:
        value_BM = random_numbers(seed_B, step_B, purpose, stretch) % fill_B.clamp_min(1)[:, None]
        # A stable sort puts equal values side by side, the earliest first.
        sorted_BM, order_BM = value_BM.sort(dim=1, stable=True)
        first_BM = torch.ones_like(sorted_BM, dtype=torch.bool)
        first_BM[:, 1:] = sorted_BM[:, 1:] != sorted_BM[:, :-1]
        rank_BM = torch.zeros_like(order_BM).scatter_(1, order_BM, first_BM.long())
        fresh_BM = rank_BM.bool()
        rank_BM = rank_BM.cumsum(1)
        if known is not None or bool((rank_BM[:, -1] >= need_B).all()):
            break
        stretch *= 2
    # Column k collects what is not wanted: repeats, and values after the k-th distinct one.
    column_BM = torch.where(fresh_BM, rank_BM - 1, k).clamp_max(k)
    return fill_B.new_zeros((fill_B.shape[0], k + 1)).scatter_(1, column_BM, value_BM)[:, :k]


def _expected_tries(fill: int, k: int) -> int:
    """Return about how many uniform draws from ``fill`` values give ``k`` distinct ones, plus a margin (coupon collector)."""
    mean = fill * (math.log(fill) + 1 if k == fill else math.log(fill / (fill - k)))
    return int(1.1 * mean) + 32


def _certain_tries(fill: int, k: int) -> int:
    """Return how many uniform draws from ``fill`` values give ``k`` distinct ones but once in 2**64 times.

    Union bound: some ``k - 1`` values hold all draws with a probability of at most C(fill, k - 1) ((k - 1) / fill) ** tries.
    """
    if k <= 1:
        return k
    ways = math.lgamma(fill + 1) - math.lgamma(k) - math.lgamma(fill - k + 2)
    return math.ceil((ways + 64 * math.log(2)) / math.log(fill / (k - 1)))
