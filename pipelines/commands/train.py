"""``streambank train METHOD``: arguments for ``models.<method>.train.train``, whose options stand in its dataclass."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from connectors.errors import ConfigError, nearest
from connectors.options import option
from pipelines.commands.describe import option_lines
from pipelines.commands.own_rows import as_source, read_rows
from pipelines.commands.progress import training_progress
from pipelines.document import parse_scalar_or_flow
from pipelines.options import option_infos, parse_values, unknown_keys

__all__ = ["methods", "parse_arguments", "train_help", "train_method"]

_FLAGS = {"resume"}
"""Options that may stand without a value."""


def methods() -> list[str]:
    """Return the methods that can be trained. Imports none of them."""
    return sorted(path.parent.name for path in (Path(__file__).resolve().parents[2] / "models").glob("*/train.py"))


def train_method(method: str, arguments: Sequence[str], *, live: bool, quiet: bool = True) -> str:
    """Train and return what is said at the end. Raise ``ConfigError`` for arguments that cannot be used."""
    module = _module(method)
    values = parse_arguments(arguments)
    brings, _ = module.OWN_DATA
    takes_rows = "rows" in inspect.signature(module.train).parameters
    read_by = getattr(module, "ROWS_FROM", None)
    source = as_source(values[brings], brings, read_by) if takes_rows and brings in values else None
    if source is not None:
        values[brings] = str(source.options.path) if hasattr(source.options, "path") else "a source"
    given, problems = _checked(module, values)
    if problems:
        raise ConfigError("\n".join(f"train {method}: --{problem}" for problem in problems))
    from models.training import TrainingStopped

    try:
        with training_progress(live=live, quiet=quiet) as progress:
            rows = {} if source is None else {"rows": read_rows(source)}
            result = module.train(given.pop("out", Path("runs") / method), progress=progress, **rows, **given)
    except TrainingStopped as stop:
        return f"{method}: {stop}"
    lines = [f"{method}: trained in {result.seconds:.0f} s", f"  weights  {result.weights}"]
    lines += [f"  control  {result.control}"] if result.control is not None else []
    lines += [f"  previews {result.previews[-1].parent} ({len(result.previews)})"] if result.previews else []
    lines += [f"  {name}  {value:.4g}" for name, value in result.metrics.items()]
    return "\n".join(lines)


def train_help(method: str) -> str:
    """Return the options of a method's training."""
    module = _module(method)
    own = [info for info in option_infos(module.Options) if info.name != "seed"]
    own.sort(key=lambda info: info.name not in vars(module.Options)["__annotations__"])  # what all methods share comes last
    recipes = ", ".join(module.RECIPES)
    brings, title = module.OWN_DATA
    return "\n".join(
        [
            f"Usage: streambank train {method} (--recipe NAME | --{brings} FILE) [--OPTION VALUE ...]",
            "",
            *option_lines(option_infos(_common(module))),
            "",
            f"recipes, which bring their own data: {recipes}",
            "",
            f"for {title}",
            *option_lines(own),
        ]
    )


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--key value`` and ``--key=value`` into values read as YAML. Raise ``ConfigError`` where that cannot be."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise ConfigError(f"train: {argument!r} is no option; write --key value")
        key, equals, text = argument[2:].partition("=")
        if not equals and key in _FLAGS:
            text = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"train: --{key} has no value; write --{key} value")
            text = rest.pop(0)
        name = key.replace("-", "_")
        if name in values:
            raise ConfigError(f"train: --{key} is given twice; remove one")
        values[name] = parse_scalar_or_flow(text, f"--{key}")
    return values


def _module(method: str) -> Any:
    if method not in methods():
        raise ConfigError(f"no method {method!r} can be trained{nearest(method, methods())}; allowed: {', '.join(methods())}")
    return importlib.import_module(f"models.{method}.train")


def _common(module: Any) -> type:
    """Return the options that every training has."""
    one_of: Any = Literal  # of names that are known only here
    fields = [
        ("out", str, option("runs/<method>", "Folder for the weights and training.json.", path=True)),
        ("recipe", one_of[tuple(module.RECIPES)] | None, option(None, "A ready recipe.")),
        ("seed", int, option(0, "Seed of weights, data and draws.", ge=0)),
        ("resume", bool, option(False, "Go on from the last checkpoint in the folder; from the beginning if there is none.")),
    ]
    return dataclasses.make_dataclass("Common", fields, frozen=True, kw_only=True)


def _checked(module: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    common = _common(module)
    given, problems = parse_values(common, values)
    names = {info.name for cls in (common, module.Options) for info in option_infos(cls)}
    own, wrong = parse_values(module.Options, {key: value for key, value in values.items() if key not in given})
    problems += [*wrong, *unknown_keys(values, names, "option")]
    return given | own, [f"{problem.path[0]}: {problem.message}" for problem in problems]
