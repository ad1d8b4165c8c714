"""Claim: a clip and an answer cost the same after a minute and after a day of video, and memory on the device stays as it is;
against encoding the whole video for every question the advantage grows with the number of questions.

A random small model in the shape of the one in the package; features of frames are given. For each length (1 minute to 24
hours) the stream is encoded clip by clip into a BlockBank over device, host and files; reported are the processor time of the
last clips and of questions at the end, and the bytes per tier. To make a day take minutes, all but the last clips are copies of
memories that were encoded before, with indicators of their own: what is measured is a real bank of that length.

Then both ways are run from the first clip to the last answer, for 1, 10 and 100 questions about a video of ten minutes and for
1 and 10 about one of an hour. With memory: every clip once, clip after clip, into the bank, then all questions. Without: every
clip again for each question, then its answer from as many tokens; as it hands nothing on, it may also encode 16 clips at once,
which is the faster of its two forms here.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from models.films import SIDE
from models.videostreaming.encoding import Clip, encode_clips
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.recipe import film_tokenizer
from models.videostreaming.selection import stored_indicator
from models.videostreaming.small import build_small
from operators.banks import BlockBank
from operators.videostreaming.answering import Answering, ClipQuestion, memory_of
from operators.videostreaming.rules import ClipCodec, clip_spec

LENGTHS_H = (1 / 60, 1.0, 6.0, 24.0)
REPEATS = 30
COMPARED = ((1 / 6, (1, 10, 100)), (1.0, (1, 10)))
"""Hours, and questions about a video of that length."""
AT_ONCE = 16  # clips
SLACK = 1.5  # of the longest against the shortest video
DEVICE_CLIPS, HOST_CLIPS = 16, 64
CLIP_US = 8_000_000
QUESTION = "what colour was the ring?"


def processor_s(work: Callable[[], object], repeats: int) -> float:
    """Return the median processor seconds of one piece of work."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


@contextlib.contextmanager
def open_clips(ready: VideoStreaming, most_clips: int, folder: Path) -> Iterator[BlockBank]:
    """Open a bank for the clips of one stream."""
    model, config = ready.model, ready.config
    block = config.memory_tokens * model.width * 4 + 24
    bank = BlockBank(
        clip_spec(config.memory_tokens, model.width, model.dtype),
        slots=1,
        device_bytes=2 * most_clips * model.width * 4 + (1 << 20) + DEVICE_CLIPS * block,
        host_bytes=HOST_CLIPS * block,
        disk_bytes=int(1.25 * most_clips * (block + model.width * 4)) + (1 << 20),
        disk_folder=folder,
        codec=ClipCodec(model.dtype),
    )
    with contextlib.closing(bank), torch.inference_mode():
        bank.open([0], [1])
        yield bank


def append(bank: BlockBank, ready: VideoStreaming, memory_MD: Tensor, indicator_D: Tensor) -> None:
    """Store a clip as the next one."""
    start_us = int(bank.count([0])[0]) * CLIP_US
    facts = torch.tensor([[[start_us, start_us + CLIP_US, len(memory_MD)]]])
    blocks = memory_MD[None, None, None]
    stored = stored_indicator(indicator_D, ready.config.similarity)[None, None, None]
    bank.append([0], blocks, blocks, stored, {"facts": facts})


def encode_next(bank: BlockBank, ready: VideoStreaming, features_TNC: Tensor) -> None:
    """Encode a clip behind the newest memory and store it."""
    with bank.reader(0) as reader:
        memory = memory_of(reader)
    time_ids = ready.time_ids(8, 16, first=memory is None)
    (made,) = encode_clips(ready.model, [Clip(features_TNC, time_ids, memory)])
    append(bank, ready, made.memory_MD, made.indicator_D)


def ask(bank: BlockBank, answering: Answering) -> None:
    """Answer a question from the bank."""
    with bank.reader(0) as reader:
        (answer,) = answering([ClipQuestion(QUESTION, 1)], [reader])
        assert answer.status == "ok"


def clips_of(ready: VideoStreaming, hours: float) -> int:
    """Return how many clips a video has."""
    return max(round(hours * 3600 / ready.config.clip_seconds), 2)


