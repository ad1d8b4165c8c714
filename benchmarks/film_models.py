"""Which small models a benchmark about films measures: the one in the package, a file, or some that are trained for it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from models.training import Progress, TrainResult

__all__ = ["choose", "parse"]


def parse(description: str | None, *, films: int, weights: Path) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=films, help="of each set")
    parser.add_argument("--weights", type=Path, default=weights, help="a small model; default: the one in the package")
    parser.add_argument("--train", metavar="SEEDS", help="train the recipe from nothing with each of these seeds instead")
    parser.add_argument("--folder", type=Path, help="keep what was trained here and use what is there")
    return parser.parse_args()


def choose(
    arguments: argparse.Namespace, train: Callable[..., TrainResult], scratch: Path
) -> Iterator[tuple[str, Path, float | None]]:
    """Give name, weights and processor seconds of the training (None: not trained now) of each model."""
    if not arguments.train:
        yield "weights", arguments.weights, None
        return
    for seed in (int(text) for text in arguments.train.split(",")):
        folder, seconds = (arguments.folder or scratch) / str(seed), None
        weights = folder / "shapes.safetensors"
        if not weights.is_file():
            began = time.process_time()
            train(folder, recipe="shapes", seed=seed, progress=_say)
            seconds = round(time.process_time() - began, 1)
        yield f"seed {seed}", weights, seconds


def _say(progress: Progress) -> None:
    if progress.step == progress.steps:
        print(f"  {progress.stage} {progress.step}/{progress.steps} loss {progress.loss:.3f}", file=sys.stderr, flush=True)
