"""Claim: on unseen films of ten minutes the small model finds the right event (recall in the retrieved frames ≥ 0.9) and
answers at least 20 points more questions right than from as many frames spread evenly over the film.

600 frames, one per second; five events of five to nine seconds; twenty questions per film: which colour, which shape, when,
how many. Three ways to answer with 16 frames each: retrieval by every layer from all frames (memory), 16 evenly spread frames
(uniform), the 16 newest (recent). Without --weights the recipe is trained from nothing first.

    python -m benchmarks.rekv_memory_gain [--films 50] [--weights FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import machine
from models.rekv.film_quality import MODES, film_quality
from models.rekv.films import make_film
from models.rekv.loaders import load_model
from models.rekv.small import load_small
from models.rekv.train import Progress, train

NEEDED_GAIN, NEEDED_RECALL = 0.20, 0.9
_FIRST_FILM = 1000  # the recipe's own figures come from the films before


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=50)
    parser.add_argument("--weights", type=Path, help="a small model; default: train one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        training_s, weights = None, arguments.weights
        if weights is None:
            done = train(scratch, recipe="shapes", progress=_say)
            training_s, weights = done.seconds, done.weights
        rekv = load_small(weights).rekv
        model = load_model(weights, rekv)
        began = time.monotonic()
        films = (make_film(_FIRST_FILM + number) for number in range(arguments.films))
        quality = film_quality(model, rekv, films)
        seconds = time.monotonic() - began
    print(f"{'':>10} " + " ".join(f"{mode:>8}" for mode in MODES))
    for kind, row in quality.accuracy_by_kind.items():
        print(f"{kind:>10} " + " ".join(f"{row[mode]:8.3f}" for mode in MODES))
    print(f"{'all':>10} " + " ".join(f"{quality.accuracy[mode]:8.3f}" for mode in MODES))
    gain = quality.accuracy["memory"] - quality.accuracy["uniform"]
    # Answers about one film are not independent; the error is that of questions, a lower bound of it.
    error = math.sqrt(sum(quality.accuracy[m] * (1 - quality.accuracy[m]) for m in ("memory", "uniform")) / quality.questions)
    print(f"gain over uniform {gain:+.3f} ± {error:.3f} (needed {NEEDED_GAIN:+.2f}), {quality.questions} questions")
    layers = ", ".join(f"{value:.3f}" for value in quality.recall_by_layer)
    print(f"recall of the event's frames {quality.recall:.3f} (by layer {layers}; needed {NEEDED_RECALL})")
    holds = gain >= NEEDED_GAIN and quality.recall >= NEEDED_RECALL
    document = {
        "films": arguments.films,
        "frames_per_film": 600,
        "frames_per_answer": rekv.retrieve_frames,
        "needed": {"gain": NEEDED_GAIN, "recall": NEEDED_RECALL},
        **dataclasses.asdict(quality),
        "gain": gain,
        "standard_error": error,
        "seconds_per_film": seconds / arguments.films,
        "training_s": training_s,
        "holds": holds,
    }
    print("written:", machine.write("rekv_memory_gain", document))
    return int(not holds)


def _say(progress: Progress) -> None:
    if progress.step % (10 * (progress.steps // 60)) == 0:
        print(f"{progress.stage} {progress.step}/{progress.steps} loss {progress.loss:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
