"""One device, one command, at most eight minutes: what each method reaches, beside what the device can do.

First the golden vectors of eight methods are computed on the device and compared with what is recorded; a difference beyond
what the tests allow a CPU is said, and the exit code is 1. Then random weights at published sizes in half precision. The peak
of the device itself is measured (a large product, a large copy), and its results are compared with those of the CPU; frames of
a film, decoded there or on the CPU, where TorchCodec is installed; then ReKV
0.5B and 7B (encoding, first token, 128 tokens), MAMBA R101 over streams, the tokens of SpecVQGAN, the sketch of ReLoop2, and
how many streams keep a bound in 95 of 100 steps. Every row says tokens per frame, window, batch and the share of the measured
peak. Answers and sounds are also decoded by compiled steps (CUDA graphs) and, beside it, by those that are not. Needs torch,
torchvision and transformers; no Ray, no Kafka. What time or memory do not suffice for is named in the result. Without a GPU:
says so and exits with 2.

    python -m benchmarks.gpu [--minutes 8] [--only rekv,mamba] [--toy]
"""

# F frames, T tokens per frame, C hidden size, n tokens, S streams

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu_frames import film_frames, why_none
from benchmarks.gpu_golden import check_golden
from benchmarks.mamba_fps import fill_banks, frames
from benchmarks.rekv_gpu import PREFIX_TOKENS, SHAPES, Shape, random_decoder, timed
from benchmarks.specvqgan_speed import drawing_for
from models.rekv.config import ReKVConfig
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions
from models.rekv.session import StreamView, open_stream
from models.rekv.steps import CompiledSteps
from models.specvqgan.config import COLUMN_FRAMES, HOP, RATE, ROWS, TransformerConfig
from models.specvqgan.transformer import SoundTransformer
from operators.banks import BlockBank, SignHash, SketchBank
from operators.banks.blocks.spec import BlockSpec
from operators.base import Context
from operators.mamba.config import MambaOptions
from operators.mamba.operator import MambaOperator
from operators.rekv.encoder import JointWriter, SlotWriter
from operators.specvqgan.drawing import Turn
from operators.specvqgan.streams import FrameStream

PARTS = ("golden", "agreement", "frames", "rekv", "mamba", "specvqgan", "sketch", "streams", "decoding")

COLUMN_S = HOP * COLUMN_FRAMES / RATE
"""Sound of a column of tokens: what it takes to make one may take so long where streams are live."""

GOALS = {
    "rekv 7b encoding, frames/s": 100,
    "rekv 0.5b encoding, frames/s": 300,
    "rekv 7b first token, s": 0.05,
    "rekv 7b 128 tokens, s": 0.55,
    "mamba, frames/s": 600,
    "specvqgan, real-time streams": 1000,
}
"""For an H200 in half precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is measured; the toy ones run the same code in seconds."""

    peak: int = 8192
    copy_bytes: int = 1 << 30
    rekv: dict[str, Shape] = dataclasses.field(default_factory=lambda: SHAPES)
    batches: tuple[tuple[int, int], ...] = ((1, 1), (1, 4), (1, 16), (4, 4), (16, 1))
    """(streams, frames of each in a step)."""
    repeats: int = 5
    film: tuple[int, int, int] = (1080, 1920, 200)
    """Height, width, frames."""
    mamba: dict[str, Any] = dataclasses.field(default_factory=dict)
    mamba_streams: tuple[int, ...] = (1, 4, 16, 32, 64)
    step_bound_s: float = 0.2
    sound: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    sound_streams: tuple[int, ...] = (1, 16, 64, 256, 512)
    sketch_rows: int = 65_536
    decoded_questions: tuple[int, ...] = (1, 8)
    decoded_streams: tuple[int, ...] = (1, 64)


