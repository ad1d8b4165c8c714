"""Figures: rows/s of hashing, writing and reading a sketch (70 arrays, 16 bits) on one core, at 64 and 512 numbers per row.

Beside the plain formulation in PyTorch, in the same run: a product, signs times powers of two, one ``index_add_`` of float32
rows, one gather. Plain counters stop at 2**24 and plain sums depend on their order, plain signs on the batch; the bank's are
exact. Both sides alternate; the best of the repetitions counts.

    python -m benchmarks.sketch_throughput [--rows 16384] [--batch 512] [--repeat 7]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import write
from operators.banks import SignHash, SketchBank

_ARRAYS, _BITS = 70, 16


class Plain:
    """The same sketch, as one would write it down."""

    def __init__(self, weights_KLD: Tensor) -> None:
        self.weights_DM = weights_KLD.flatten(0, 1).T.contiguous()
        self.powers_L = 2.0 ** torch.arange(_BITS)
        self.offset_K = torch.arange(_ARRAYS) << _BITS
        self.table = torch.zeros(_ARRAYS << _BITS, 4)

    def hash(self, x_BD: Tensor) -> Tensor:
        bits_BKL = (x_BD @ self.weights_DM > 0).view(-1, _ARRAYS, _BITS)
        return (bits_BKL.float() @ self.powers_L).long()

    def write(self, buckets_BK: Tensor, values_BV: Tensor) -> None:
        rows_B4 = torch.cat([torch.ones(len(values_BV), 1), values_BV, torch.zeros(len(values_BV), 1)], dim=1)
        index = (buckets_BK + self.offset_K).view(-1)
        self.table.index_add_(0, index, rows_B4.repeat_interleave(_ARRAYS, dim=0))

    def read(self, buckets_BK: Tensor) -> Tensor:
        return self.table[buckets_BK + self.offset_K]


def rate(step: Callable[[int], Any], rows: int, batch: int) -> float:
    """Return rows/s over all batches."""
    began = time.perf_counter()
    for start in range(0, rows, batch):
        step(start)
    return rows / (time.perf_counter() - began)


def measure(dim: int, rows: int, batch: int, repeat: int) -> dict[str, dict[str, float]]:
    """Return side → step → rows/s."""
    hash_ = SignHash(dim, _ARRAYS, _BITS, 0)
    bank, plain = SketchBank(_ARRAYS, _BITS, ("label", "base")), Plain(hash_.weights())
    draw = torch.Generator().manual_seed(1)
    # Clusters, so that buckets repeat as they do on real hidden vectors.
    centers = torch.randn(500, dim, generator=draw)
    x = centers[torch.randint(0, 500, (rows,), generator=draw)] + 0.3 * torch.randn(rows, dim, generator=draw)
    values = torch.rand(rows, 2, generator=draw)
    buckets = hash_.hash(x)
    agree = (plain.hash(x) == buckets).float().mean().item()
    if agree < 0.9999:
        raise SystemExit(f"only {agree:.2%} of the buckets agree with the plain ones")
    best: dict[str, dict[str, float]] = {"streambank": {}, "plain": {}}
    sides: list[tuple[str, Any]] = [("streambank", bank), ("plain", plain)]
    for _ in range(repeat):
        for name, side in sides:
            hasher = hash_ if name == "streambank" else plain
            steps: dict[str, Callable[[int], Any]] = {
                "hash": lambda i, h=hasher: h.hash(x[i : i + batch]),
                "write": lambda i, s=side: s.write(buckets[i : i + batch], values[i : i + batch]),
                "read": lambda i, s=side: s.read(buckets[i : i + batch]),
            }
            for step, run in steps.items():
                best[name][step] = max(best[name].get(step, 0.0), rate(run, rows, batch))
    for figures in best.values():
        # One impression: hashed once, read once, written once when its label comes.
        figures["hash, read and write"] = 1 / sum(1 / figures[step] for step in ("hash", "write", "read"))
    return best


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    print(f"{'d':>4} {'':22}{'streambank':>14}{'plain':>14}{'ratio':>8}   rows/s on one core")
    for dim in (64, 512):
        found = results[str(dim)] = measure(dim, options.rows, options.batch, options.repeat)
        for step, figure in found["streambank"].items():
            other = found["plain"][step]
            print(f"{dim:4} {step:22}{figure:14,.0f}{other:14,.0f}{figure / other:8.2f}")
    shape = {"arrays": _ARRAYS, "bits": _BITS, "bytes": SketchBank.bytes_needed(_ARRAYS, _BITS, 2)}
    print(write("sketch_throughput", {**shape, "batch": options.batch, "rows_per_s": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
