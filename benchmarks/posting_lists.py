"""Neighbors beyond memory: recall, time and bytes of posting lists on one core: ``python -m benchmarks.posting_lists``.

Rows go to lists on disk; queries read the lists nearest to them. Recall@10 is against the exact ring, which holds all rows in
memory. The files are small enough to stay in the system's page cache, so that the figures are those of the processor: on a disk
each list read costs one access of up to 48 KiB more.
"""

# N rows, D dim

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time

import torch

from benchmarks import machine
from operators.banks import PostingLists, PostingRules, RowRing

DIM, K, QUERIES, BLOCK = 64, 10, 512, 512
CLUSTERS, SPREAD = 500, 0.5
LISTS = (4, 16, 64, 256)
NEEDED = 0.9  # recall@10 on clustered rows at the default rules


def rows(kind: str, number: int, generator: torch.Generator) -> torch.Tensor:
    """Return rows of one kind."""
    rows_ND = torch.randn(number, DIM, generator=generator)
    if kind == "clusters":
        center_CD = torch.randn(CLUSTERS, DIM, generator=torch.Generator().manual_seed(1))
        rows_ND = center_CD[torch.randint(CLUSTERS, (number,), generator=generator)] + SPREAD * rows_ND
    return rows_ND


def case(kind: str, number: int) -> dict[str, object]:
    """Fill a bank and a ring with the same rows; return what each number of lists costs and finds."""
    generator = torch.Generator().manual_seed(0)
    rows_ND, q_QD = rows(kind, number, generator), rows(kind, QUERIES, generator)
    values_NV = torch.zeros(number, 2)
    ring = RowRing(number, DIM)
    ring.write(rows_ND, values_NV)
    exact_Qk = ring.search(q_QD, K).sequence_Bk
    with tempfile.TemporaryDirectory() as folder:
        bank = PostingLists(folder, DIM, rules=PostingRules(slice_rows=32_768))
        begin = time.process_time()
        for start in range(0, number, BLOCK):
            bank.write(rows_ND[start : start + BLOCK], values_NV[start : start + BLOCK])
        add_us = (time.process_time() - begin) / number * 1e6
        size = bank.bytes()
        searches = []
        for lists in LISTS:
            bank.rules = dataclasses.replace(bank.rules, lists_per_query=lists)
            begin = time.process_time()
            found_Qk = bank.search(q_QD, K).sequence_Bk
            search_us = (time.process_time() - begin) / QUERIES * 1e6
            recall = (found_Qk[:, :, None] == exact_Qk[:, None, :]).any(1).float().mean()
            searches.append({"lists_per_query": lists, "recall": round(float(recall), 4), "search_us": round(search_us, 1)})
            print(f"  {lists:4} lists per query: recall@{K} {recall:.3f}, {search_us / 1e3:.2f} ms per query", flush=True)
    row_bytes = 4 * (DIM + 2)
    memory, disk = size["device"] / number, size["disk"] / number
    print(f"  {kind}, {number} rows of {row_bytes} bytes, {add_us:.0f} us to add one")
    print(f"    bytes per row: {memory:.0f} in memory, {disk:.0f} on disk", flush=True)
    return {
        "data": kind,
        "rows": number,
        "add_us": round(add_us, 1),
        "bytes": size,
        "row_bytes": row_bytes,
        "searches": searches,
    }


@torch.inference_mode()
def main() -> int:
    """Print and record all figures; fail where clustered rows are not found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case(kind, arguments.rows) for kind in ("clusters", "gaussian")]
    at_default = [s["recall"] for s in cases[0]["searches"] if s["lists_per_query"] == PostingRules().lists_per_query]
    print(machine.write("posting_lists", {"dim": DIM, "k": K, "threads": 1, "needed_recall": NEEDED, "cases": cases}))
    return 0 if min(at_default) >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
