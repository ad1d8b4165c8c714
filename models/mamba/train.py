"""Training of MAMBA: the small recipe, or a person's own annotated videos. What ``streambank train mamba`` calls.

Writes safetensors that the operator loads and ``training.json`` with the figures. Knows nothing about streams.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.mamba import checkpoint
from models.mamba.finetune import FinetuneOptions, finetune
from models.mamba.progress import Progress
from models.mamba.shapes import ShapesConfig, make_scene
from models.mamba.shapes_recipe import SHAPES_MEMORY, ShapesSchedule, evaluate_shapes, train_shapes
from models.training import TrainResult, check_choice, make_folder, one_thread, write_report

__all__ = ["OWN_DATA", "RECIPES", "FinetuneOptions", "Options", "Progress", "TrainResult", "train"]

RECIPES: dict[str, ShapesConfig] = {"shapes": ShapesConfig(), "shapes_binding": ShapesConfig(mode="binding")}
"""Ready recipes by name."""

Options = FinetuneOptions

OWN_DATA = ("annotations", "own videos")
"""The option that brings one's own data, and what it is called in the help."""

_FRESH_CLIPS = 30


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    schedule: ShapesSchedule | None = None,
    **options: Any,
) -> TrainResult:
    """Train MAMBA and write its weights into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` shortens it for a trial): about five minutes on one core; writes
    ``<recipe>.safetensors``, ``<recipe>_base.safetensors`` and their mAP50. It runs on one thread whatever the setting, and
    the same seed gives the same weights, bit for bit on the same kind of processor with the same PyTorch.

    Or ``annotations=FILE`` with any other field of :class:`FinetuneOptions`: fine-tuning on own videos; writes
    ``model.safetensors``; called again it goes on where it was stopped.

    ``progress`` is called some times per minute. Raises ``ConfigError`` for what cannot be used.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    folder = make_folder(out)
    began = time.monotonic()
    if recipe is None:
        done = finetune(FinetuneOptions(seed=seed, **options), folder, progress)
        metrics = {"iterations": float(done.iterations), "loss": done.loss}
        if done.map50 is not None:
            metrics["map50"] = done.map50
        result = TrainResult(done.weights, None, metrics, time.monotonic() - began)
    else:
        result = _run_recipe(recipe, folder, seed, schedule, progress, began)
    write_report(folder, recipe, seed, result)
    return result


def _run_recipe(
    recipe: str,
    folder: Path,
    seed: int,
    schedule: ShapesSchedule | None,
    progress: Callable[[Progress], None] | None,
    began: float,
) -> TrainResult:
    shapes = RECIPES[recipe]
    with one_thread():
        models = train_shapes(seed=seed, shapes=shapes, schedule=schedule, progress=progress)
        weights, control = folder / f"{recipe}.safetensors", folder / f"{recipe}_base.safetensors"
        checkpoint.save(models.memory, weights)
        checkpoint.save(models.control, control)
        scenes = [make_scene(shapes, number) for number in range(_FRESH_CLIPS)]
        metrics = {
            "map50_base": evaluate_shapes(models.base, scenes, memory=False),
            "map50_control": evaluate_shapes(models.control, scenes, memory=False),
            "map50_memory": evaluate_shapes(models.memory, scenes, memory=True),
        }
    metrics |= {f"bank_{name}": float(value) for name, value in dataclasses.asdict(SHAPES_MEMORY).items()}
    return TrainResult(weights, control, metrics, time.monotonic() - began)
