"""Training of point-process networks: on a person's own events, or on a simulated stream. What ``streambank train prompttpp``
calls.

Maximum likelihood with the key-matching term, Adam, early stop on later events of the same keys. Writes a safetensors file that
the operator loads and ``training.json`` with the figures. Knows no stream.
"""

# N sequences, B rows of a batch

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from models.devices import resolve_device
from models.prompttpp import checkpoint
from models.prompttpp.config import TppConfig
from models.prompttpp.events import EventSet, read_table
from models.prompttpp.losses import log_likelihood, training_loss
from models.prompttpp.model import build_model
from models.prompttpp.preview import show_rates
from models.prompttpp.process import PointProcess
from models.prompttpp.recipe import RECIPES, Recipe, write_data
from models.prompttpp.seeding import count_reads, seed_prompts
from models.training import (
    After,
    OwnDataOptions,
    PreviewOptions,
    Progress,
    ProgressCallback,
    Stage,
    Training,
    TrainResult,
    check_choice,
    check_options,
    data_checksum,
    one_thread,
)

__all__ = ["OWN_DATA", "RECIPES", "Options", "Progress", "Schedule", "TrainResult", "evaluate", "fit", "train"]

OWN_DATA = ("data", "own events")
"""The option that brings one's own data, and what it is called in the help."""

