"""Claim: a clip and an answer cost the same after a minute and after a day of video, and memory on the device stays as it is;
against encoding the whole video for every question the advantage grows with the number of questions.

A random small model in the shape of the one in the package; features of frames are given. For each length (1 minute to 24
hours) the stream is encoded clip by clip into a BlockBank over device, host and files; reported are the processor time of the
last clips and of questions at the end, and the bytes per tier. To make a day take minutes, all but the last clips are copies of
memories that were encoded before, with indicators of their own: what is measured is a real bank of that length. The way without
memory encodes every clip of the video again for each question, then answers from as many tokens.

    python -m benchmarks.videostreaming_speed [--hours 24]
"""

# K clips, T frames of a clip, N tokens per frame, C width, M memory tokens, D width of a memory

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from models.films import SIDE
from models.videostreaming.encoding import Clip, encode_clips
from models.videostreaming.recipe import film_tokenizer
from models.videostreaming.selection import stored_indicator
from models.videostreaming.small import build_small
from operators.banks import BlockBank
from operators.videostreaming.answering import Answering, ClipQuestion, memory_of
from operators.videostreaming.rules import ClipCodec, clip_spec

LENGTHS_H = (1 / 60, 1.0, 6.0, 24.0)
REPEATS, ASKED = 30, (1, 10, 100)
SLACK = 1.5  # of the longest against the shortest video
DEVICE_CLIPS, HOST_CLIPS = 16, 64
QUESTION = "what colour was the ring?"


def processor_s(work: Callable[[], object], repeats: int) -> float:
    """Return the median processor seconds of one piece of work."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def measure(answering: Answering, hours: float, most_clips: int, folder: Path) -> dict[str, Any]:
    """Fill a bank with the clips of so many hours and measure at its end."""
    ready = answering.ready
    model, config = ready.model, ready.config
    clips = max(round(hours * 3600 / config.clip_seconds), 2)
    spec, codec = clip_spec(config.memory_tokens, model.width, model.dtype), ClipCodec(model.dtype)
    block = config.memory_tokens * model.width * 4 + 24
    bank = BlockBank(
        spec,
        slots=1,
        device_bytes=2 * most_clips * model.width * 4 + (1 << 20) + DEVICE_CLIPS * block,
        host_bytes=HOST_CLIPS * block,
        disk_bytes=int(1.25 * most_clips * (block + model.width * 4)) + (1 << 20),
        disk_folder=folder,
        codec=codec,
    )
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(config.frames_per_clip, 4, model.feature_width, generator=generator)
    with contextlib.closing(bank), torch.inference_mode():
        bank.open([0], [1])
        (one,) = encode_clips(model, [Clip(features, ready.time_ids(0, 8, first=True), None)])

        def append(memory: torch.Tensor, indicator: torch.Tensor, k: int) -> None:
            facts = torch.tensor([[[k * 8_000_000, k * 8_000_000 + 8_000_000, len(memory)]]])
            blocks = memory[None, None, None]
            bank.append([0], blocks, blocks, stored_indicator(indicator, config.similarity)[None, None, None], {"facts": facts})

        for k in range(clips - 1):
            append(one.memory_MD, torch.randn(model.width, generator=generator), k)

        def encode_next() -> None:
            with bank.reader(0) as reader:
                memory = memory_of(reader)
            (made,) = encode_clips(model, [Clip(features, ready.time_ids(8, 16, first=False), memory)])
            append(made.memory_MD, made.indicator_D, int(bank.count([0])[0]))

        def ask() -> None:
            with bank.reader(0) as reader:
                (answer,) = answering([ClipQuestion(QUESTION, 1)], [reader])
                assert answer.status == "ok"

        encode_next()
        ask()
        clip_s, answer_s = processor_s(encode_next, REPEATS), processor_s(ask, REPEATS)
        return {"hours": hours, "clips": clips, "clip_s": clip_s, "answer_s": answer_s, "bytes": bank.bytes()}


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="the longest video")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ready = build_small(film_tokenizer(), SIDE)
    ready.model.requires_grad_(False)
    answering = Answering(ready, 64, 4)
    lengths = [hours for hours in LENGTHS_H if hours <= arguments.hours]
    most = round(max(lengths) * 3600 / ready.config.clip_seconds) + 2 * REPEATS + 8
    rows = []
    heads = " ".join(f"{f'x at {n}':>9}" for n in ASKED)
    print(f"{'video':>8} {'clips':>7} {'ms a clip':>10} {'ms an answer':>13}  {heads}  device")
    for hours in lengths:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(answering, hours, most, Path(folder))
        # Without memory: every clip anew for each question, then the same answer. With it: every clip once.
        with_s = [row["clips"] * row["clip_s"] + n * row["answer_s"] for n in ASKED]
        without_s = [n * (row["clips"] * row["clip_s"] + row["answer_s"]) for n in ASKED]
        row["ratio"] = {str(n): b / a for n, a, b in zip(ASKED, with_s, without_s, strict=True)}
        rows.append(row)
        ratios = " ".join(f"{ratio:9.1f}" for ratio in row["ratio"].values())
        said = f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h"
        costs = f"{1e3 * row['clip_s']:10.2f} {1e3 * row['answer_s']:13.2f}"
        print(f"{said:>8} {row['clips']:7d} {costs}  {ratios}  {row['bytes']['device']}", flush=True)
    failures = []
    for what in ("clip_s", "answer_s"):
        if rows[-1][what] > SLACK * rows[0][what]:
            failures.append(f"{what} grew from {rows[0][what]:.4f} to {rows[-1][what]:.4f}")
    if len({row["bytes"]["device"] for row in rows}) != 1:
        failures.append("memory on the device depends on the length")
    for failure in failures:
        print("FAILED:", failure)
    print("written:", machine.write("videostreaming_speed", {"slack": SLACK, "rows": rows, "holds": not failures}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
