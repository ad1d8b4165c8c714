"""Claim: one core gives final states of 50,000 samples/s over 100 streams at the size of the pump data, a window apart; and
after a prompt 32 windows are segmented again in a third of the time of the released procedure, window by window.

The released procedure is ``memprompttss_released``: its modules with PyTorch's own layers, encoder and decoder run again for
every window. Both have the same weights and must give the same logits. Throughput is the whole operator: admission, windows,
votes, segments, Arrow rows out; banks of 0 and 32 prompts. Times are of the processor, one thread, so that a busy machine does
not count.

    python -m benchmarks.memprompttss_speed [--streams 100] [--seconds 20]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import machine
from benchmarks.memprompttss_released import Perseus, run_released
from connectors import records
from models.memprompttss.checkpoint import save_network
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.model import MemPromptTSS
from operators.base import Context, Output
from operators.memprompttss import MemPromptTSSOperator, MemPromptTSSOptions
from operators.memprompttss.schemas import PROMPT

PUMP = MemPromptTSSConfig(channels=9, classes=43)
RATE_US = 10_000


def main() -> int:
    """Run everything; print and write the figures. Return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="of processor time for each throughput")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MemPromptTSS(PUMP).eval().requires_grad_(False)
    result: dict[str, Any] = {"streams": given.streams, "parameters": sum(p.numel() for p in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pump.safetensors"
        save_network(model, file)
        for name, stride, prompts in (("window_apart", 256, 0), ("window_apart_32_prompts", 256, 32), ("quarter", 64, 0)):
            result[name] = throughput(file, given.streams, stride, prompts, given.seconds)
            print(f"{name}: {result[name]:,.0f} samples/s", flush=True)
    result |= again(model)
    print(f"32 windows again: {result['again_ms']:.0f} ms, released {result['released_ms']:.0f} ms", flush=True)
    print(machine.write("memprompttss_speed", result))
    return int(result["window_apart"] < 50_000 or result["again_ms"] * 3 > result["released_ms"])


def samples(streams: int, first: int, count: int, rng: np.random.Generator) -> pa.RecordBatch:
    """Return ``count`` samples of each stream, in turn."""
    number = np.repeat(np.arange(first, first + count), streams)
    names = pa.array([f"pump{s}" for s in range(streams)]).take(pa.array(np.tile(np.arange(streams), count)))
    flat = pa.array(rng.normal(size=len(number) * PUMP.channels).astype(np.float32))
    values = pa.ListArray.from_arrays(pa.array(np.arange(len(number) + 1, dtype=np.int32) * PUMP.channels), flat)
    columns = [names, pa.array(number), pa.array(number * RATE_US).cast(records.TIME_TYPE), values]
    return pa.RecordBatch.from_arrays([*columns, pa.nulls(len(number), pa.string())], schema=records.SAMPLE)


def throughput(file: Path, streams: int, stride: int, prompts: int, seconds: float) -> float:
    """Return samples with a final state per second of processor time, after a first window."""
    options = MemPromptTSSOptions(
        checkpoint=str(file), stride=stride, max_streams=streams, history=512, capacity=64, bank_gib=8.0, provisional=False
    )
    operator, rng = MemPromptTSSOperator(options, Context(name="states")), np.random.default_rng(0)
    operator.process(samples(streams, 0, 512, rng))
    if prompts:
        rows = [
            {"stream_id": f"pump{s}", "sequence": n, "event_time": 0, "kind": "label", "state": n % 43, "prompt_id": f"{n}"}
            | {"at": (200 + 4 * n) * RATE_US}
            for s in range(streams)
            for n in range(prompts)
        ]
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in PROMPT]
        operator.control(pa.RecordBatch.from_arrays(columns, schema=PROMPT))
        operator.process(samples(streams, 512, 256, rng))
    first, done, spent = (768 if prompts else 512), 0, 0.0
    while spent < seconds:
        batch = samples(streams, first, 256, rng)
        began = time.process_time()
        out = operator.process(batch)
        spent += time.process_time() - began
        first += 256
        done += sum(one.batch.num_rows for one in out if isinstance(one, Output) and one.name == "states")
    return done / spent


def again(model: MemPromptTSS, windows: int = 32, repeats: int = 5) -> dict[str, float]:
    """Return what it takes to segment windows again after one prompt, with kept tokens and as released; and the difference."""
    config = model.config
    sizes = {"channels": 9, "classes": 43, "width": 128, "heads": 2, "encoder_layers": 3, "memory_layers": 2}
    released = Perseus(sizes | {"decoder_blocks": 6, "patch": 16, "patch_stride": 8}).eval().requires_grad_(False)
    released.load_state_dict(model.state_dict(), strict=False)
    x_BLC = torch.randn(1, (windows - 1) * 64 + 256, 9)
    out: dict[str, float] = {}
    with torch.inference_mode():
        x_WTC = x_BLC[0].unfold(0, 256, 64).transpose(1, 2)
        tokens = model.ts_encoder(x_WTC)
        of_W = torch.zeros(windows, dtype=torch.int64)
        for bank in (1, 8, 32):
            m_BND = torch.randn(1, bank, config.width)
            mine, theirs = [], []
            for _ in range(repeats):
                began = time.process_time()
                got = model.decode(tokens, m_BND, None, of_W)
                mine.append(time.process_time() - began)
                began = time.process_time()
                wanted = run_released(released, x_BLC, m_BND, 256, 64)[0]
                theirs.append(time.process_time() - began)
            suffix = "" if bank == 1 else f"_{bank}"
            out |= {f"again_ms{suffix}": 1e3 * min(mine), f"released_ms{suffix}": 1e3 * min(theirs)}
            out[f"difference{suffix}"] = float((got - wanted).abs().max())
    return out


if __name__ == "__main__":
    sys.exit(main())
