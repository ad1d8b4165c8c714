"""Claim: with given features 16 streams are sampled at 1,000 frames/s or more on one core; and with the encoder included the
operator is at least 5 times as fast as a plain implementation that encodes the frames of the window again at every step.

The plain one keeps the last images of each stream and at each frame encodes the whole window (what choosing needs), walks it in
Python, and goes stream by stream. Both use the same encoder (a small DINOv2 of random weights) on the same images, window 20,
keep 5, and must choose the same frames. "k_again" encodes only the newest frame for choosing and the k kept ones again, as a
policy without a cache of tokens does. Times are of the processor, one thread, so that a busy machine does not count.

    python -m benchmarks.fourd_vla_speed [--frames 24] [--streams 16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray

from benchmarks import machine
from connectors.records import FRAME, TIME_TYPE
from models.fourd_vla.config import VisionConfig
from models.fourd_vla.encoders import DinoEncoder
from models.fourd_vla.vision import VisionEncoder
from operators.base import Context
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Dinov2, Given
from operators.fourd_vla.schemas import FEATURE

WINDOW, KEEP, WIDTH = 20, 5, 432
HEIGHT_PX, WIDTH_PX = 56, 112


def rows(schema: pa.Schema, streams: int, frames: int, start: int, value: Any) -> pa.RecordBatch:
    """Return rows, one of each stream in turn; ``value(stream, t)``: the columns of one beside the keys."""
    keys = [(s, t) for t in range(start, start + frames) for s in range(streams)]
    made = [value(s, t) for s, t in keys]
    columns: dict[str, pa.Array] = {
        "stream_id": pa.array([f"camera{s}" for s, _ in keys]),
        "sequence": pa.array([t for _, t in keys], pa.int64()),
        "event_time": pa.array([t * 100_000 for _, t in keys], TIME_TYPE),
    }
    columns |= {
        field.name: pa.array([one.get(field.name) for one in made], field.type) for field in schema if field.name not in columns
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def given_features(streams: int, frames: int) -> float:
    """Return frames per second of sampling alone."""
    rng = np.random.default_rng(0)
    made = FourDVLAOperator(FourDVLAOptions(features=Given(size=WIDTH), max_streams=streams), Context())
    batches = [
        rows(FEATURE, streams, frames, i * frames, lambda s, t: {"feature": rng.normal(size=WIDTH).astype(np.float32)})
        for i in range(5)
    ]
    made.process(batches[0])
    began = time.process_time()
    for batch in batches[1:]:
        made.process(batch)
    return 4 * frames * streams / (time.process_time() - began)


def picture(stream: int, t: int) -> NDArray[np.uint8]:
    """Return an image that changes slowly."""
    blocks = np.random.default_rng([stream, t // 3]).integers(0, 200, (7, 14, 3))
    speckle = np.random.default_rng([stream, t, 1]).integers(0, 56, (HEIGHT_PX, WIDTH_PX, 3))
    return (np.kron(blocks, np.ones((8, 8, 1), np.int64)) + speckle).astype(np.uint8)


def plain(encoder: DinoEncoder, streams: int, frames: int, *, again: str) -> tuple[list[list[int]], float]:
    """Choose frames the plain way; return them by frame and stream, and the seconds per frame."""
    held: list[deque[tuple[int, NDArray[np.uint8], Any]]] = [deque(maxlen=WINDOW) for _ in range(streams)]
    chosen: list[list[int]] = []
    began = time.process_time()
    for t in range(frames):
        for s in range(streams):
            image = picture(s, t)
            encode = lambda images: encoder(torch.from_numpy(np.stack(images)))  # noqa: E731
            held[s].append((t, image, encode([image])[0].double() if again == "kept" else None))
            window = list(held[s])
            features = (
                torch.stack([feature for *_, feature in window])
                if again == "kept"
                else encode([i for _, i, _ in window]).double()
            )
            alike = (features @ features.T).tolist()
            kept, scores = [len(window) - 1], [0.0]
            for i in range(len(window) - 2, -1, -1):
                scores.append(alike[i][kept[-1]])
                kept.append(i)
                if len(kept) > KEEP:
                    out = max(range(1, len(kept)), key=lambda place: (scores[place], place))
                    del kept[out], scores[out]
                    if out < len(kept):
                        scores[out] = alike[kept[out]][kept[out - 1]]
            if again == "kept":
                encode([window[i][1] for i in kept])
            chosen.append([window[i][0] for i in reversed(kept)])
    return chosen, (time.process_time() - began) / (frames * streams)


def with_encoder(checkpoint: Path, streams: int, frames: int) -> dict[str, Any]:
    """Return seconds per frame of the operator and of the plain ways, and whether they choose the same frames."""
    encoder = DinoEncoder(str(checkpoint), HEIGHT_PX, WIDTH_PX).eval().requires_grad_(False)
    kind = Dinov2(checkpoint=str(checkpoint), width=WIDTH_PX, height=HEIGHT_PX)
    made = FourDVLAOperator(FourDVLAOptions(features=kind, max_streams=streams), Context())

    def value(s: int, t: int) -> dict[str, Any]:
        return {"image": picture(s, t).tobytes(), "encoding": "raw_rgb8", "height": HEIGHT_PX, "width": WIDTH_PX}

    batches = [rows(FRAME, streams, 4, 4 * i, value) for i in range(frames // 4)]
    began = time.process_time()
    said = [row for batch in batches for out in made.process(batch) for row in out.to_pylist()]
    ours_s = (time.process_time() - began) / (frames * streams)
    full, full_s = plain(encoder, streams, frames, again="window")
    _, kept_s = plain(encoder, streams, frames, again="kept")
    same = sum(row["selected_sequences"] == other for row, other in zip(said, full, strict=True)) / len(full)
    return {
        "ours_ms_per_frame": ours_s * 1e3,
        "plain_ms_per_frame": full_s * 1e3,
        "k_again_ms_per_frame": kept_s * 1e3,
        "times_plain": full_s / ours_s,
        "times_k_again": kept_s / ours_s,
        "same_choice": same,
    }


def write_encoder(path: Path) -> None:
    """Write a DINOv2-layout encoder of random weights: half of ViT-S."""
    torch.manual_seed(0)
    config = VisionConfig(width=WIDTH_PX, height=HEIGHT_PX, hidden=192, layers=6, heads=3, mlp=768, grid=16, final_norm=True)
    state = VisionEncoder(config).state_dict()
    names = {"embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed"}
    out = {}
    for name, tensor in state.items():
        name = (
            names.get(name, name).replace("embeddings.patch_embedding", "patch_embed.proj").replace("encoder.layers", "blocks")
        )
        out[f"{name}.gamma" if name.endswith((".ls1", ".ls2")) else name] = tensor
    safetensors.torch.save_file(out, path)


def main() -> int:
    """Measure, print, write the result; 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--frames", type=int, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampling = given_features(arguments.streams, 64)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "encoder.safetensors"
        write_encoder(file)
        encoded = with_encoder(file, arguments.streams, arguments.frames)
    holds = sampling >= 1000 and encoded["times_plain"] >= 5 and encoded["same_choice"] > 0.99
    result = {"streams": arguments.streams, "given_features_frames_per_s": sampling, **encoded, "holds": holds}
    for name, number in result.items():
        print(f"{name:<28} {number if isinstance(number, bool | int) else round(number, 3)}")
    print(f"{'holds' if holds else 'DOES NOT HOLD'}; {machine.write('fourd_vla_speed', result)}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
