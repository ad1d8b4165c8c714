"""Speed of the operator ``prompttpp`` on one core: events scored with prediction, against the published procedure.

The published procedure is ours, written after its code (``models.prompttpp.official``: every probe a pass over all tokens of
the sequence, 500 proposals): neither that code nor EasyTPP is installed by the extra ``bench``. Rates are the best of several
batches, by the clock and by the processor's time of this process, since other programs may run.

    python -m benchmarks.prompttpp_speed
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import RESULTS, write
from models.prompttpp import checkpoint
from models.prompttpp.attnhp import PromptAttNHP
from models.prompttpp.config import TppConfig
from models.prompttpp.model import build_model
from models.prompttpp.official import OfficialBatch, official_thinning
from operators.base import Context
from operators.prompttpp import PromptTPPOperator, PromptTPPOptions
from operators.prompttpp.schemas import event_schema

TYPES = 22
GAP_S = 60.0
ROWS = 1024


def config(backbone: str) -> TppConfig:
    """Return the published sizes."""
    return TppConfig(backbone=backbone, types=TYPES, time_scale=GAP_S)  # type: ignore[arg-type]


def operator(backbone: str, folder: Path, **options: Any) -> PromptTPPOperator:
    """Return an operator over a random network."""
    path = folder / f"{backbone}.safetensors"
    checkpoint.save(build_model(config(backbone), seed=0), path)
    settings = {"learn": "off", "max_streams": 2048, "window": 128 if backbone == "attnhp" else 64, **options}
    return PromptTPPOperator(PromptTPPOptions(checkpoint=str(path), **settings), Context(name="speed"))


class Stream:
    """Endless events of many keys in time order, by batches."""

    def __init__(self, keys: int, seed: int = 0) -> None:
        self._rng, self._keys = np.random.default_rng(seed), keys
        self._sequence, self._now = 0, 1e9

    def batch(self, rows: int = ROWS) -> pa.RecordBatch:
        """Return the next rows: keys at random, each about once per ``GAP_S``."""
        gaps = self._rng.exponential(GAP_S / self._keys, rows)
        times = self._now + gaps.cumsum()
        self._now = float(times[-1])
        sequence = self._sequence + np.arange(rows)
        self._sequence += rows
        schema = event_schema("id")
        stamps = pa.array(np.rint(times * 1e6).astype(np.int64)).cast(schema.field("event_time").type)
        names = pa.array([f"key{number}" for number in self._rng.integers(0, self._keys, rows)])
        kinds = pa.array(self._rng.integers(0, TYPES, rows).astype(np.int32))
        return pa.RecordBatch.from_arrays([names, pa.array(sequence), stamps, kinds], schema=schema)


def rate(one: PromptTPPOperator, stream: Stream, batches: int, warm: int = 2) -> dict[str, float]:
    """Return events per second: best by the clock, best by processor time."""
    for _ in range(warm):
        one.process(stream.batch())
    clock, processor = [], []
    for _ in range(batches):
        rows = stream.batch()
        began, used = time.perf_counter(), time.process_time()
        one.process(rows)
        clock.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {"by_clock": round(ROWS / min(clock)), "by_processor_time": round(ROWS / min(processor))}


def published(length: int, draws: int) -> dict[str, float]:
    """Return predicted positions per second of the published procedure for one sequence of this length."""
    model = build_model(config("attnhp"), seed=0)
    assert isinstance(model, PromptAttNHP)
    rng = np.random.default_rng(0)
    gap = torch.from_numpy(np.concatenate([[0.0], rng.exponential(1.0, length - 1)]).astype(np.float32))[None]
    kind = torch.from_numpy(rng.integers(0, TYPES, (1, length)))
    real = torch.ones(1, length, dtype=torch.bool)
    batch = OfficialBatch(gap.cumsum(1), gap, kind, real, torch.ones(1, length, length, dtype=torch.bool).triu())
    exp = torch.from_numpy(rng.exponential(1.0, (1, length - 1, draws)).astype(np.float32))
    uniform = torch.rand(1, length - 1, 1, draws)
    began, used = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        official_thinning(model, batch, "official", unit_exp_BLX=exp, uniform_BLVX=uniform)
    positions = length - 1
    return {
        "by_clock": round(positions / (time.perf_counter() - began), 2),
        "by_processor_time": round(positions / (time.process_time() - used), 2),
    }


def main() -> None:
    """Run and write results/prompttpp_speed.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--keys", type=int, nargs="*", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--slots", type=int, default=20_000)
    parser.add_argument("--longer", type=int, default=40, help="batches between the two measurements of history")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backbone in ("s2p2", "nhp", "attnhp"):
            one = operator(backbone, folder)
            fewer = 1 if backbone == "attnhp" else arguments.batches
            result[f"{backbone}: scored and predicted"] = rate(one, Stream(1000), fewer, warm=min(2, fewer))
            result[f"{backbone}: bytes per key"] = round(one.metrics()["bank_bytes"] / 2048)
            print(backbone, result[f"{backbone}: scored and predicted"], flush=True)
        scoring = operator("s2p2", folder, predict=False)
        result["s2p2: scored only"] = rate(scoring, Stream(1000), arguments.batches)
        learning = operator("s2p2", folder, learn="prompts")
        result["s2p2: scored, predicted, prompts learned"] = rate(learning, Stream(1000), arguments.batches)
        long = operator("s2p2", folder)
        few = Stream(64)
        early = rate(long, few, arguments.batches)
        for _ in range(arguments.longer):
            long.process(few.batch())
        later = rate(long, few, arguments.batches, warm=0)
        events = [int(16 * (2 + arguments.batches)), int(16 * (2 + 2 * arguments.batches + arguments.longer))]
        result[f"s2p2, 64 keys: histories of {events[0]} and of {events[1]} events"] = [early, later]
        print(events, early, later, flush=True)
        for keys in arguments.keys:
            one = operator("s2p2", folder, max_streams=arguments.slots)
            found = rate(one, Stream(keys), arguments.batches, warm=2 + arguments.slots // ROWS)
            result[f"s2p2, {arguments.slots} slots: events of {keys} keys"] = found | {"evictions": one.metrics()["evictions"]}
            print(keys, result[f"s2p2, {arguments.slots} slots: events of {keys} keys"], flush=True)
    result["published procedure, length 100, 500 proposals: positions"] = published(100, 500)
    print(result["published procedure, length 100, 500 proposals: positions"], flush=True)
    write("prompttpp_speed", {"events_per_second": result}, folder=arguments.out)


if __name__ == "__main__":
    main()
