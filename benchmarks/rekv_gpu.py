"""ReKV on a GPU by the paper's measuring rule: frames per second, answer latency, bytes, beside the paper's figures.

Decoders of LLaVA-OneVision 0.5B and 7B with random weights in half precision; 1,800 frames (an hour at 0.5 frames per second)
of given visual features, then 100 questions of 64 tokens with 128 answer tokens each, one after the other (paper, table 5).
The vision tower is not part of it, as it may be of the paper's frames per second: ours are of the decoder and its memory alone.
Blocks lie in pinned host memory. Without a GPU: says so and exits with 2.

    python -m benchmarks.rekv_gpu [--models 0.5b,7b]
"""

# F frames, T tokens per frame, C hidden size

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks import machine
from benchmarks.rekv_day import SlotWriter
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions
from models.rekv.session import StreamView, open_stream
from operators.banks.block_bank import BlockBank
from operators.banks.blocks.spec import BlockSpec

Result = TypeVar("Result")

CACHE_FRAMES = 128  # copies of blocks on the GPU, as in the published code
PREFIX_TOKENS = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder and how it is measured."""

    layers: int
    heads: int
    groups: int
    hidden: int
    inner: int
    tokens: int = 196
    vocabulary: int = 152_000
    dtype: torch.dtype = torch.float16
    window: int = 15_000
    retrieved: int = 64
    encode_frames: int = 64
    frames: int = 1800
    questions: int = 100
    question_tokens: int = 64
    answer_tokens: int = 128
    paper: dict[str, float] = dataclasses.field(default_factory=dict)


SHAPES = {
    "0.5b": Shape(
        layers=24, heads=14, groups=2, hidden=896, inner=4864, paper={"frames_per_s": 17, "answer_s": 1.6, "gpu_gb": 19}
    ),
    "7b": Shape(
        layers=28, heads=28, groups=4, hidden=3584, inner=18_944, paper={"frames_per_s": 11, "answer_s": 3.3, "gpu_gb": 38}
    ),
}


def random_decoder(shape: Shape, config: ReKVConfig, device: torch.device) -> TextDecoder:
    """Return a decoder of this shape with random weights, made on the device."""
    import transformers

    settings = transformers.Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        dtype=shape.dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(shape.dtype)
    try:
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            model = transformers.Qwen2ForCausalLM(settings).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return TextDecoder.of(model.model, model.lm_head, config)


def measure(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Encode all frames, ask all questions; return rates and bytes."""
    config = ReKVConfig(
        window_tokens=shape.window, retrieve_frames=shape.retrieved, encode_frames=min(shape.encode_frames, shape.frames)
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    decoder = random_decoder(shape, config, device)
    spec = BlockSpec(layers=shape.layers, groups=shape.groups, tokens=shape.tokens, dim=decoder.dim, dtype=shape.dtype)
    block = 2 * spec.layers * spec.groups * spec.tokens * spec.dim * spec.dtype.itemsize
    means = spec.layers * spec.representative.bytes
    bank = BlockBank(
        spec,
        slots=1,
        device=device,
        device_bytes=shape.frames * means + min(CACHE_FRAMES, shape.frames) * block,
        host_bytes=shape.frames * block,
    )
    generator = torch.Generator(device=device).manual_seed(1)
    with contextlib.closing(bank):
        bank.open([0], [1])
        prefix = encode_prefix(decoder, torch.arange(PREFIX_TOKENS))
        stream = open_stream(decoder, config, prefix, decoder.grid(shape.tokens), SlotWriter(bank))
        encode_s = 0.0
        for start in range(0, shape.frames, config.encode_frames):
            count = min(config.encode_frames, shape.frames - start)
            features_FTC = torch.randn(count, shape.tokens, shape.hidden, generator=generator, dtype=shape.dtype, device=device)
            encode_s += timed(device, partial(encode_frames, decoder, config, [stream], [features_FTC]))[0]
        peak_encoding = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        latencies, tokens = [], 0

        def ask(ids_n: torch.Tensor) -> int:
            with bank.reader(0) as blocks:
                view = StreamView(stream.prefix, stream.grid, blocks)
                question = TokenQuestion(
                    stream=view, question_ids_n=ids_n, prompt_ids_n=ids_n, max_new_tokens=shape.answer_tokens
                )
                return len(answer_questions(decoder, config, [question], ())[0].tokens)

        for number in range(shape.questions):
            draw = torch.Generator().manual_seed(number)
            ids = torch.randint(0, shape.vocabulary, (shape.question_tokens,), generator=draw)

            spent, count = timed(device, partial(ask, ids))
            latencies.append(spent)
            tokens += count
        bytes_held = bank.bytes()
    return {
        "frames": shape.frames,
        "questions": shape.questions,
        "answer_tokens": tokens,
        "frames_per_s": shape.frames / encode_s,
        "answer_s": statistics.median(latencies),
        "answer_worst_s": max(latencies),
        "gpu_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "gpu_bytes_encoding": peak_encoding,
        "host_bytes": bytes_held["host"],
        "host_bytes_per_hour": block * 1800,
        "paper": shape.paper,
    }


def timed(device: torch.device, call: Callable[[], Result]) -> tuple[float, Result]:
    """Return seconds of a call, the device's work included, and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def main() -> int:
    """Measure the chosen shapes, print them against the paper, write the result; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}; separated by commas")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        parser.error(f"--models: {unknown[0]!r} is unknown; choose from {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        print("rekv_gpu: no CUDA device here; run it on a machine with a GPU of 40 GB or more", file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    for name in names:
        row = results[name] = measure(SHAPES[name], torch.device("cuda"))
        paper = row["paper"]
        print(
            f"{name}: {row['frames_per_s']:.1f} frames/s (paper {paper['frames_per_s']}), answer {row['answer_s']:.2f} s "
            f"(paper {paper['answer_s']}), GPU {row['gpu_bytes'] / 1e9:.1f} GB (paper {paper['gpu_gb']}), host "
            f"{row['host_bytes_per_hour'] / 1e9:.1f} GB per hour"
        )
        torch.cuda.empty_cache()
    print("written:", machine.write("rekv_gpu", {"models": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
