"""Claim: after a day of video device memory is as after an hour, host and disk are as computed, the first minute is exact.

86,400 seconds at 0.5 frames per second: 43,200 frames, through the session of a running stream into a BlockBank over device,
host and disk. The decoder is random and small, so that a day takes minutes: a stand-in for LLaVA-OneVision 0.5B (24 layers,
2 key/value heads of 64, 196 tokens per frame), whose bytes the same formula gives (printed). Visual features are given: random,
and for the first minute kept. After that minute a question is asked about it; after the day it is asked again of the blocks
before N = 30. Tokens, retrieved frames, scores and blocks must be equal bit for bit.

    python -m benchmarks.rekv_day [--frames 43200]
"""

# F frames, T tokens per frame, C hidden size, L layers, G key/value heads, D head dim

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenAnswer, TokenQuestion, answer_questions
from models.rekv.session import StreamState, StreamView, open_stream
from operators.banks.block_bank import BlockBank
from operators.banks.blocks.budget import stored_fields
from operators.banks.blocks.reader import BlockReader
from operators.banks.blocks.segments import SegmentLayout
from operators.banks.blocks.spec import BlockSpec

DAY, MINUTE, HOUR = 43_200, 30, 1_800  # frames
LAYERS, GROUPS, TOKENS, DIM, HIDDEN, VOCABULARY = 2, 1, 8, 16, 64, 97
CONFIG = ReKVConfig(window_tokens=160, retrieve_frames=8, encode_frames=64)
DEVICE_PAGES, HOST_PAGES = 256, 2_048  # copies of blocks that the upper tiers have room for
LARGE = BlockSpec(layers=24, groups=2, tokens=196, dim=64, dtype=torch.float16)


@dataclass(frozen=True, slots=True)
class SlotWriter:
    """Slot 0 of a bank as encoding writes to it."""

    bank: BlockBank

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        self.bank.append_layer(layer, [0], keys_NGTD[None], values_NGTD[None], representatives_NGD[None])


def random_decoder() -> TextDecoder:
    """Return a decoder of the small shape."""
    import transformers

    settings = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // DIM,
        num_key_value_heads=GROUPS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(settings).eval().requires_grad_(False)
    return TextDecoder.of(model.model, model.lm_head, CONFIG)


def sizes(spec: BlockSpec) -> tuple[int, int]:
    """Return the bytes of a frame's keys and values, 2 L T G D itemsize (paper, section 3.2), and of its representatives."""
    values = 2 * spec.layers * spec.tokens * spec.groups * spec.dim
    return values * spec.dtype.itemsize, 4 * spec.layers * spec.groups * spec.dim


