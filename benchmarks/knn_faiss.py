"""Neighbors for a stream that adds as often as it searches, ours against faiss, one core: ``python -m benchmarks.knn_faiss``.

A ring of the last C rows takes blocks of 512 rows and answers 512 queries after each. faiss has no ring, so each of its indexes
does what a user would do: Flat, IVF and LSH remove the oldest block by ``remove_ids``; HNSW cannot remove, so three graphs of
C/2 rows take turns, all are searched, and rows that are too old are left out of the result. IVF is trained once, before the
clock starts, on as many other rows of the same kind (``moved``: on rows of before a shift). faiss is handed rows of length 1,
ours scales them itself. Recall@k is against brute force on the last C rows. A rate is rows per second where each row is added
once and is a query once, in processor time of the one thread, so that other programs on the machine count little. Each figure
of faiss is set against the fastest of ours with at least its recall.
"""

# B rows of a block, C capacity, D dim, k neighbors

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from operators.banks import LshTable, RowRing, SignHash

try:
    import faiss
except ImportError:
    sys.exit("this benchmark compares with faiss, which is not installed: pip install 'streambank[bench]'")

BLOCK = 512
CLUSTERS, SPREAD = 500, 0.5
ARRAYS, SLOTS = 32, 32
TOLERANCE = 0.002  # recalls this close count as equal
USEFUL = 0.9  # a recall that one would use
KS = (10, 70)
KINDS = ("clusters", "moved", "gaussian")


class Engine(Protocol):
    """One index that holds the last rows of a stream."""

    name: str
    settings: tuple[int, ...]
    """Values of its search parameter, each measured; (0,) if it has none."""

    def add(self, rows_BD: Tensor) -> None: ...

    def search(self, q_BD: Tensor, k: int, setting: int) -> np.ndarray: ...


class Ring:
    """Our exact ring."""

    settings = (0,)

    def __init__(self, capacity: int, dim: int, coarse: str) -> None:
        self.name = f"RowRing ({coarse} pass)"
        self.ring = RowRing(capacity, dim, coarse=coarse)

    def add(self, rows_BD: Tensor) -> None:
        self.ring.write(rows_BD, torch.zeros(len(rows_BD), 2))

    def search(self, q_BD: Tensor, k: int, setting: int) -> np.ndarray:
        return self.ring.search(q_BD, k).sequence_Bk.numpy()


class Buckets:
    """Our hash table over the ring."""

    settings = (0,)

    def __init__(self, capacity: int, dim: int) -> None:
        bits = round(np.log2(capacity / 5))  # about five rows per bucket
        self.name = f"LshTable ({ARRAYS} x 2^{bits} x {SLOTS})"
        hash_ = SignHash(dim, ARRAYS, bits, 0, "cpu")
        self.table = LshTable(RowRing(capacity, dim, coarse="float32"), ARRAYS, bits, SLOTS, hash_)

    def add(self, rows_BD: Tensor) -> None:
        self.table.write(rows_BD, torch.zeros(len(rows_BD), 2))

    def search(self, q_BD: Tensor, k: int, setting: int) -> np.ndarray:
        return self.table.search(q_BD, k).sequence_Bk.numpy()


class Removing:
    """A faiss index that can remove: the oldest rows go before new ones come. Its ids count from the oldest row held."""

    def __init__(self, name: str, index: Any, capacity: int, settings: tuple[int, ...] = (0,), explicit: bool = False) -> None:
        self.name, self.index, self.capacity, self.settings, self.explicit = name, index, capacity, settings, explicit
        self.first = self.written = 0

    def add(self, rows_BD: Tensor) -> None:
        surplus = self.written + len(rows_BD) - self.first - self.capacity
        if surplus > 0:
            start = self.first if self.explicit else 0
            self.index.remove_ids(faiss.IDSelectorRange(start, start + surplus))
            self.first += surplus
        if self.explicit:
            self.index.add_with_ids(rows_BD.numpy(), np.arange(self.written, self.written + len(rows_BD)))
        else:
            self.index.add(rows_BD.numpy())
        self.written += len(rows_BD)

    def search(self, q_BD: Tensor, k: int, setting: int) -> np.ndarray:
        if self.explicit:
            self.index.nprobe = setting
        found = self.index.search(q_BD.numpy(), k)[1]
        return found if self.explicit else np.where(found >= 0, found + self.first, -1)