_GRADIENT_NORM = 5.0
_EVALUATED = 256  # sequences at a time


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast."""

    steps: int = option(600, "Updates at most.", unit="updates", ge=1)
    batch: int = option(32, "Sequences per update.", unit="sequences", ge=1)
    learning_rate: float = option(1e-2, "Of Adam (published: 1e-3).", gt=0)
    alpha: float = option(0.1, "Weight of drawing keys of chosen prompts towards their queries (published: 0.1).", ge=0)
    points: int = option(12, "Grid of the integrals while training.", ge=2)
    rule: Literal["graded", "trapezoid", "mc"] = option(
        "graded", "Grid: `graded` (fine after an event), `trapezoid` (even, EasyTPP's), or `mc` (drawn anew, without bias)."
    )
    check_every: int = option(50, "Updates between validations.", unit="updates", ge=1)
    patience: int = option(5, "Stop after so many validations without a better one.", ge=1)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Options(Schedule, PreviewOptions, OwnDataOptions):
    """What can be set for one's own data."""

    data: str = option(REQUIRED, "Parquet file or folder: one row per event.", path=True)
    key: str = option("stream_id", "Column of keys.")
    time: str = option("event_time", "Column of times: timestamps, or seconds.")
    kind: str = option("type", "Column of types, whole numbers from 0.")
    types: int | None = option(None, "Number of types; default: the largest of the data and one.", ge=1)
    type_names: list[str] = option([], "Names of the types in the order of their ids; one named `other` takes unknown ones.")
    backbone: Literal["s2p2", "attnhp", "nhp", "thp"] = option(
        "s2p2", "`s2p2`: fast, state of fixed size; `attnhp`: attention, as published; `nhp`, `thp`: to compare."
    )
    hidden: int = option(32, "Width of the network.", ge=2)
    state: int = option(16, "Complex numbers per layer of s2p2.", ge=1)
    slowest: float = option(
        0.02, "Slowest rate at which s2p2 forgets, per unit of model time; for drift about 0.1.", gt=0, lt=20
    )
    pool: int = option(10, "Prompts of a pool; 0: none.", ge=0)
    top_k: int = option(5, "Prompts read.", ge=1)
    prompt_head: bool = option(
        False, "Each prompt also holds a change of the rate head (s2p2, nhp): what a stream teaches it stays with its readers."
    )
    query_events: int = option(0, "Events that the prompt query remembers; 0: all (published).", ge=0)
    time_scale: float | None = option(
        None, "Seconds per unit of model time; default: the mean gap of the data.", unit="s", gt=0
    )
    length: int = option(128, "Longer sequences are cut into pieces of so many events.", unit="events", ge=8)
    validation: float = option(0.2, "Share of the time, the latest, that is held out for the stop.", gt=0, lt=1)
    device: str = option("cpu", "cpu, cuda, cuda:N or auto; networks of this size are not faster on a GPU.")


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    world: Recipe | None = None,
    **options: Any,
) -> TrainResult:
    """Train a network and write it into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``world`` replaces its sizes): writes ``<recipe>.safetensors``, and as
    ``events.parquet`` the phases of the simulated stream after the training ones, for a replay. It runs on one thread; the
    same seed gives the same weights, bit for bit on the same kind of processor with the same PyTorch.

    Or ``data=FILE`` with any other field of :class:`Options`: writes ``model.safetensors``.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. Raises
    ``ConfigError`` for data that cannot be used, ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("world", world))
    if recipe is None:
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        training = Training(Path(out), resume=resume, progress=progress, **every)
        return _train(own, "model.safetensors", None, training)
    with one_thread():
        training = Training(Path(out), resume=resume, progress=progress)
        made = world or RECIPES[recipe]
        data, gap_s = write_data(made, training.path, seed)
        own = Options(
            seed=seed,
            data=str(data),
            steps=made.steps,
            batch=16,
            backbone=made.backbone,  # type: ignore[arg-type]
            hidden=made.hidden,
            state=made.state,
            time_scale=gap_s,
            query_events=12,
            slowest=0.1,
        )
        return _train(own, f"{recipe}.safetensors", recipe, training)


def fit(
    model: PointProcess,
    events: EventSet,
    validation: EventSet,
    schedule: Schedule,
    *,
    seed: int = 0,
    training: Training | None = None,
) -> dict[str, float]:
    """Train ``model`` in place and leave it with the weights of the best validation, in eval mode; return figures."""
    training = training or Training()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule.learning_rate)
    scale = model.config.time_scale
    state: dict[str, Any] = {"best": None}

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        rows = torch.randperm(len(events), generator=generator)[: schedule.batch].numpy()
        # Sequences of like length go together only by chance: pieces are cut to one length beforehand.
        batch = events.batch(rows, scale)
        found = log_likelihood(model, batch, points=schedule.points, rule=schedule.rule, generator=generator)
        yield training_loss(found, schedule.alpha if model.prompts is not None else 0.0)

    def rate(step: int) -> float:
        return schedule.learning_rate * (1.0 if step < 0.6 * schedule.steps else 0.3)

    def after(done: int) -> After | None:
        if done % schedule.check_every and done != schedule.steps:
            return None
        found = evaluate(model, validation)
        model.train()
        best = state["best"]
        note = f"validation {found:.4f} nats per event"
        if best is None or found > best["score"]:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            state["best"] = {"score": found, "step": done, "weights": weights}
            return After(note)
        return After(note, last=done - best["step"] >= schedule.patience * schedule.check_every)

    stage = Stage(
        name="fit",
        steps=schedule.steps,
        trained=model.train(),
        optimizer=optimizer,
        losses=losses,
        rate=rate,
        gradient_norm=_GRADIENT_NORM,
        report_every=max(1, schedule.check_every),
        generators=(generator,),
        state=state,
        after=after,
        preview=lambda: show_rates(model, validation),
        hint="lower learning_rate, check that time_scale is about the mean gap",
    )
    training.run(stage)
    best = state["best"]
    model.load_state_dict(best["weights"])
    model.eval()
    count_reads(model, events, seed=seed)
    return {"validation_loglik": best["score"], "best_step": float(best["step"])}


@torch.no_grad()
def evaluate(model: PointProcess, events: EventSet, points: int = 40) -> float:
    """Return the mean log-likelihood per event in model units, the first event of each sequence left out."""
    total, number = 0.0, 0
    for start in range(0, len(events), _EVALUATED):
        rows = np.arange(start, min(len(events), start + _EVALUATED))
        found = log_likelihood(model, events.batch(rows, model.config.time_scale), points=points)
        total += float((found.event_BL - found.integral_BL).double().sum())
        number += int(found.real_BL.sum())
    return total / max(1, number)


def split_time(events: EventSet, share: float) -> tuple[EventSet, EventSet]:
    """Return the events before a moment and those behind it; ``share`` of the time is behind."""
    edge = float(np.quantile(events.time_E, 1 - share))
    parts = []
    for late in (False, True):
        chosen = [(time[(time >= edge) == late], kind[(time >= edge) == late]) for time, kind in events.sequences()]
        parts.append(EventSet.of([pair for pair in chosen if len(pair[0]) > 1], events.types))
    return parts[0], parts[1]


def _train(options: Options, name: str, recipe: str | None, training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    events = read_table(options.data, key=options.key, time=options.time, kind=options.kind, types=options.types)
    earlier, later = split_time(events, options.validation)
    if not len(earlier) or not len(later):
        raise ConfigError(
            f"{options.data}: too few events to hold {options.validation:g} of the time out; give more, or less of it"
        )
    names = tuple(options.type_names)
    config = TppConfig(
        backbone=options.backbone,
        types=len(names) or events.types,
        hidden=options.hidden,
        state=options.state,
        slowest=options.slowest,
        pool=0 if options.backbone == "thp" else options.pool,
        top_k=options.top_k,
        query_events=options.query_events,
        prompt_head=options.prompt_head,
        time_scale=options.time_scale or earlier.mean_gap(),
        type_names=names,
    )
    settings = {
        "method": "prompttpp",
        "recipe": recipe,
        "seed": options.seed,
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(Schedule)},
        "network": config.to_json(),
        "length": options.length,
        "data": f"{len(events.time_E)} events, checksum {data_checksum([events.time_E, events.type_E])}",
    }
    if (complete := training.open(settings)) is not None:
        return complete
    model = build_model(config, seed=options.seed).to(device)
    earlier, later = earlier.pieces(options.length), later.pieces(options.length)
    seed_prompts(model, earlier, seed=options.seed)
    figures = fit(model, earlier, later, options, seed=options.seed, training=training)
    checkpoint.save(model, training.path / name)
    counts = {"events": float(len(events.time_E)), "keys": float(len(events)), "types": float(config.types)}
    return training.finish(training.path / name, figures | counts)