def simulate(frames: int, folder: Path) -> dict[str, Any]:
    """Encode ``frames`` frames; return bytes per tier after every hour (tenth, if shorter) and what was found at the end."""
    decoder = random_decoder()
    spec = BlockSpec(layers=LAYERS, groups=GROUPS, tokens=TOKENS, dim=DIM, dtype=decoder.dtype)
    block, means = sizes(spec)
    # Files are cut into segments; a quarter more leaves room for the last one.
    disk = int(1.25 * frames * (block + means)) + (1 << 20)
    bank = BlockBank(
        spec,
        slots=1,
        device_bytes=2 * frames * means + (1 << 20) + DEVICE_PAGES * block,
        host_bytes=HOST_PAGES * block,
        disk_bytes=disk,
        disk_folder=folder,
    )
    with contextlib.closing(bank):
        bank.open([0], [1])
        stream = open_stream(decoder, CONFIG, encode_prefix(decoder, torch.arange(5)), decoder.grid(TOKENS), SlotWriter(bank))
        generator = torch.Generator().manual_seed(1)
        _encode(decoder, stream, MINUTE, generator)
        first, first_blocks = _first_minute(decoder, stream, bank)
        every = min(HOUR, max(frames // 10, MINUTE))
        tiers: list[dict[str, int]] = []
        began, began_cpu = time.perf_counter(), time.process_time()
        while stream.frames < frames:
            _encode(decoder, stream, min(every - stream.frames % every, frames - stream.frames), generator)
            tiers.append({**bank.bytes(), "window": stream.bytes()})
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        last, last_blocks = _first_minute(decoder, stream, bank)
        plan, held = bank.plan, bank.held_bytes()
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        segment = (
            SegmentLayout(spec.layers, plan.segment_blocks, stored_fields(spec, bank.fields)).size if plan.segment_blocks else 0
        )
    segments = -(-frames // plan.segment_blocks)
    computed = {"host": plan.host_pages * block, "disk": segments * segment, "blocks": frames * (block + means)}
    checks = {
        "device_flat": len({(t["device"], t["window"]) for t in tiers}) == 1,
        "host_as_computed": all(t["host"] == computed["host"] for t in tiers),
        "disk_as_computed": tiers[-1]["disk"] == computed["disk"],
        "files_as_counted": files == tiers[-1]["disk"],
        "blocks_as_computed": held == computed["blocks"],
        "first_minute_blocks_exact": all(torch.equal(a, b) for a, b in zip(first_blocks, last_blocks, strict=True)),
        "first_minute_answer_exact": _same(first, last),
    }
    return {
        "frames": stream.frames,
        "encode_s": round(seconds, 1),
        "encode_processor_s": round(cpu_seconds, 1),
        "bytes_first": tiers[0],
        "bytes_last": tiers[-1],
        "computed": computed,
        "held_bytes": held,
        "file_bytes": files,
        "checks": checks,
        "holds": all(checks.values()),
    }


def _encode(decoder: TextDecoder, stream: StreamState, frames: int, generator: torch.Generator) -> None:
    for start in range(0, frames, CONFIG.encode_frames):
        count = min(CONFIG.encode_frames, frames - start)
        encode_frames(decoder, CONFIG, [stream], [torch.randn(count, TOKENS, HIDDEN, generator=generator)])


def _first_minute(decoder: TextDecoder, stream: StreamState, bank: BlockBank) -> tuple[TokenAnswer, list[Tensor]]:
    """Ask about the frames before ``MINUTE``; return the answer and all their blocks."""
    with bank.reader(0, MINUTE) as blocks:
        seen: BlockReader = blocks
        question = TokenQuestion(
            stream=StreamView(stream.prefix, stream.grid, seen),
            question_ids_n=torch.arange(11, 19),
            prompt_ids_n=torch.arange(7, 31),
            max_new_tokens=16,
        )
        answer = answer_questions(decoder, CONFIG, [question], ())[0]
        numbers = torch.arange(MINUTE)
        parts = [part.clone() for layer in range(LAYERS) for part in blocks.gather(layer, numbers)]
        parts += [blocks.representatives(layer).clone() for layer in range(LAYERS)]
    return answer, parts


def _same(first: TokenAnswer, last: TokenAnswer) -> bool:
    pairs = list(zip(first.retrieved, last.retrieved, strict=True)) + list(zip(first.scores, last.scores, strict=True))
    equal = all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
    return first.status == last.status == "ok" and first.tokens == last.tokens and equal


def main() -> int:
    """Simulate, print, write ``results/rekv_day.json``; return 1 if anything does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=DAY)
    arguments = parser.parse_args()
    if arguments.frames < 2 * MINUTE:
        parser.error(f"--frames is {arguments.frames}; at least {2 * MINUTE} are needed, two minutes")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(arguments.frames, Path(folder))
    block, means = sizes(LARGE)
    result["llava_onevision_0.5b"] = {"disk_bytes": arguments.frames * block, "device_bytes": arguments.frames * means}
    print(f"{result['frames']} frames in {result['encode_s']} s ({result['encode_processor_s']} s of the processor)")
    print(f"bytes at first {result['bytes_first']}\nat the end     {result['bytes_last']}\ncomputed       {result['computed']}")
    gigabytes = {name: f"{size / 1e9:.1f} GB" for name, size in result["llava_onevision_0.5b"].items()}
    print(f"the same frames of LLaVA-OneVision 0.5B: blocks {gigabytes['disk_bytes']}, means {gigabytes['device_bytes']}")
    for name, holds in result["checks"].items():
        print(f"{'holds ' if holds else 'FAILED'} {name}")
    print("written:", machine.write("rekv_day", result))
    return int(not result["holds"])


if __name__ == "__main__":
    sys.exit(main())
