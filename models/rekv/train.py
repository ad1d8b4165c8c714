"""Training for ReKV, which has no weights of its own: the small video-language model from films that the project renders,
or any supported model on a person's own videos. What ``streambank train rekv`` calls.

Writes weights that the loaders take and ``training.json`` with the figures. Knows nothing about streams.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.rekv.film_quality import film_quality
from models.rekv.films import make_film
from models.rekv.films_recipe import FilmsSchedule, Progress, train_films
from models.rekv.finetune import FinetuneOptions, finetune
from models.rekv.loaders import load_model
from models.rekv.small import save_small
from models.training import TrainResult, check_choice, make_folder, one_thread, write_report

__all__ = ["OWN_DATA", "RECIPES", "FinetuneOptions", "Options", "Progress", "TrainResult", "train"]

RECIPES = ("shapes",)
"""Ready recipes by name."""

Options = FinetuneOptions

OWN_DATA = ("annotations", "own videos with questions and answers")
"""The option that brings one's own data, and what it is called in the help."""


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
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    folder = make_folder(out)
    began = time.monotonic()
    if recipe is None:
        done = finetune(FinetuneOptions(seed=seed, **options), folder, progress)
        weights, metrics = done.weights, done.metrics
    else:
        weights = folder / f"{recipe}.safetensors"
        metrics = _run_recipe(weights, seed, schedule or FilmsSchedule(), progress)
    result = TrainResult(weights, None, metrics, time.monotonic() - began)
    write_report(folder, recipe, seed, result)
    return result


def _run_recipe(
    weights: Path, seed: int, schedule: FilmsSchedule, progress: Callable[[Progress], None] | None
) -> dict[str, float]:
    with one_thread():
        small = train_films(seed=seed, schedule=schedule, progress=progress)
        save_small(small, weights)
        # Training draws single frames, not films, so films of every seed are unseen.
        films = (make_film(number) for number in range(schedule.unseen_films))
        quality = film_quality(load_model(weights, small.rekv), small.rekv, films)
    accuracy = {f"accuracy_{mode}": value for mode, value in quality.accuracy.items()}
    accuracy["accuracy_guess"] = quality.guess
    return accuracy | {"retrieval_recall": quality.recall, "questions": float(quality.questions)}