TOY_SHAPE = Shape(
    layers=2, heads=4, groups=2, hidden=32, inner=48, tokens=6, vocabulary=61, dtype=torch.float32, window=60, retrieved=4,
    question_tokens=5, answer_tokens=4,
)  # fmt: skip
TOY = Sizes(
    peak=64,
    copy_bytes=1 << 16,
    rekv={"toy": TOY_SHAPE},
    batches=((1, 2), (2, 1)),
    repeats=2,
    film=(64, 96, 12),
    mamba={
        "network": {
            "backbone": "conv5", "channels": [8, 8, 16, 16, 16], "classes": ["a", "b"], "neck_channels": 16, "fc_channels": 32,
            "heads": 4, "nms_pre": 60, "proposals": 16, "roi_size": 3, "max_long_side": 96, "max_short_side": 96,
        },
        "max_length": 60, "key_length": 16, "write_topk": 6,
    },
    mamba_streams=(1, 2),
    step_bound_s=60.0,
    sound=TransformerConfig(codes=32, layers=2, heads=2, width=32, features=5, feature_width=12, columns=4),
    sound_streams=(1, 2),
    sketch_rows=256,
    decoded_questions=(2,),
    decoded_streams=(2,),
)  # fmt: skip


class Clock:
    """Says when the time is used up."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def allows(self, what: str) -> bool:
        """Tell whether there is time for ``what``; note it if not."""
        if time.monotonic() < self._end:
            return True
        self.left_out.append(what)
        return False


def peaks(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return what a large product and a large copy reach, FLOP/s and bytes/s."""
    side = sizes.peak
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    block = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    product = min(timed(device, lambda: a @ b)[0] for _ in range(4))
    copy = min(timed(device, lambda: other.copy_(block))[0] for _ in range(4))
    return {"flop_per_s": 2 * side**3 / product, "bytes_per_s": 2 * sizes.copy_bytes / copy}


def agreement(device: torch.device) -> dict[str, float]:
    """Return the largest difference of a small ReKV in float32 between the device and the CPU, over its scores."""
    config = ReKVConfig(window_tokens=60, retrieve_frames=4)
    generator = torch.Generator().manual_seed(1)
    film = torch.randn(24, TOY_SHAPE.tokens, TOY_SHAPE.hidden, generator=generator)
    scores = []
    here = random_decoder(TOY_SHAPE, config, torch.device("cpu"))
    weights = (here.module.state_dict(), here.head.state_dict())
    for place in (torch.device("cpu"), device):
        decoder = random_decoder(TOY_SHAPE, config, place)
        decoder.module.load_state_dict(weights[0])
        decoder.head.load_state_dict(weights[1])
        bank, streams, together = _streams(decoder, TOY_SHAPE, config, 1)
        encode_frames(decoder, config, streams, [film.to(place)], together=together)
        with bank.reader(0) as blocks:
            asked = TokenQuestion(
                stream=StreamView(streams[0].prefix, streams[0].grid, blocks),
                question_ids_n=torch.arange(5),
                prompt_ids_n=torch.arange(5),
                max_new_tokens=4,
            )
            answer = answer_questions(decoder, config, [asked], ())[0]
        scores.append(torch.stack([s.cpu() for s in answer.scores if s is not None]))
    return {"rekv_scores": float((scores[0] - scores[1]).abs().max()), "rekv_scores_size": float(scores[0].abs().max())}


def _streams(decoder: Any, shape: Shape, config: ReKVConfig, count: int) -> tuple[BlockBank, list[Any], Any]:
    """Return a bank on the device, streams that write to it, and what writes them together."""
    spec = BlockSpec(layers=shape.layers, groups=shape.groups, tokens=shape.tokens, dim=decoder.dim, dtype=shape.dtype)
    per_stream = config.window_tokens // shape.tokens + 40
    block = spec.layers * (2 * spec.groups * spec.tokens * spec.dim * spec.dtype.itemsize + spec.representative.bytes)
    bank = BlockBank(
        spec,
        slots=count,
        device=decoder.device,
        device_bytes=(count * per_stream + 2) * block,
        on_full="drop_oldest",
        blocks_per_stream=per_stream,
    )
    bank.open(list(range(count)), list(range(count)))
    prefix = encode_prefix(decoder, torch.arange(PREFIX_TOKENS) % shape.vocabulary)
    grid = decoder.grid(shape.tokens)
    streams = [open_stream(decoder, config, prefix, grid, SlotWriter(bank, slot, None)) for slot in range(count)]
    return bank, streams, JointWriter(bank, list(range(count)))


