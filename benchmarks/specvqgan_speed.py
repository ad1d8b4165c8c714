"""Claim: a window of sound is drawn at least 25 times faster than by the published sampler for one stream, and 100 times
faster per stream for sixteen; only the frames that a window picks go through the frame network.

Full size, random weights, one thread, processor time. The published sampler runs a pass over all positions of the window for
each token; a few such passes are measured, before and after each way of ours, and stand for all, since each costs the same. The
operator's way draws a whole window, tokens of all streams together, with its keys and values kept. The other stages are
measured beside it, for the table.

    python -m benchmarks.specvqgan_speed [--quick] [--streams 1 4 16]
"""

# B batch, C width, D head width, E feature width, F features, H heads, K codes, N tokens, P positions

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import (
    BANDS,
    COLUMN_FRAMES,
    HOP,
    RATE,
    ROWS,
    AutoencoderConfig,
    TransformerConfig,
    VocoderConfig,
)
from models.specvqgan.sampling import choose
from models.specvqgan.tokens import grid_of
from models.specvqgan.transformer import Block, SoundTransformer
from models.specvqgan.vision import FrameFeatures, PixelConfig, PixelFeatures
from models.specvqgan.vocoder import Vocoder
from operators.specvqgan.config import Geometry, SpecVQGANOptions
from operators.specvqgan.drawing import Drawing, Turn, token_noise
from operators.specvqgan.looking import FeatureRing
from operators.specvqgan.streams import FrameStream

WANTED = {1: 25.0, 16: 100.0}
"""Streams drawn together → how many times faster per stream than the published sampler."""

_QUICK_TRANSFORMER = TransformerConfig(codes=32, layers=2, heads=2, width=32, features=5, feature_width=12, columns=20)
_QUICK_AUTOENCODER = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=32)


def processor_s(work: Callable[[], object]) -> float:
    """Return the processor seconds of one piece of work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def published_logits(model: SoundTransformer, feats_BEF: torch.Tensor, tokens_BN: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, P, K] of all positions as published: every score of two positions is made, masked and kept."""
    x_BPC = model.embed(feats_BEF, tokens_BN)
    count = x_BPC.shape[1]
    x_BPC = x_BPC + model.pos_emb[:, :count]
    hidden_PP = torch.ones(count, count).tril() == 0
    for block in model.blocks:
        assert isinstance(block, Block)
        q_BHPD, k_BHPD, v_BHPD = block.attn.split(block.ln1(x_BPC))
        score_BHPP = (q_BHPD @ k_BHPD.transpose(-2, -1)) * (1.0 / math.sqrt(k_BHPD.shape[-1]))
        weight_BHPP = score_BHPP.masked_fill(hidden_PP, -math.inf).softmax(-1)
        x_BPC = x_BPC + block.attn.join(weight_BHPP @ v_BHPD)
        x_BPC = x_BPC + block.mlp(block.ln2(x_BPC))
    logits_BPK: torch.Tensor = model.head(model.ln_f(x_BPC))
    return logits_BPK


