"""Four ways to follow a stream of events: pretrained, retrained, online, prompt (PromptTPP, §1); tables with forgetting.

Tasks are consecutive slices of time. ``pretrained``: learned on the first ones, then frozen. ``retrained``: from scratch on
each slice, for the next. ``online``: everything learns on, no prompts. ``prompt``: the operator's own way, prompts (and what
``learn`` says) learn on. All run through the operator ``prompttpp``; scores are prequential.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from models.prompttpp import checkpoint
from models.prompttpp.config import TppConfig
from models.prompttpp.events import EventSet
from models.prompttpp.losses import log_likelihood
from models.prompttpp.model import build_model
from models.prompttpp.process import PointProcess
from models.prompttpp.seeding import seed_prompts
from models.prompttpp.train import Schedule, fit
from operators.base import Context
from operators.prompttpp import PromptTPPOperator, PromptTPPOptions
from operators.prompttpp.schemas import event_schema

SCHEMES = ("pretrained", "retrained", "online", "prompt")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a comparison is made of."""

    edges: Sequence[float]
    """T + 1 times, seconds."""
    pretrain: int
    """Tasks that all schemes begin with."""
    time_scale: float
    network: dict[str, Any] = field(default_factory=dict)
    steps: int = 150
    length: int = 48
    options: dict[str, Any] = field(default_factory=dict)
    """Of the operator."""
    learn: str = "prompts"
    """What ``prompt`` learns."""
    predict: bool = False
    held_out: float = 0.0
    """Share of the sequences of a pre-training that its weights are chosen by; 0: those of the last update are taken."""


@dataclass
class Outcome:
    """Of one scheme."""

    rows: pa.Table
    """The operator's, in the order of the stream."""
    task_E: npt.NDArray[np.int64]
    score_TT: npt.NDArray[np.float64]
    """[learned up to task i, on task j]: nats per event, time in seconds; NaN where not measured."""

    def prequential(self, task: int, part: slice = slice(None)) -> float:
        """Return the mean log-likelihood per event of a task, before it was learned."""
        score = self.rows.column("loglik").to_numpy(zero_copy_only=False)[self.task_E == task]
        return float(np.nanmean(score[part])) if len(score) else float("nan")

    def forgetting(self) -> npt.NDArray[np.float64]:
        """Return best score so far less final score, for every task but the last."""
        best = np.nanmax(self.score_TT[:-1, :-1], axis=0)
        return np.asarray(best - self.score_TT[-1, :-1])


def table_of(events: EventSet) -> pa.Table:
    """Return events as rows in time order."""
    key = np.repeat(np.arange(len(events)), events.lengths)
    sequence = np.arange(len(key)) - np.repeat(events.start_N[:-1], events.lengths)
    order = np.argsort(events.time_E, kind="stable")
    schema = event_schema("id")
    time = pa.array(np.rint(events.time_E[order] * 1e6).astype(np.int64)).cast(schema.field("event_time").type)
    names = pa.array([f"k{number}" for number in key[order]])
    columns = [names, pa.array(sequence[order]), time, pa.array(events.type_E[order].astype(np.int32))]
    return pa.Table.from_arrays(columns, schema=schema)


def between(events: EventSet, start: float, stop: float, context: int, most: int) -> list[EventSet]:
    """Return the sequences of a span of time, each with ``context`` events before it, cut to ``most`` events."""
    cut = []
    for time, kind in events.sequences():
        first, last = np.searchsorted(time, [start, stop])
        if last > first:
            begin = max(0, first - context)
            cut.append((time[begin:last], kind[begin:last]))
    return [EventSet.of(cut, events.types).pieces(most, context)] if cut else []


def pretrained_network(events: EventSet, setting: Setting, tasks: Sequence[int], seed: int, *, prompts: bool) -> PointProcess:
    """Train a network on some tasks."""
    start, stop = setting.edges[tasks[0]], setting.edges[tasks[-1] + 1]
    (data,) = between(events, start, stop, 1, setting.length)
    sizes = dict(setting.network) | ({} if prompts else {"pool": 0, "prompt_head": False})
    model = build_model(TppConfig(types=events.types, time_scale=setting.time_scale, **sizes), seed=seed)
    seed_prompts(model, data, seed=seed)
    if not setting.held_out:
        fit(model, data, data, Schedule(steps=setting.steps, check_every=setting.steps, points=10), seed=seed)
        return model
    pieces = [piece for piece in data.sequences() if len(piece[0]) > 1]
    order = np.random.default_rng(seed).permutation(len(pieces))
    held = max(1, int(setting.held_out * len(pieces)))
    chosen, learned = (EventSet.of([pieces[row] for row in rows], events.types) for rows in (order[:held], order[held:]))
    fit(model, learned, chosen, Schedule(steps=setting.steps, check_every=25, points=10), seed=seed)
    return model


