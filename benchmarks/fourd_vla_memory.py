"""Claim: over 100,000 frames of 16 streams neither bank nor snapshot grows by a byte, and the process by less than 5 %.

python -m benchmarks.fourd_vla_memory [--frames 100000]
"""

from __future__ import annotations

import argparse
import gc
import sys

import numpy as np
import psutil
import pyarrow as pa

from benchmarks import machine
from connectors.records import TIME_TYPE
from operators.base import Context
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Given
from operators.fourd_vla.schemas import FEATURE

STREAMS, WIDTH, PER_BATCH = 16, 64, 32


def rows(start: int, rng: np.random.Generator) -> pa.RecordBatch:
    """Return the next frames of all streams."""
    count = STREAMS * PER_BATCH
    times = np.repeat(np.arange(start, start + PER_BATCH), STREAMS)
    values = rng.normal(size=count * WIDTH).astype(np.float32)
    columns = [
        pa.array([f"camera{s}" for s in range(STREAMS)] * PER_BATCH),
        pa.array(times, pa.int64()),
        pa.array(times * 100_000).view(TIME_TYPE),
        pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * WIDTH, pa.int32()), pa.array(values)),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURE)


def main() -> int:
    """Measure, print, write the result; 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    arguments = parser.parse_args()
    made = FourDVLAOperator(FourDVLAOptions(features=Given(size=WIDTH), max_streams=STREAMS), Context())
    rng, process = np.random.default_rng(0), psutil.Process()
    batches = -(-arguments.frames // (STREAMS * PER_BATCH))
    seen: list[dict[str, float]] = []
    for number in range(batches):
        made.process(rows(number * PER_BATCH, rng))
        if number + 1 in (batches // 10, batches // 2, batches):
            gc.collect()
            frames = (number + 1) * STREAMS * PER_BATCH
            sizes = {
                "bank": made.metrics()["bank_bytes"],
                "snapshot": made.snapshot().bytes(),
                "resident": process.memory_info().rss,
            }
            seen.append({"frames": frames, **{f"{name}_bytes": float(size) for name, size in sizes.items()}})
            print(seen[-1], flush=True)
    first, last = seen[0], seen[-1]
    flat = all(first[f"{name}_bytes"] == last[f"{name}_bytes"] for name in ("bank", "snapshot"))
    holds = flat and last["resident_bytes"] < 1.05 * first["resident_bytes"]
    print(f"{'holds' if holds else 'DOES NOT HOLD'}; {machine.write('fourd_vla_memory', {'seen': seen, 'holds': holds})}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
