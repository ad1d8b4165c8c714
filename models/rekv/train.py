"""Training for ReKV, which has no weights of its own: the small video-language model, from films that the project renders.

What ``streambank train rekv`` calls. Writes one safetensors file that the loaders take and ``training.json`` with figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from connectors.errors import ConfigError, nearest
from models.rekv.film_quality import FilmQuality, film_quality
from models.rekv.films import make_film
from models.rekv.films_recipe import FilmsSchedule, Progress, train_films
from models.rekv.loaders import load_model
from models.rekv.small import save_small

__all__ = ["RECIPES", "Progress", "TrainResult", "train"]

RECIPES = ("shapes",)
"""Ready recipes by name."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training made."""

    weights: Path
    control: Path | None
    """None: a film's spread frames, not other weights, are what memory is compared with."""
    metrics: dict[str, float]
    """As in ``training.json``."""
    seconds: float


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    schedule: FilmsSchedule | None = None,
) -> TrainResult:
    """Train the small model of a recipe and write ``<recipe>.safetensors`` into the folder ``out``.

    About ten minutes on one core; ``schedule`` shortens it for a trial. It runs on one thread whatever the setting, and the
    same seed gives the same weights, bit for bit on the same kind of processor with the same PyTorch. Raises ``ConfigError``
    for what cannot be used.
    """
    if recipe is None:
        raise ConfigError(f"nothing to learn from: give recipe (one of {list(RECIPES)})")
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}{nearest(recipe, RECIPES)}; there are {list(RECIPES)}")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made: {error.strerror or error}; choose another folder") from error
    began = time.monotonic()
    weights = folder / f"{recipe}.safetensors"
    schedule = schedule or FilmsSchedule()
    with _one_thread():
        small = train_films(seed=seed, schedule=schedule, progress=progress)
        save_small(small, weights)
        # Training draws single frames, not films, so films of every seed are unseen.
        films = (make_film(number) for number in range(schedule.unseen_films))
        quality = film_quality(load_model(weights, small.rekv), small.rekv, films)
    metrics, seconds = _metrics(quality), time.monotonic() - began
    record = {"recipe": recipe, "seed": seed, "metrics": metrics, "seconds": round(seconds, 1)}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return TrainResult(weights, None, metrics, seconds)


def _metrics(quality: FilmQuality) -> dict[str, float]:
    accuracy = {f"accuracy_{mode}": value for mode, value in quality.accuracy.items()}
    return accuracy | {"retrieval_recall": quality.recall, "questions": float(quality.questions)}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads round differently with their number, and this network is too small to gain from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
