"""What the trainings of all methods share: the choice between a recipe and own data, the folder, the report, one thread.

Knows no network. A method's ``train.py`` names its ``RECIPES``, its ``Options`` (a dataclass) and ``OWN_DATA``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from connectors.errors import ConfigError, nearest

__all__ = ["TrainResult", "check_choice", "make_folder", "one_thread", "write_report"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training made."""

    weights: Path
    control: Path | None
    """Weights that got the same training without the memory; None where there are none."""
    metrics: dict[str, float]
    """As in ``training.json``."""
    seconds: float


def check_choice(
    recipe: str | None,
    options: Mapping[str, Any],
    *,
    recipes: Collection[str],
    options_type: type,
    own_data: str,
    trial: tuple[str, Any],
) -> None:
    """Raise ``ConfigError`` unless either a recipe is chosen, or own data by the option ``own_data`` of ``options_type``.

    ``trial`` is name and value of the argument that changes a recipe.
    """
    known = [field.name for field in dataclasses.fields(options_type) if field.name != "seed"]
    unknown = [f"{name!r}{nearest(name, known)}" for name in options if name not in known]
    if unknown:
        raise ConfigError(f"training has no option {', '.join(unknown)}; it has {known}")
    if recipe is None:
        if options.get(own_data) is None:
            raise ConfigError(f"nothing to learn from: give recipe (one of {list(recipes)}) or {own_data} (a file)")
        name, value = trial
        if value is not None:
            raise ConfigError(f"{name} belongs to a recipe; remove it, or give recipe in place of {own_data}")
        return
    if recipe not in recipes:
        raise ConfigError(f"there is no recipe {recipe!r}{nearest(recipe, recipes)}; there are {list(recipes)}")
    set_ = sorted(name for name, value in options.items() if value is not None)
    if set_:
        raise ConfigError(f"recipe {recipe!r} brings its own data and settings; remove {set_}, or remove recipe")


def make_folder(out: str | os.PathLike[str]) -> Path:
    """Make the folder for the results. Raise ``ConfigError`` where that cannot be."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} cannot be made: {error.strerror or error}; choose another folder") from error
    return folder


def write_report(folder: Path, recipe: str | None, seed: int, result: TrainResult) -> None:
    """Write ``training.json``."""
    report = {"recipe": recipe, "seed": seed, "metrics": result.metrics, "seconds": round(result.seconds, 1)}
    (folder / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: sums over several round differently with their number, and small networks gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
