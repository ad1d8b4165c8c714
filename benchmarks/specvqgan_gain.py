"""Claim: on unseen clips of a bouncing ball, the small networks make sound from the frames whose onsets are within 0.1 s of at
least 0.8 of the bounces and of the right pitch for at least 0.8 of them, and whose KL from the real sound (MKL, by a small
classifier) is less than half of that without frames; and the small codec, at 269 bit/s within 2 %, loses at most 0.52 of what
the mean of each band does.

What one sees decides what one hears: a bounce is an onset, the color its pitch, the shape its timbre, and each flight's length
is drawn. Modes: `frames`; `none` (features of 0); `other` (frames of another clip: right in all but the clip). `coded` and
`vocoded` are the truth through codec and vocoder, and through the vocoder alone: the best that could be. Onsets and pitches are
measured on the waveform. A bounce counts as right in pitch only where its onset is found. 0.52 is what a reduced autoencoder
reached on five real clips (0.139 against 0.268). Three sets of clips, each with its own draws; the claim must hold on each.

    python -m benchmarks.specvqgan_gain [--clips 20] [--temperature 1] [--folder FOLDER... | --train 0,1,2]
"""

# M pieces, H bands, T mel frames, L labels, B clips

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import machine
from models.specvqgan.bounces import PITCHES_HZ, SHAPES, Clip, make_clip
from models.specvqgan.codec import bit_rate
from models.specvqgan.config import BANDS, COLUMN_FRAMES, HOP, RATE
from models.specvqgan.evaluate import clip_mels, measure, sounds_in
from models.specvqgan.loaders import load_networks
from models.specvqgan.metrics import matched_kl
from models.specvqgan.parts import PARTS, SMALL_WEIGHTS
from models.specvqgan.train import train

NEEDED = {"onsets": 0.8, "pitches": 0.8, "mkl_ratio": 0.5, "codec_ratio": 0.52, "bit_rate": 0.02}
FIRST_CLIPS = (1 << 41, 1 << 42, 1 << 43)
SECONDS = 6.0
MODES = ("frames", "none", "other", "coded", "vocoded")

_PIECE, _EARLY = 24, 4
_JUDGE_CLIPS, _JUDGE_STEPS, _JUDGE_BATCH = 80, 300, 128


def pieces(mels_BHT: Tensor) -> Tensor:
    """Return pieces of 24 frames, one for each column but the ends, [M, 80, 24]."""
    return mels_BHT.unfold(2, _PIECE, COLUMN_FRAMES).permute(0, 2, 1, 3).flatten(0, 1)


def labels(clips: Sequence[Clip], count: int) -> Tensor:
    """Return what happens in the column of each piece: nothing (0), or a bounce of some color and shape."""
    found = torch.zeros(len(clips), count, dtype=torch.int64)
    for row, clip in enumerate(clips):
        for one in clip.heard:
            piece = int(one.time_s * RATE / HOP - _EARLY) // COLUMN_FRAMES
            if 0 <= piece < count:
                found[row, piece] = 1 + len(SHAPES) * list(PITCHES_HZ).index(one.color) + SHAPES.index(clip.shape)
    return found.flatten()


