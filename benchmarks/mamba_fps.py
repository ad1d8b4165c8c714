"""Frames/s of the full-size MAMBA operator at 1, 4 and 16 streams, with a break-down by stage, on CPU and, if present, CUDA.

Random weights (the time does not depend on them) and frames of 1000 x 600 px. Banks are filled first, so that the memory step
runs at its steady cost. The time is that of ``MambaOperator.process``: decoded frames in, detection rows out.

    python -m benchmarks.mamba_fps [--streams 1,4,16] [--steps 1] [--devices cpu,cuda] [--levels instance,all]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import write
from connectors.records import FRAME, TIME_TYPE
from operators.banks.policies import append
from operators.base import Context
from operators.mamba.config import MambaOptions
from operators.mamba.operator import MambaOperator

_HEIGHT, _WIDTH = 600, 1000


def frames(streams: int, step: int, rng: np.random.Generator) -> pa.RecordBatch:
    """Make one frame per stream."""
    images = [rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8).tobytes() for _ in range(streams)]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"camera{i}" for i in range(streams)]),
            pa.array([step] * streams, pa.int64()),
            pa.array([step * 40_000] * streams, pa.int64()).cast(TIME_TYPE),
            pa.array(images, pa.binary()),
            pa.array(["raw_rgb8"] * streams),
            pa.array([_HEIGHT] * streams, pa.int32()),
            pa.array([_WIDTH] * streams, pa.int32()),
            pa.nulls(streams, pa.string()),
        ],
        schema=FRAME,
    )


def fill_banks(operator: MambaOperator, streams: int) -> None:
    """Fill every bank to its limit with random rows."""
    slots_B = torch.arange(streams, device=operator.context.device)
    for bank in operator.detector.banks:
        while int(bank.fill(slots_B).min()) < bank.capacity:
            rows = {
                key: torch.randn(streams, 1000, *spec.shape, device=operator.context.device) for key, spec in bank.specs.items()
            }
            bank.write(slots_B, rows, torch.full_like(slots_B, 1000), append)
    operator.detector.recount(slots_B)


class Stages:
    """Adds up the time spent in named methods. On CUDA each call waits for the device, so stages add up to the whole."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = device.type == "cuda"

    def watch(self, owner: Any, method: str, label: str) -> None:
        """Time every call of ``owner.method`` under ``label``."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            started = time.perf_counter()
            result = inner(*args, **kwargs)
            self._wait()
            self.seconds[label] += time.perf_counter() - started
            return result

        owner.__dict__[method] = timed

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def measure(device: torch.device, levels: str, streams: int, steps: int) -> dict[str, Any]:
    """Run ``steps`` frames of each stream; return frames/s and milliseconds per frame and stage."""
    options = MambaOptions(network={"pixel_level": levels == "all"}, max_streams=streams, bank_gib=64.0, max_length=20_000)
    operator = MambaOperator(options, Context(device=device))
    rng = np.random.default_rng(0)
    operator.process(frames(streams, 0, rng))
    fill_banks(operator, streams)
    if device.type == "cuda":
        operator.process(frames(streams, 1, rng))  # kernels are chosen at the first call of a size

    def run(first: int) -> float:
        batches = [frames(streams, first + step, rng) for step in range(steps)]
        started = time.perf_counter()
        for batch in batches:
            operator.process(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    # The figure on CUDA is that of a run in which nothing is waited for; on the CPU watching costs nothing.
    whole_s = run(2) if device.type == "cuda" else 0.0
    stages = Stages(device)
    model, detector = operator.detector.model, operator.detector
    stages.watch(model, "encode", "backbone")
    stages.watch(model, "neck", "neck")
    stages.watch(model, "propose", "rpn")
    stages.watch(model, "roi_features", "roi_align")
    stages.watch(model, "detect_padded", "detect")
    for bank in detector.banks:
        kind = "pixel" if bank.name == "pixel" else "instance"
        stages.watch(bank, "sample", f"{kind} bank read")
        stages.watch(bank, "write", f"{kind} bank write")
    for name, attention in [("instance attention", a) for a in model.head.attention] + [("pixel attention", model.pixel)]:
        if attention is not None:
            stages.watch(attention, "attend", name)
            stages.watch(attention, "project", name)
            stages.watch(attention, "query", name)
    watched_s = run(2 + steps)
    whole_s = whole_s or watched_s
    per_frame = streams * steps
    broken_down = {name: 1e3 * seconds / per_frame for name, seconds in stages.seconds.items()}
    broken_down["other (decode, resize, fc, rows)"] = 1e3 * watched_s / per_frame - sum(broken_down.values())
    return {
        "device": str(device),
        "levels": levels,
        "streams": streams,
        "frames_per_s": per_frame / whole_s,
        "ms_per_frame": 1e3 * whole_s / per_frame,
        "stages_ms_per_frame": broken_down,
        "bank_bytes": detector.bytes(),
        "device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def main() -> None:
    """Measure every combination, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--devices", default="cpu,cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--levels", default="instance,all")
    arguments = parser.parse_args()
    rows = []
    print(f"{'device':6} {'levels':9} {'streams':>7} {'frames/s':>9} {'ms/frame':>9} {'banks GB':>9}  stages (ms/frame)")
    for device in arguments.devices.split(","):
        for levels in arguments.levels.split(","):
            for streams in arguments.streams.split(","):
                row = measure(torch.device(device), levels, int(streams), arguments.steps)
                rows.append(row)
                parts = sorted(row["stages_ms_per_frame"].items(), key=lambda item: -item[1])
                text = ", ".join(f"{name} {ms:.1f}" for name, ms in parts)
                print(
                    f"{device:6} {levels:9} {streams:>7} {row['frames_per_s']:9.2f} {row['ms_per_frame']:9.1f} "
                    f"{row['bank_bytes'] / 1e9:9.2f}  {text}",
                    flush=True,
                )
    write("mamba_fps", {"frame": [_HEIGHT, _WIDTH], "steps": arguments.steps, "rows": rows})


if __name__ == "__main__":
    main()