class Graphs:
    """HNSW graphs that take turns: rows go to the newest; with C/2 rows it is full, and the oldest of three is dropped."""

    settings = (32, 128)

    def __init__(self, capacity: int, dim: int) -> None:
        self.name, self.capacity, self.dim = "faiss HNSW (M=16)", capacity, dim
        self.parts: list[tuple[int, Any]] = []
        self.written = 0

    def add(self, rows_BD: Tensor) -> None:
        start = 0
        while start < len(rows_BD):
            if not self.parts or self.parts[-1][1].ntotal >= self.capacity // 2:
                graph = faiss.IndexHNSWFlat(self.dim, 16, faiss.METRIC_INNER_PRODUCT)
                self.parts = [*self.parts[-2:], (self.written, graph)]
            graph = self.parts[-1][1]
            stop = min(len(rows_BD), start + self.capacity // 2 - graph.ntotal)
            graph.add(rows_BD[start:stop].numpy())
            self.written += stop - start
            start = stop

    def search(self, q_BD: Tensor, k: int, setting: int) -> np.ndarray:
        scores, ids = [], []
        for first, graph in self.parts:
            graph.hnsw.efSearch = max(setting, k)
            score, found = graph.search(q_BD.numpy(), k)
            ids.append(found + first)
            scores.append(np.where((found >= 0) & (ids[-1] >= self.written - self.capacity), score, -np.inf))
        score, found = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
        return np.take_along_axis(found, np.argsort(-score, axis=1)[:, :k], axis=1)


class Stream:
    """Rows of one kind, of length 1. ``moved``: clusters around other centers than those that IVF was trained on."""

    def __init__(self, kind: str, dim: int) -> None:
        self.kind, self.dim = kind, dim
        self.generator = torch.Generator().manual_seed(0)
        self.center_CD = torch.randn(CLUSTERS, dim, generator=self.generator)

    def move(self) -> None:
        """Go to other centers, where the kind says so."""
        if self.kind == "moved":
            self.center_CD = torch.randn(CLUSTERS, self.dim, generator=self.generator)

    def rows(self, number: int) -> Tensor:
        rows_BD = torch.randn(number, self.dim, generator=self.generator)
        if self.kind != "gaussian":
            which_B = torch.randint(CLUSTERS, (number,), generator=self.generator)
            rows_BD = self.center_CD[which_B] + SPREAD * rows_BD
        return torch.nn.functional.normalize(rows_BD, dim=1)


def engines(capacity: int, dim: int, sample_BD: Tensor) -> Iterator[Callable[[], Engine]]:
    """Yield what makes each engine, so that only one is in memory."""
    yield lambda: Ring(capacity, dim, "auto")
    yield lambda: Ring(capacity, dim, "float32")
    yield lambda: Buckets(capacity, dim)
    yield lambda: Removing("faiss Flat", faiss.IndexFlatIP(dim), capacity)
    yield lambda: inverted(capacity, dim, sample_BD)
    yield lambda: Removing("faiss LSH (512 bits)", faiss.IndexLSH(dim, 512), capacity)
    yield lambda: Graphs(capacity, dim)


def inverted(capacity: int, dim: int, sample_BD: Tensor) -> Engine:
    """Return a trained IVF index of about 4 sqrt(C) lists."""
    lists = 2 ** round(np.log2(4 * capacity**0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(sample_BD.numpy())
    return Removing(f"faiss IVF ({lists} lists)", index, capacity, (1, 4, 16, 64), explicit=True)


def recall(found_Bk: np.ndarray, exact_Bk: np.ndarray) -> float:
    """Return the share of true neighbors that were found."""
    return float(np.mean([np.isin(exact, found).mean() for found, exact in zip(found_Bk, exact_Bk, strict=True)]))


def measure(engine: Engine, rows_ND: Tensor, queries: list[Tensor], exact: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Return recall, milliseconds and rate for each k and setting; ``rows_ND`` fills the engine first."""
    blocks = len(queries)
    fill = len(rows_ND) - blocks * BLOCK
    for start in range(0, fill, 8192):
        engine.add(rows_ND[start : min(start + 8192, fill)])
    adds: list[float] = []
    searches: dict[tuple[int, int], list[float]] = {(k, setting): [] for k in KS for setting in engine.settings}
    found = {}
    for block, q_BD in enumerate(queries):
        start = fill + block * BLOCK
        begin = time.process_time()
        engine.add(rows_ND[start : start + BLOCK])
        adds.append(time.process_time() - begin)
        for key in searches:
            begin = time.process_time()
            found[key] = engine.search(q_BD, *key)
            searches[key].append(time.process_time() - begin)
    results = []
    for (k, setting), times in searches.items():
        # Medians of the later blocks: the first one warms up.
        add_s, search_s = statistics.median(adds[1:]), statistics.median(times[1:])
        name = engine.name + (f" {setting}" if setting else "")
        results.append(
            {
                "engine": name,
                "k": k,
                "recall": round(recall(found[k, setting], exact[k]), 4),
                "add_us": round(add_s / BLOCK * 1e6, 2),
                "search_us": round(search_s / BLOCK * 1e6, 2),
                "rows_per_s": round(BLOCK / (add_s + search_s)),
            }
        )
    return results


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each result of faiss the best of ours with at least its recall, and the ratio of the rates."""
    lines = []
    for theirs in (r for r in results if r["engine"].startswith("faiss")):
        ours = [
            r
            for r in results
            if not r["engine"].startswith("faiss") and r["k"] == theirs["k"] and r["recall"] >= theirs["recall"] - TOLERANCE
        ]
        best = max(ours, key=lambda r: r["rows_per_s"])
        ratio = round(best["rows_per_s"] / theirs["rows_per_s"], 2)
        lines.append(
            {"faiss": theirs["engine"], "k": theirs["k"], "recall": theirs["recall"], "ours": best["engine"], "ratio": ratio}
        )
    return lines


def exact_ratios(cases: list[dict[str, Any]], coarse: str) -> dict[str, float]:
    """Return the least and the largest ratio of our exact ring to the exact index of faiss."""
    ratios = []
    for one in cases:
        rate = {(r["engine"], r["k"]): r["rows_per_s"] for r in one["results"]}
        ratios += [rate[f"RowRing ({coarse} pass)", k] / rate["faiss Flat", k] for k in KS]
    return {"min": round(min(ratios), 2), "max": round(max(ratios), 2)}


def case(kind: str, capacity: int, dim: int, blocks: int) -> dict[str, Any]:
    """Measure all engines on one kind of data."""
    stream = Stream(kind, dim)
    sample_BD = stream.rows(capacity)
    stream.move()
    rows_ND = stream.rows(capacity + blocks * BLOCK)
    queries = [stream.rows(BLOCK) for _ in range(blocks)]
    # The queries of the last block, against the rows that are there then.
    nearest = (queries[-1] @ rows_ND[-capacity:].T).topk(max(KS), dim=1).indices.numpy() + blocks * BLOCK
    exact = {k: nearest[:, :k] for k in KS}
    results: list[dict[str, Any]] = []
    print(f"\n{kind}, {capacity} rows, d={dim}", flush=True)
    for make in engines(capacity, dim, sample_BD):
        for line in measure(make(), rows_ND, queries, exact):
            results.append(line)
            print(
                f"  {line['engine']:28} k={line['k']:<3} recall {line['recall']:.3f}  add {line['add_us']:8.1f} us  "
                f"search {line['search_us']:8.1f} us  {line['rows_per_s']:8,} rows/s",
                flush=True,
            )
    comparison = compare(results)
    for line in comparison:
        ahead = "" if line["ratio"] >= 1 else "  FAISS IS AHEAD"
        at = f"recall {line['recall']:.3f}, k={line['k']}"
        print(f"    {at}: {line['ours']} / {line['faiss']} = {line['ratio']:.2f}{ahead}", flush=True)
    return {"data": kind, "capacity": capacity, "dim": dim, "results": results, "comparison": comparison}


@torch.inference_mode()
def main() -> int:
    """Print and record all rates; fail where an exact index of ours is slower than the exact one of faiss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8, help="blocks of adds and searches, the first one to warm up")
    parser.add_argument("--capacities", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    cases = [
        case(kind, capacity, dim, arguments.blocks)
        for capacity in arguments.capacities
        for dim in arguments.dims
        for kind in arguments.kinds
    ]
    lines = [line for one in cases for line in one["comparison"]]
    useful = [line for line in lines if line["recall"] >= USEFUL]
    behind = [line for line in lines if line["ratio"] < 1]
    behind_useful = [line for line in useful if line["ratio"] < 1]
    exact = {coarse: exact_ratios(cases, coarse) for coarse in ("auto", "float32")}
    print()
    for coarse, ratio in exact.items():
        print(f"exact against exact: RowRing ({coarse} pass) / faiss Flat = {ratio['min']:.2f} to {ratio['max']:.2f}")
    print(f"faiss is ahead at equal recall in {len(behind)} of {len(lines)} comparisons")
    names = ", ".join(sorted({line["faiss"] for line in behind_useful})) or "none"
    print(f"of the {len(useful)} at a recall of {USEFUL} and more, in {len(behind_useful)}: {names}")
    result = {
        "faiss": importlib.metadata.version("faiss-cpu"),
        "threads": 1,
        "block": BLOCK,
        "exact_ratio": exact,
        "comparisons": len(lines),
        "faiss_ahead": len(behind),
        "comparisons_at_useful_recall": len(useful),
        "faiss_ahead_at_useful_recall": len(behind_useful),
        "useful_recall": USEFUL,
        "cases": cases,
    }
    print(machine.write("knn_faiss", result))
    return 0 if exact["auto"]["min"] >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