@torch.no_grad()
def score_task(model: PointProcess, events: EventSet, setting: Setting, task: int, most: int = 400) -> float:
    """Return the mean log-likelihood per event of a task's events, histories reaching back, in seconds."""
    (data,) = between(events, setting.edges[task], setting.edges[task + 1], 16, setting.length) or [None]
    if data is None:
        return float("nan")
    rows = np.random.default_rng(0).permutation(len(data))[: max(1, most // 8)]
    batch = data.batch(rows, setting.time_scale)
    found = log_likelihood(model, batch, points=16)
    wanted = found.real_BL.clone()
    starts = torch.from_numpy(data.time_E[data.start_N[:-1]][rows])
    wanted &= (batch.time_BL[:, 1:] * setting.time_scale + starts[:, None]) >= setting.edges[task]
    return float((found.event_BL - found.integral_BL)[wanted].mean()) - float(np.log(setting.time_scale))


def current(operator: PromptTPPOperator) -> PointProcess:
    """Return an operator's network with the prompts as they are now."""
    model = operator._network.model
    if operator._network.prompts is not None and model.prompts is not None:
        key, value = operator._network.prompts.tensors()
        with torch.no_grad():
            model.prompts.key.copy_(key)
            model.prompts.value.copy_(value)
    return model


def build(model: PointProcess, setting: Setting, learn: str) -> PromptTPPOperator:
    """Return an operator with this network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(model, path)
        options = {
            "learn": learn,
            "predict": setting.predict,
            "max_streams": 4096,
            "window": 40,
            "points": 16,
            **setting.options,
        }
        if learn == "off":
            options = {name: value for name, value in options.items() if not name.startswith(("learn", "network_rate"))} | {
                "learn": learn
            }
        return PromptTPPOperator(PromptTPPOptions(checkpoint=str(path), **options), Context(name="protocol"))


def run_scheme(
    events: EventSet,
    setting: Setting,
    scheme: str,
    seed: int,
    models: dict[bool, PointProcess],
    *,
    matrix: bool = True,
    after: Callable[[int, PointProcess], None] | None = None,
) -> Outcome:
    """Run one scheme over the stream behind the tasks of pre-training; ``after`` is shown the network after each task."""
    table = table_of(events)
    time_E = table.column("event_time").cast(pa.int64()).to_numpy() / 1e6
    task_E = np.searchsorted(np.asarray(setting.edges[1:-1]), time_E, side="right")
    tasks = len(setting.edges) - 1
    prompts = scheme == "prompt"
    learn = {"online": "all", "prompt": setting.learn}.get(scheme, "off")
    operator = build(models[prompts], setting, learn)
    outputs, scores = [], np.full((tasks, tasks), np.nan)
    for task in range(tasks):
        if scheme == "retrained" and task >= setting.pretrain:
            operator = build(pretrained_network(events, setting, [task - 1], seed, prompts=False), setting, "off")
            before = table.filter(pa.array((task_E < task) & (task_E >= task - 2)))
            for batch in before.to_batches(max_chunksize=1024):
                operator.process(batch)
        if task < setting.pretrain and learn != "off":  # learned already: histories are taken up, nothing more
            steps, operator.options = operator._learner, operator.options
            operator._learner = None
        for batch in table.filter(pa.array(task_E == task)).combine_chunks().to_batches(max_chunksize=1024):
            outputs += operator.process(batch)
        if task < setting.pretrain and learn != "off":
            operator._learner = steps
        if matrix and task >= setting.pretrain - 1:
            for other in range(task + 1):
                scores[task, other] = score_task(current(operator), events, setting, other)
        if after is not None:
            after(task, current(operator))
    order = np.concatenate([np.flatnonzero(task_E == task) for task in range(tasks)])
    return Outcome(pa.Table.from_batches(outputs), task_E[order], scores)