def some_features(ready: VideoStreaming, clips: int) -> Tensor:
    """Return features of clips, [K, T, N, C]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(clips, ready.config.frames_per_clip, 4, ready.model.feature_width, generator=generator)


def measure(answering: Answering, hours: float, most_clips: int, folder: Path) -> dict[str, Any]:
    """Fill a bank with the clips of so many hours and measure at its end."""
    ready = answering.ready
    clips, (features,) = clips_of(ready, hours), some_features(ready, 1)
    generator = torch.Generator().manual_seed(0)
    with open_clips(ready, most_clips, folder) as bank:
        (one,) = encode_clips(ready.model, [Clip(features, ready.time_ids(0, 8, first=True), None)])
        for _ in range(clips - 1):
            append(bank, ready, one.memory_MD, torch.randn(ready.model.width, generator=generator))
        encode_next(bank, ready, features)
        ask(bank, answering)
        clip_s = processor_s(lambda: encode_next(bank, ready, features), REPEATS)
        answer_s = processor_s(lambda: ask(bank, answering), REPEATS)
        return {"hours": hours, "clips": clips, "clip_s": clip_s, "answer_s": answer_s, "bytes": bank.bytes()}


def compare(answering: Answering, hours: float, questions: int, folder: Path) -> dict[str, Any]:
    """Run both ways for so many questions about a video; return their processor seconds."""
    ready = answering.ready
    features_KTNC = some_features(ready, clips_of(ready, hours))
    with open_clips(ready, len(features_KTNC), folder / "with") as bank:
        began = time.process_time()
        for features in features_KTNC:
            encode_next(bank, ready, features)
        for _ in range(questions):
            ask(bank, answering)
        seconds = {"with_memory": time.process_time() - began}
    for name, at_once in (("without", 1), ("without_in_batches", AT_ONCE)):
        with open_clips(ready, len(features_KTNC), folder / name) as bank:
            began = time.process_time()
            for _ in range(questions):
                bank.release([0])
                bank.open([0], [1])
                for part in torch.split(features_KTNC, at_once):
                    clips = [Clip(features, ready.time_ids(0, 8, first=True), None) for features in part]
                    for made in encode_clips(ready.model, clips):
                        append(bank, ready, made.memory_MD, made.indicator_D)
                ask(bank, answering)
            seconds[name] = time.process_time() - began
    ratios = {name: seconds[name] / seconds["with_memory"] for name in ("without", "without_in_batches")}
    return {"hours": hours, "questions": questions, "processor_s": seconds, "ratio": ratios}


def said(hours: float) -> str:
    """Return a length in words."""
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h"


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
    most = clips_of(ready, max(lengths)) + 2 * REPEATS + 8
    rows = []
    print(f"{'video':>8} {'clips':>7} {'ms a clip':>10} {'ms an answer':>13}  device")
    for hours in lengths:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(answering, hours, most, Path(folder))
        rows.append(row)
        costs = f"{1e3 * row['clip_s']:10.2f} {1e3 * row['answer_s']:13.2f}"
        print(f"{said(hours):>8} {row['clips']:7d} {costs}  {row['bytes']['device']}", flush=True)
    compared = []
    heads = ("with, s", "without, s", "ratio", "in batches, s", "ratio")
    print(f"{'video':>8} {'questions':>10} " + " ".join(f"{head:>14}" for head in heads))
    for hours, asked in COMPARED:
        for questions in asked if hours <= arguments.hours else ():
            with tempfile.TemporaryDirectory() as folder:
                row = compare(answering, hours, questions, Path(folder))
            compared.append(row)
            spent, ratio = row["processor_s"], row["ratio"]
            told = [spent["with_memory"], *(x[way] for way in ("without", "without_in_batches") for x in (spent, ratio))]
            print(f"{said(hours):>8} {questions:10d} " + " ".join(f"{x:14.2f}" for x in told), flush=True)
    failures = []
    for what in ("clip_s", "answer_s"):
        if rows[-1][what] > SLACK * rows[0][what]:
            failures.append(f"{what} grew from {rows[0][what]:.4f} to {rows[-1][what]:.4f}")
    if len({row["bytes"]["device"] for row in rows}) != 1:
        failures.append("memory on the device depends on the length")
    for hours in {row["hours"] for row in compared}:
        ratios = [row["ratio"]["without_in_batches"] for row in compared if row["hours"] == hours]
        if ratios != sorted(ratios):
            failures.append(f"{said(hours)}: the advantage does not grow with the questions: {ratios}")
    for failure in failures:
        print("FAILED:", failure)
    document = {"slack": SLACK, "rows": rows, "compared": compared, "holds": not failures}
    print("written:", machine.write("videostreaming_speed", document))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
