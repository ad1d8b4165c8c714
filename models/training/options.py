"""What every training is asked for: a recipe or own data, and the options that all kinds of own data share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from connectors.errors import ConfigError, nearest
from connectors.options import BOUNDS, option

__all__ = ["OwnDataOptions", "check_choice", "check_options", "one_thread"]


@dataclass(frozen=True, kw_only=True)
class OwnDataOptions:
    """Options of every training on own data. A method's ``Options`` add what it learns from and how."""

    seed: int = option(0, "Of new weights and all draws.", ge=0)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: the GPU where there is one.")
    checkpoint_every: int = option(500, "Updates between checkpoints, from which --resume goes on.", unit="updates", ge=1)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        check_options(self)


def check_options(options: Any) -> None:
    """Raise ``ConfigError`` unless the fields of a dataclass of options keep their bounds and choices."""
    types = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None:
            continue
        if get_origin(types[field.name]) is Literal and value not in get_args(types[field.name]):
            raise ConfigError(f"{field.name} is {value!r}; it must be one of {list(get_args(types[field.name]))}")
        bounds = field.metadata.get("bounds", {})
        if not all(BOUNDS[kind][1](value, bound) for kind, bound in bounds.items()):
            allowed = " and ".join(f"{BOUNDS[kind][0]} {bound:g}" for kind, bound in bounds.items())
            raise ConfigError(f"{field.name} is {value}; it must be {allowed}")


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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: sums over several round differently with their number, and small networks gain nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