@torch.inference_mode()
def published_token(model: SoundTransformer, feats_1EF: torch.Tensor, place: int) -> float:
    """Return the processor seconds of one token of the published sampler: all positions of the window, whatever is known."""
    tokens_1N = torch.zeros(1, model.config.tokens, dtype=torch.int64)

    def draw() -> None:
        # All but the last position, as published; behind the known tokens stand zeros, which causality hides.
        logits_1PK = published_logits(model, feats_1EF, tokens_1N[:, :-1])
        noise_1K = token_noise(torch.tensor([1]), torch.tensor([place]), model.config.codes)
        choose(logits_1PK[:, model.config.features - 1 + place].float(), noise_1K, top_k=model.config.codes // 2)

    return processor_s(draw)


def drawing_for(model: SoundTransformer, streams: int, *, compiled: bool = False) -> Drawing:
    """Return what draws the tokens of so many streams, on the model's device."""
    return Drawing(
        model,
        slots=streams,
        columns=model.config.columns,
        temperature=1.0,
        top_k=model.config.codes // 2,
        batch=streams,
        device=model.pos_emb.device,
        compiled=compiled,
    )


def drawn_window(model: SoundTransformer, streams: int) -> float:
    """Return the processor seconds of a whole window of sound for so many streams."""
    config, drawing = model.config, drawing_for(model, streams)
    watched = [FrameStream(slot=slot, seed=slot + 1) for slot in range(streams)]
    feats = [torch.randn(config.feature_width, config.features) for _ in watched]

    def draw() -> None:
        for column in range(config.columns):
            turns = [Turn(stream, 0, None if column else feats_EF) for stream, feats_EF in zip(watched, feats, strict=True)]
            assert all(drawing.draw(turns))

    for stream in watched:
        drawing.open(stream.slot, stream.seed)
    return processor_s(draw)


def frames_looked_at(config: TransformerConfig, seconds: float) -> tuple[int, int]:
    """Return how many frames of so many seconds at 30 frames per second the operator looks at, and how many there are."""
    geometry = Geometry.of(SpecVQGANOptions(), config, "sound")
    network = PixelFeatures(PixelConfig(side=1))
    ring = FeatureRing(network, network.width, geometry, 1, 1, torch.device("cpu"))
    stream, looks = FrameStream(slot=0), []
    count = round(30 * seconds)
    for i in range(count):
        row = int(geometry.rows_per_s * i / 30 + 0.5)
        if row > stream.row:
            looks.append(ring.look(stream, range(stream.row, row)))
            stream.row = row
        ring.hold(0, ring.prepare(np.zeros((4, 4, 3), np.uint8)))
    return sum(look.pixels is not None for look in looks), count


@torch.inference_mode()
def stages(autoencoder: Autoencoder, vocoder: Vocoder, config: TransformerConfig, *, looks: bool) -> dict[str, float]:
    """Return the processor seconds of everything beside the transformer, per window of sound."""
    mel_1MT = torch.rand(1, BANDS, COLUMN_FRAMES * config.columns)
    tokens_1HW = grid_of(torch.randint(autoencoder.config.codes, (1, config.tokens)))
    out = {
        "encode": processor_s(lambda: autoencoder.encode(2 * mel_1MT[:, None] - 1)),
        "decode": processor_s(lambda: autoencoder.decode(tokens_1HW)),
        "vocode": processor_s(lambda: vocoder(mel_1MT)),
    }
    if looks:
        eyes = FrameFeatures().eval()
        pixels = torch.stack([eyes.pixels(torch.randint(0, 256, (240, 320, 3), dtype=torch.uint8))])
        eyes(pixels)
        out["frame"] = processor_s(lambda: eyes(pixels))
    return out


def measure(streams: Sequence[int], *, quick: bool, passes: int = 5) -> dict[str, Any]:
    """Return everything as JSON values."""
    torch.manual_seed(0)
    config = _QUICK_TRANSFORMER if quick else TransformerConfig()
    model = SoundTransformer(config).eval().requires_grad_(False)
    feats_1EF = torch.randn(1, config.feature_width, config.features)
    packed = copy.deepcopy(model)
    packed.pack()  # as the operator does
    published_token(model, feats_1EF, 0)
    places = np.linspace(0, config.tokens - 1, passes).astype(int).tolist()
    token_s = [published_token(model, feats_1EF, place) for place in places]
    own_s = dict[int, float]()
    for count in streams:
        own_s[count] = drawn_window(packed, count)
        token_s += [published_token(model, feats_1EF, place) for place in places]
    published_s = float(np.median(token_s)) * config.tokens
    rows = [{"streams": n, "window_s": s, "stream_s": s / n, "faster": published_s * n / s} for n, s in own_s.items()]
    seconds = config.columns * COLUMN_FRAMES * HOP / RATE
    print(f"a window: {config.tokens} tokens, {seconds:.2f} s of sound")
    print(f"published sampler      {published_s:9.2f} s ({np.median(token_s):.3f} s for each token)")
    for row in rows:
        print(
            f"{row['streams']:3d} streams together   {row['stream_s']:9.2f} s a stream, {row['faster']:6.1f} times", flush=True
        )
    autoencoder = Autoencoder(_QUICK_AUTOENCODER if quick else AutoencoderConfig()).eval()
    vocoder = Vocoder(VocoderConfig(channels=2) if quick else VocoderConfig()).eval()
    beside = stages(autoencoder, vocoder, config, looks=not quick)
    looked, came = frames_looked_at(config, 60.0)
    for name, stage_s in beside.items():
        print(f"{name:20s}   {stage_s:9.3f} s")
    print(f"frames looked at in a minute: {looked} of {came}")
    return {
        "window_s": seconds,
        "tokens": config.tokens,
        "published_s": published_s,
        "published_token_s": published_s / config.tokens,
        "rows": rows,
        "stages_s": beside,
        "frames_looked_at": looked,
        "frames": came,
        "rows_per_column": ROWS,
    }


def failures_of(result: dict[str, Any]) -> list[str]:
    """Return which claims do not hold."""
    out = [
        f"{row['faster']:.1f} times at {row['streams']} streams instead of {WANTED[row['streams']]:g}"
        for row in result["rows"]
        if row["faster"] < WANTED.get(row["streams"], 0.0)
    ]
    if result["frames_looked_at"] > 0.1 * result["frames"]:
        out.append(f"{result['frames_looked_at']} of {result['frames']} frames went through the frame network")
    return out


def main(argv: Sequence[str] | None = None, *, folder: Path = machine.RESULTS) -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks: shows that it runs; claims nothing")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16], help="streams that are drawn together")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(arguments.streams, quick=arguments.quick)
    if arguments.quick:
        return 0
    failures = failures_of(result)
    for failure in failures:
        print("FAILED:", failure)
    print("written:", machine.write("specvqgan_speed", {**result, "holds": not failures}, folder=folder))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