def flop_per_frame(shape: Shape, seen: int) -> float:
    """Return the operations of the decoder on one frame that sees ``seen`` keys: linear layers, and attention."""
    dim = shape.hidden // shape.heads
    linear = shape.hidden * (2 * shape.hidden + 2 * shape.groups * dim + 3 * shape.inner)
    return 2.0 * shape.layers * shape.tokens * linear + 4.0 * shape.layers * shape.tokens * seen * shape.heads * dim


def rekv(name: str, shape: Shape, sizes: Sizes, device: torch.device, peak: float, clock: Clock) -> list[dict[str, Any]]:
    """Return rows of encoding by batch, and one of an answer."""
    rows: list[dict[str, Any]] = []
    for streams, each in sizes.batches:
        if not clock.allows(f"rekv {name}: {streams} streams, {each} frames"):
            continue
        config = ReKVConfig(window_tokens=shape.window, retrieve_frames=shape.retrieved, encode_frames=max(64, streams * each))
        decoder = random_decoder(shape, config, device)
        bank, opened, together = _streams(decoder, shape, config, streams)
        film = torch.randn(each, shape.tokens, shape.hidden, dtype=shape.dtype, device=device)
        step = partial(encode_frames, decoder, config, opened, [film] * streams, together=together)
        for _ in range(-(-shape.window // (shape.tokens * each)) + 2):  # until windows are full
            step()
        spent = statistics.median(timed(device, step)[0] for _ in range(sizes.repeats))
        per_s = streams * each / spent
        used = per_s * flop_per_frame(shape, shape.window)
        row = {"model": name, "streams": streams, "frames": each, "frames_per_s": per_s, "utilization": used / peak}
        rows.append({**row, "tokens_per_frame": shape.tokens, "window": shape.window})
        if (streams, each) == sizes.batches[0]:
            rows[-1] |= _answer(decoder, config, shape, bank, opened[0], sizes, device)
        bank.close()
        del decoder, bank, opened, together, step
        _free(device)
    return rows


def _answer(
    decoder: Any, config: ReKVConfig, shape: Shape, bank: BlockBank, stream: Any, sizes: Sizes, device: torch.device
) -> Any:
    ids = torch.arange(shape.question_tokens) % shape.vocabulary

    def ask(tokens: int) -> int:
        with bank.reader(0) as blocks:
            view = StreamView(stream.prefix, stream.grid, blocks)
            asked = TokenQuestion(stream=view, question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=tokens)
            return len(answer_questions(decoder, config, [asked], ())[0].tokens)

    ask(2)
    first = statistics.median(timed(device, partial(ask, 1))[0] for _ in range(sizes.repeats))
    whole = statistics.median(timed(device, partial(ask, shape.answer_tokens))[0] for _ in range(max(2, sizes.repeats // 2)))
    return {"first_token_s": first, "answer_s": whole, "answer_tokens": shape.answer_tokens}


def mamba(streams: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Return rate and step times of so many streams with full banks, one frame each per step."""
    import numpy as np

    precision = "bfloat16" if device.type == "cuda" else None
    options = MambaOptions(**sizes.mamba, max_streams=streams, bank_gib=100.0, bank_dtype="float16", precision=precision)
    operator = MambaOperator(options, Context(device=device))
    rng = np.random.default_rng(0)
    operator.process(frames(streams, 0, rng))
    fill_banks(operator, streams)
    operator.process(frames(streams, 1, rng))
    spent = [timed(device, partial(operator.process, frames(streams, 2 + i, rng)))[0] for i in range(4 * sizes.repeats)]
    row = {"streams": streams, "frames_per_s": streams / statistics.median(spent), "step_s": statistics.median(spent)}
    return {**row, "step_p95_s": sorted(spent)[int(0.95 * (len(spent) - 1))], "bank_bytes": operator.detector.bytes()}


@torch.inference_mode()
def specvqgan(streams: int, sizes: Sizes, device: torch.device, *, compiled: bool = False) -> dict[str, Any]:
    """Return the tokens that are drawn per second for so many streams together; ``compiled``: by ``compile: true``."""
    config = sizes.sound
    model = SoundTransformer(config).eval().requires_grad_(False).to(device)
    drawing = drawing_for(model, streams, compiled=compiled)
    feats = [torch.randn(config.feature_width, config.features, device=device) for _ in range(streams)]

    def opened() -> list[FrameStream]:
        watched = [FrameStream(slot=slot, seed=slot + 1) for slot in range(streams)]
        for stream in watched:
            drawing.open(stream.slot, stream.seed)
        return watched

    def draw(column: int) -> None:
        turns = zip(watched, feats, strict=True)
        drawing.draw([Turn(s, 0, None if column else feats_EF) for s, feats_EF in turns], largest=10.0)

    began = time.monotonic()
    watched = opened()
    for column in range(config.columns if compiled else 0):  # every size is compiled before the clock runs
        draw(column)
    warm_s = time.monotonic() - began
    watched = opened()
    draw(0)
    spent = [timed(device, partial(draw, column))[0] for column in range(1, config.columns)]
    tokens_per_s = streams * ROWS * len(spent) / sum(spent)
    p95_s = sorted(spent)[int(0.95 * (len(spent) - 1))]
    return {
        "streams": streams,
        "tokens_per_s": tokens_per_s,
        "real_time_streams": tokens_per_s * COLUMN_S / ROWS,
        "step_p95_s": p95_s,
        "warm_s": warm_s,
    }


def decoding(sizes: Sizes, device: torch.device, dtype: torch.dtype, clock: Clock) -> list[dict[str, Any]]:
    """Return seconds per token of answers and sounds, step by step and by compiled steps (``compile: true``)."""
    rows: list[dict[str, Any]] = []
    for name, shape in sizes.rekv.items():
        for questions in sizes.decoded_questions:
            if clock.allows(f"decoding: rekv {name}, {questions} questions"):
                rows.append({"model": f"rekv {name}", "batch": questions})
                rows[-1] |= _answers(dataclasses.replace(shape, dtype=dtype), questions, sizes, device)
            _free(device)
    for streams in sizes.decoded_streams:
        if clock.allows(f"decoding: specvqgan, {streams} streams"):
            eager, compiled = (specvqgan(streams, sizes, device, compiled=c) for c in (False, True))
            rows.append({"model": "specvqgan", "batch": streams, "first_compiled_s": compiled["warm_s"]})
            rows[-1] |= {"token_s": streams / eager["tokens_per_s"], "compiled_token_s": streams / compiled["tokens_per_s"]}
        _free(device)
    return rows


def _answers(shape: Shape, questions: int, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Return seconds per token of so many answers together."""
    config = ReKVConfig(window_tokens=shape.window, retrieve_frames=shape.retrieved)
    decoder = random_decoder(shape, config, device)
    bank, (stream,), together = _streams(decoder, shape, config, 1)
    film = torch.randn(shape.retrieved + 1, shape.tokens, shape.hidden, dtype=shape.dtype, device=device)
    encode_frames(decoder, config, [stream], [film], together=together)
    ids = torch.arange(shape.question_tokens) % shape.vocabulary

    def ask(tokens: int, compiled: CompiledSteps | None) -> int:
        with bank.reader(0) as blocks:
            view = StreamView(stream.prefix, stream.grid, blocks)
            asked = TokenQuestion(stream=view, question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=tokens)
            answers = answer_questions(decoder, config, [asked] * questions, (), compiled)
            return len(answers[0].tokens)

    found = {}
    for name, compiled in (("", None), ("compiled_", CompiledSteps(decoder, config))):
        first, _ = timed(device, partial(ask, shape.answer_tokens, compiled))
        whole, short = (
            statistics.median(timed(device, partial(ask, tokens, compiled))[0] for _ in range(sizes.repeats))
            for tokens in (shape.answer_tokens, 1)
        )
        found[f"{name}answer_s"] = whole
        found[f"{name}token_s"] = (whole - short) / (shape.answer_tokens - 1)
        found["first_compiled_s"] = first
    bank.close()
    return found


def sketch(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Return rows per second of hashing, writing and reading the sketch of ReLoop2, 64 numbers per row."""
    hash_, rows = SignHash(64, 70, 16, 0, device=device), sizes.sketch_rows
    bank = SketchBank(70, 16, ("label", "base"), device=device)
    x, values = torch.randn(rows, 64, device=device), torch.rand(rows, 2, device=device)
    buckets = hash_.hash(x)
    bank.write(buckets, values)
    steps = {"hash": lambda: hash_.hash(x), "write": lambda: bank.write(buckets, values), "read": lambda: bank.read(buckets)}
    return {name: rows / min(timed(device, step)[0] for _ in range(3)) for name, step in steps.items()}


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(sizes: Sizes, device: torch.device, parts: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run the parts while there is time; return all tables."""
    clock, dtype = Clock(seconds), torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {}
    if "golden" in parts:
        found["golden"] = check_golden(device)
    found |= {"peak": peaks(sizes, device, dtype), "dtype": str(dtype)}
    if "agreement" in parts:
        found["agreement"] = agreement(device)
    if "frames" in parts and clock.allows("frames"):
        absent = why_none()
        if absent is None:
            found["frames"] = film_frames(*sizes.film, device)
        else:
            clock.left_out.append(f"frames: {absent}")
    if "rekv" in parts:
        found["rekv"] = []
        for name, shape in sizes.rekv.items():
            shape = dataclasses.replace(shape, dtype=dtype)
            found["rekv"] += rekv(name, shape, sizes, device, found["peak"]["flop_per_s"], clock)
    for part, counts, one in (("mamba", sizes.mamba_streams, mamba), ("specvqgan", sizes.sound_streams, specvqgan)):
        if part in parts:
            found[part] = []
            for count in counts:
                what = f"{part}: {count} streams"
                if clock.allows(what):
                    try:
                        found[part].append(one(count, sizes, device))
                    except torch.OutOfMemoryError:
                        clock.left_out.append(f"{what}, which the device has no memory for")
                _free(device)
    if "sketch" in parts and clock.allows("sketch"):
        found["sketch"] = sketch(sizes, device)
    if "decoding" in parts:
        found["decoding"] = decoding(sizes, device, dtype, clock)
    if "streams" in parts:
        bounds = {"mamba": sizes.step_bound_s, "specvqgan": max(COLUMN_S, sizes.step_bound_s if device.type == "cpu" else 0)}
        found["most_streams"] = [
            {
                "part": part,
                "bound_s": bound,
                "streams": max((row["streams"] for row in found[part] if row["step_p95_s"] <= bound), default=0),
                "tried": [row["streams"] for row in found[part]],
            }
            for part, bound in bounds.items()
            if part in found
        ]
    return found | {"left_out": clock.left_out, "goals": GOALS}


def main() -> int:
    """Measure, print, write the result; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; separated by commas")
    parser.add_argument("--toy", action="store_true", help="the same code at toy size, on the CPU too; nothing is written")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is unknown; choose from {', '.join(PARTS)}")
    if not torch.cuda.is_available() and not arguments.toy:
        print("gpu: no CUDA device here; run it on a machine with one, or with --toy", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(TOY if arguments.toy else Sizes(), device, parts, 60 * arguments.minutes)
    for name, table in found.items():
        for row in table if isinstance(table, list) else [table]:
            print(f"{name}: {row}")
    if not arguments.toy:
        print("written:", machine.write("gpu", found))
    wrong = [row["method"] for row in found.get("golden", []) if not row["holds"]]
    if wrong:
        print(f"gpu: golden vectors are off on this device: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
