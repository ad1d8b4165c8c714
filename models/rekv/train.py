"""Training for ReKV, which has no weights of its own: the small video-language model from films that the project renders,
or any supported model on a person's own videos. What ``streambank train rekv`` calls.

Writes weights that the loaders take and ``training.json`` with the figures. Knows nothing about streams.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from connectors.errors import ConfigError, nearest
from models.rekv.film_quality import film_quality
from models.rekv.films import make_film
from models.rekv.films_recipe import FilmsSchedule, Progress, train_films
from models.rekv.finetune import FinetuneOptions, finetune
from models.rekv.loaders import load_model
from models.rekv.small import save_small

__all__ = ["OWN_DATA", "RECIPES", "FinetuneOptions", "Options", "Progress", "TrainResult", "train"]

RECIPES = ("shapes",)
"""Ready recipes by name."""

Options = FinetuneOptions

OWN_DATA = ("annotations", "own videos with questions and answers")
"""The option that brings one's own data, and what it is called in the help."""


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
    **options: Any,
) -> TrainResult:
    """Train a model and write its weights into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` shortens it for a trial): about ten minutes on one core; writes
    ``<recipe>.safetensors``. It runs on one thread whatever the setting, and the same seed gives the same weights, bit for bit
    on the same kind of processor with the same PyTorch.

    Or ``annotations=FILE`` with any other field of :class:`FinetuneOptions`: fine-tuning on own videos.

    ``progress`` is called some times per minute. Raises ``ConfigError`` for what cannot be used.
    """
    _check_choice(recipe, schedule, options)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made: {error.strerror or error}; choose another folder") from error
    began = time.monotonic()
    if recipe is None:
        done = finetune(FinetuneOptions(seed=seed, **options), folder, progress)
        weights, metrics = done.weights, done.metrics
    else:
        weights = folder / f"{recipe}.safetensors"
        metrics = _run_recipe(weights, seed, schedule or FilmsSchedule(), progress)
    seconds = time.monotonic() - began
    record = {"recipe": recipe, "seed": seed, "metrics": metrics, "seconds": round(seconds, 1)}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return TrainResult(weights, None, metrics, seconds)


def _run_recipe(
    weights: Path, seed: int, schedule: FilmsSchedule, progress: Callable[[Progress], None] | None
) -> dict[str, float]:
    with _one_thread():
        small = train_films(seed=seed, schedule=schedule, progress=progress)
        save_small(small, weights)
        # Training draws single frames, not films, so films of every seed are unseen.
        films = (make_film(number) for number in range(schedule.unseen_films))
        quality = film_quality(load_model(weights, small.rekv), small.rekv, films)
    accuracy = {f"accuracy_{mode}": value for mode, value in quality.accuracy.items()}
    return accuracy | {"retrieval_recall": quality.recall, "questions": float(quality.questions)}


def _check_choice(recipe: str | None, schedule: FilmsSchedule | None, options: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(FinetuneOptions) if field.name != "seed"]
    unknown = [f"{name!r}{nearest(name, known)}" for name in options if name not in known]
    if unknown:
        raise ConfigError(f"training has no option {', '.join(unknown)}; it has {known}")
    if recipe is None and options.get("annotations") is None:
        raise ConfigError(f"nothing to learn from: give recipe (one of {list(RECIPES)}) or annotations (a JSON file)")
    if recipe is None:
        if schedule is not None:
            raise ConfigError("schedule belongs to a recipe; for own videos set iterations and learning_rate")
        return
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}{nearest(recipe, RECIPES)}; there are {list(RECIPES)}")
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ConfigError(f"recipe {recipe!r} brings its own data and settings; remove {given}, or remove recipe")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads round differently with their number, and this network is too small to gain from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
