"""Training of MAMBA: the small recipe, or a person's own annotated videos. What ``streambank train mamba`` calls.

Writes safetensors that the operator loads and ``training.json`` with the figures. Knows nothing about streams.
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
from models.mamba import checkpoint
from models.mamba.finetune import FinetuneOptions, finetune
from models.mamba.progress import Progress
from models.mamba.shapes import ShapesConfig, make_scene
from models.mamba.shapes_recipe import SHAPES_MEMORY, ShapesSchedule, evaluate_shapes, train_shapes

__all__ = ["OWN_DATA", "RECIPES", "FinetuneOptions", "Options", "Progress", "TrainResult", "train"]

RECIPES: dict[str, ShapesConfig] = {"shapes": ShapesConfig(), "shapes_binding": ShapesConfig(mode="binding")}
"""Ready recipes by name."""

Options = FinetuneOptions

OWN_DATA = ("annotations", "own videos")
"""The option that brings one's own data, and what it is called in the help."""

_FRESH_CLIPS = 30


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training made."""

    weights: Path
    """The detector with memory."""
    control: Path | None
    """Recipes only: the detector without memory that got the same training."""
    metrics: dict[str, float]
    """As in ``training.json``."""
    seconds: float


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
    _check_choice(recipe, schedule, options)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made: {error.strerror or error}; choose another folder") from error
    began = time.monotonic()
    if recipe is None:
        done = finetune(FinetuneOptions(seed=seed, **options), folder, progress)
        metrics = {"iterations": float(done.iterations), "loss": done.loss}
        if done.map50 is not None:
            metrics["map50"] = done.map50
        result = TrainResult(done.weights, None, metrics, time.monotonic() - began)
    else:
        result = _run_recipe(recipe, folder, seed, schedule, progress, began)
    report = {"recipe": recipe, "seed": seed, "metrics": result.metrics, "seconds": round(result.seconds, 1)}
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
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
    with _one_thread():
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


def _check_choice(recipe: str | None, schedule: ShapesSchedule | None, options: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(FinetuneOptions) if field.name != "seed"]
    unknown = [f"{name!r}{nearest(name, known)}" for name in options if name not in known]
    if unknown:
        raise ConfigError(f"training has no option {', '.join(unknown)}; it has {known}")
    if recipe is None and options.get("annotations") is None:
        raise ConfigError(f"nothing to learn from: give recipe (one of {list(RECIPES)}) or annotations (a CocoVID file)")
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
    """Sums over threads round differently with their number, and these networks are too small to gain from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