def train_judge() -> tuple[nn.Module, float]:
    """Train the classifier on real sounds; return it and its accuracy on bounces of others."""
    clips = [make_clip((1 << 44) + number, SECONDS) for number in range(_JUDGE_CLIPS)]
    mel_BHT = clip_mels(clips)
    held = _JUDGE_CLIPS // 5
    torch.manual_seed(0)
    judge = nn.Sequential(
        nn.Conv1d(BANDS, 24, 5), nn.ReLU(), nn.Flatten(), nn.Linear(24 * (_PIECE - 4), 64), nn.ReLU(), nn.Linear(64, 9)
    )
    x_MHT, y_M = pieces(mel_BHT[held:]), labels(clips[held:], len(pieces(mel_BHT[:1])))
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_JUDGE_STEPS):
        rows = torch.randint(len(x_MHT), (_JUDGE_BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(judge(x_MHT[rows]), y_M[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    truth_M = labels(clips[:held], len(pieces(mel_BHT[:1])))
    with torch.inference_mode():
        right_M = judge(pieces(mel_BHT[:held])).argmax(1) == truth_M
    return judge.eval(), float(right_M[truth_M > 0].float().mean())


def measure_set(folder: Path, judge: nn.Module, first: int, count: int, temperature: float) -> dict[str, Any]:
    """Return the figures of one set of clips."""
    networks = load_networks(folder, PARTS)
    clips = [make_clip(first + number, SECONDS) for number in range(count)]
    real_BHT = clip_mels(clips)
    made = sounds_in(networks, clips, seed=first, temperature=temperature)
    row: dict[str, Any] = {"first_clip": first, **measure(networks, clips, made)}
    with torch.inference_mode():
        real_ML = judge(pieces(real_BHT))
        for name, mels_BHT in made.items():
            row[f"mkl_{name}"] = matched_kl(real_ML, judge(pieces(mels_BHT)))
    return row


def report(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Print the table of one model and return what does not hold."""
    kinds = ("onsets", "precision", "pitches", "mkl")
    print(f"\n{name:>24} " + " ".join(f"{mode:>9}" for mode in MODES))
    for kind in kinds:
        values = [[row[f"{kind}_{mode}"] for row in rows] for mode in MODES]
        print(f"{kind:>24} " + " ".join(f"{statistics.mean(each):9.3f}" for each in values))
        print(f"{'lowest to highest':>24} " + " ".join(f"{min(each):.2f}-{max(each):.2f}" for each in values))
    failures = []
    for row in rows:
        where = f"{name}, clips {row['first_clip']}..: "
        for kind in ("onsets", "pitches"):
            if row[f"{kind}_frames"] < NEEDED[kind]:
                failures.append(f"{where}{kind} {row[f'{kind}_frames']:.3f}, {NEEDED[kind]} are needed")
        least = min(row["mkl_none"], row["mkl_other"])
        if row["mkl_frames"] > NEEDED["mkl_ratio"] * least:
            failures.append(f"{where}MKL is {row['mkl_frames']:.3f}, without frames {least:.3f}")
        ratio, rate = row["codec_error"] / row["mean_error"], row["codec_bits_per_s"] / bit_rate(1024)
        print(
            f"{'codec':>24} error {row['codec_error']:.4f}, mean of bands {row['mean_error']:.4f}, silence "
            f"{row['silence_error']:.4f}, {row['codec_bits_per_s']:.1f} bit/s"
        )
        if ratio > NEEDED["codec_ratio"]:
            failures.append(f"{where}the codec loses {ratio:.3f} of what the mean does, {NEEDED['codec_ratio']} is allowed")
        if abs(rate - 1) > NEEDED["bit_rate"]:
            failures.append(f"{where}{row['codec_bits_per_s']:.1f} bit/s are not {bit_rate(1024):.1f} within 2 %")
    return failures


def choose(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Path, float | None]]:
    """Give name, folder and processor seconds of the training (None: not trained now) of each model."""
    if not arguments.train:
        for folder in arguments.folder or [SMALL_WEIGHTS]:
            yield "package" if folder == SMALL_WEIGHTS else folder.resolve().parent.name, folder, None
        return
    for seed in (int(text) for text in arguments.train.split(",")):
        began = time.process_time()
        result = train(scratch / str(seed), recipe="bounces", seed=seed)
        yield f"seed {seed}", result.weights, round(time.process_time() - began, 1)


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20, help="of each set, six seconds each")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws; 0: the most likely tokens")
    parser.add_argument("--folder", type=Path, nargs="+", help="networks of one training each; default: those in the package")
    parser.add_argument("--train", metavar="SEEDS", help="train the recipe from nothing with each of these seeds instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge, accuracy = train_judge()
    print(f"the classifier names {accuracy:.3f} of the bounces of other clips")
    failures: list[str] = []
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder, training_s in choose(arguments, Path(scratch)):
            rows = [measure_set(folder, judge, first, arguments.clips, arguments.temperature) for first in FIRST_CLIPS]
            failures += report(name, rows)
            models[name] = {"training_processor_s": training_s, "sets": rows}
    for failure in failures:
        print("FAILED:", failure)
    document = {
        "clips_per_set": arguments.clips,
        "seconds_per_clip": SECONDS,
        "temperature": arguments.temperature,
        "needed": NEEDED,
        "classifier_accuracy": accuracy,
        "models": models,
        "holds": not failures,
    }
    print("written:", machine.write("specvqgan_gain", document))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
