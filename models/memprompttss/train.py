"""Training of MemPromptTSS: on own series, or a small recipe. What ``streambank train memprompttss`` calls.

The paper's loop with AdamW. States are numbered by first appearance in the training part; mean and deviation are the training
part's. Writes safetensors that the operator loads, and ``training.json``. Knows no stream.
"""

# L samples, N subsequences, B of an update

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from models.devices import resolve_device
from models.memprompttss.checkpoint import load_network, save_network
from models.memprompttss.config import EncoderAxis, MemPromptTSSConfig
from models.memprompttss.granularity import coarse_states
from models.memprompttss.learning import Episodes, LoopSettings
from models.memprompttss.metrics import scores
from models.memprompttss.model import MemPromptTSS
from models.memprompttss.offline import label_prompts, remote, segment
from models.memprompttss.preview import show_states
from models.memprompttss.recipe import RECIPES, SmallSchedule, fresh_network, run_recipe
from models.memprompttss.sampling import PromptMix
from models.memprompttss.series import Series, Split, SplitBy, downsampled, read_series, regions, split, statistics, vary
from models.training import (
    After,
    OwnDataOptions,
    Picture,
    PreviewOptions,
    Progress,
    ProgressCallback,
    Stage,
    Training,
    TrainResult,
    WeightAverage,
    at_rest,
    check_choice,
    cosine,
    data_checksum,
    one_thread,
    warm_up,
)

__all__ = ["OWN_DATA", "RECIPES", "Options", "Progress", "SmallSchedule", "TrainResult", "train"]

OWN_DATA = ("data", "own series")
"""The option that brings one's own data, and what it is called in the help."""

_FREE = ("data", "preview_every")
"""Options that may change before a training goes on."""
_GRADIENT_NORM = 1.0
_WARMUP = 50
_PROMPTS = 12  # of a test file
_DRAWS = 5  # of their places


@dataclass(frozen=True, kw_only=True)
class Options(PreviewOptions, OwnDataOptions):
    """What can be set for one's own data."""

    data: str = option(
        REQUIRED, "Folder, file or glob of CSV or Parquet files: one column per channel, and the state.", path=True
    )
    label: str | None = option(None, "Column of the states, whole numbers. Default: the last one.")
    keep_ids: bool = option(False, "States are already 0 to K-1 (or 1 to K): keep their order. Else numbered as they appear.")
    levels: list[int] = option([0], "Granularities to learn; level n has groups of group_size states of level n-1.")
    group_size: int = option(2, "States of a level that become one of the next.", ge=2)
    split: SplitBy = option("time", "Held out are the last parts of each file (`time`) or the last files (`file`).")
    validation: float = option(0.15, "Share held out to choose the weights by.", ge=0, lt=1)
    test: float = option(0.15, "Share held out to report on.", ge=0, lt=1)
    start: str | None = option(None, "Network to go on from; its sizes count. Default: random weights.", path=True)
    downsample: int = option(1, "Keep the mean of so many samples.", ge=1)
    rate_hz: float | None = option(None, "Of the samples, after downsampling; the operator checks it.", unit="Hz", gt=0)
    window: int = option(256, "Samples of a window.", unit="samples", ge=4)
    stride: int = option(64, "Samples between windows.", unit="samples", ge=1)
    context: int = option(256, "Samples around a prompt that it is remembered with.", unit="samples", ge=4)
    windows: int = option(8, "Windows of a subsequence.", ge=1)
    width: int = option(128, "Of all tokens.", ge=2)
    heads: int = option(2, "Of all attentions.", ge=1)
    encoder_layers: int = option(3, "Of the time-series encoder.", ge=1)
    decoder_blocks: int = option(6, "Of the state decoder.", ge=1)
    encoder_axis: EncoderAxis = option("time", "`batch`: as released, attention mixes the windows of a batch.")
    dropout: float = option(0.1, "In training.", ge=0, lt=1)
    steps: int = option(2000, "Updates: each is one iteration of prompts.", unit="updates", ge=1)
    batch: int = option(4, "Subsequences of an episode.", ge=1)
    iterations: int = option(8, "Updates of an episode, between which its bank grows.", ge=1)
    prompts: int = option(4, "New prompts of a subsequence in each update.", ge=1)
    permute: float | None = option(
        None, "Share of subsequences with renamed states. Default: 0.5 for one level, 0.25 for several.", ge=0, le=1
    )
    without: float = option(0.15, "Share of updates that read an empty bank.", ge=0, lt=1)
    pool: int = option(
        0,
        "Prompts that a subsequence reads at most, drawn from those of the whole batch: as in a stream, most are about "
        "elsewhere and name other states. 0: its own, all of them.",
        unit="prompts",
        ge=0,
    )
    agreement: float = option(
        0.0,
        "Weight of the distance between what windows say with prompts and without, which they then learn, too. For data of "
        "which a prompt tells nothing that the training does not know.",
        ge=0,
    )
    labels: float = option(0.5, "Share of prompts that are about states; the others are about boundaries.", ge=0, le=1)
    incorrect: float = option(0.5, "Share of prompts that say what is not so.", ge=0, le=1)
    wrong: float = option(0.0, "Share of prompts that do not tell the truth.", ge=0, lt=1)
    learning_rate: float = option(1e-4, "Of AdamW; warm-up of 50 updates.", gt=0)
    decay: float = option(1.0, "Share of learning_rate that is left at the last update; falls along a cosine.", gt=0, le=1)
    average: float = option(
        0.0,
        "Validate and keep a running mean of the weights, in which each update weighs so much of the next (0.99: the last "
        "hundred or so count). 0: the weights themselves.",
        ge=0,
        lt=1,
    )
    vary: float | None = option(
        None, "Subsequences begin anywhere, and play up to this share faster or slower. Default: as they are cut.", ge=0, lt=1
    )
    validate_every: int = option(200, "Updates between validations.", unit="updates", ge=1)
    patience: int = option(10, "Validations without a better one before the training ends.", ge=1)


USC_HAD = {
    "keep_ids": True,
    "split": "file",
    "validation": 0.0,
    "test": 2 / 7,  # of seven files the two of the last subject
    "downsample": 4,
    "rate_hz": 25.0,
    "window": 128,  # five seconds, as in the paper
    "stride": 64,
    "context": 128,
    "windows": 2,
    "batch": 16,  # many short subsequences: each file has each state once only
    "iterations": 1,
    "prompts": 2,
    "pool": 12,  # as a stream's bank: else it always names the state that is there, and the network learns to count on that
    "width": 64,
    "encoder_layers": 2,
    "decoder_blocks": 2,
    "dropout": 0.2,
    "steps": 1000,
    "labels": 0.8,
    "incorrect": 0.25,
    "permute": 0.0,
    "without": 0.0,
    "agreement": 4.0,  # the signal tells what a prompt would; without this, both ways part on a new subject
    "vary": 0.2,  # people walk at different speeds
    "learning_rate": 1e-3,
    "decay": 0.05,
    "average": 0.99,  # what single batches have left in the weights moves with prompts on a new subject
}
"""The recipe ``usc_had``: own data of these settings."""


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    schedule: SmallSchedule | None = None,
    **options: Any,
) -> TrainResult:
    """Train a network and write it into the folder ``out``.

    Either ``recipe="two_frequencies"`` (``schedule`` replaces its length): writes ``two_frequencies.safetensors``. Or
    ``recipe="usc_had"`` with ``data=FOLDER`` of the USC-HAD files, which are not part of the package. Or ``data=PATH`` with any
    other field of :class:`Options`. Both write ``network.safetensors``.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. Raises
    ``ConfigError``, ``DeviceError``.
    """
    if recipe == "usc_had":
        if options.get("data") is None:
            raise ConfigError("recipe 'usc_had' reads files that are not part of the package; give data, their folder, too")
        recipe, options = None, USC_HAD | {name: value for name, value in options.items() if value is not None}
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    with one_thread():
        if recipe is not None:
            return run_recipe(Training(Path(out), resume=resume, progress=progress), seed, schedule)
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        return _train(own, Training(Path(out), resume=resume, progress=progress, **every))


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    series: list[Series]
    states: list[Tensor]
    """Fine states of each series; -1 where the training part does not have the label."""
    labels: tuple[int, ...]
    """The label of each fine state."""


def _train(options: Options, training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    length = (options.windows - 1) * options.stride + options.window
    data = _read(options, length)
    parts = split(data.series, length, options.split, options.validation, options.test)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Options) if field.name not in _FREE}
    fingerprint = data_checksum([part for one in data.series for part in (one.x_LC.numpy(), one.label_L.numpy())])
    if (complete := training.open({"method": "memprompttss", **settings, "fingerprint": fingerprint})) is not None:
        return complete
    mean_C, std_C = statistics(data.series, parts.train, length)
    if options.start is not None:
        model = load_network(options.start, classes=len(data.labels))
    else:
        model = fresh_network(_config(options, data, mean_C, std_C), options.seed)
    model.to(device).requires_grad_(True)
    config = model.config
    if config.mean:
        mean_C, std_C = torch.tensor(config.mean), torch.tensor(config.std)
    x = [(one.x_LC - mean_C) / std_C for one in data.series]
    coarse = {level: _levels(data, options.group_size, level) for level in options.levels}
    generator = torch.Generator().manual_seed(options.seed)

    whole = regions(parts.train, length)

    def draw(g: torch.Generator) -> tuple[Tensor, Tensor]:
        level = options.levels[int(torch.randint(len(options.levels), (1,), generator=g))]
        rows = torch.randint(len(parts.train), (options.batch,), generator=g).tolist()
        if options.vary is None:
            chosen = [(x[i][f : f + length], data.states[i][f : f + length]) for i, f in (parts.train[row] for row in rows)]
        else:
            places = [(parts.train[row][0], whole[row]) for row in rows]
            chosen = [vary(x[i], data.states[i], region, length, options.vary, g) for i, region in places]
        return torch.stack([x_LC for x_LC, _ in chosen]), coarse[level][torch.stack([state_L for _, state_L in chosen])]

    permute = options.permute if options.permute is not None else (0.5 if len(options.levels) == 1 else 0.25)
    loop = LoopSettings(
        iterations=options.iterations,
        prompts=options.prompts,
        permute=permute,
        without=options.without,
        pool=options.pool,
        agreement=options.agreement,
        mix=PromptMix(labels=options.labels, incorrect=options.incorrect, wrong=options.wrong, margin=config.patch),
    )
    state: dict[str, Any] = {"best": -1.0, "since": 0, "weights": {}}
    held = [(i, first) for i, first in parts.validation if int(data.states[i][first : first + length].min()) >= 0]

    average = WeightAverage(model, options.average, state) if options.average else None
    averaged = average.applied if average is not None else contextlib.nullcontext

    def after(done: int) -> After | None:
        if average is not None:
            average.take(done)
        if not held or (done % options.validate_every and done != options.steps):
            return None
        with averaged(), at_rest(model):
            found = _accuracy(model, x, data.states, held, length)
            if found > state["best"]:
                best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                state.update(best=found, since=0, weights=best)
            else:
                state["since"] += 1
        return After(f"validation {found:.3f}, best {state['best']:.3f}", last=state["since"] >= options.patience)

    def preview() -> Picture:
        with averaged():
            return _preview(model, data, parts, length)

    training.run(
        Stage(
            name="states",
            steps=options.steps,
            trained=model.train(),
            optimizer=torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01, fused=True),
            losses=Episodes(model, draw, loop, generator, state, device).losses,
            rate=lambda step: options.learning_rate * warm_up(step, _WARMUP) * cosine(step, options.steps, options.decay),
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, options.steps // 20),
            generators=(generator,),
            state=state,
            after=after,
            preview=preview,
        )
    )
    if state["weights"]:
        model.load_state_dict(state["weights"])
    elif average is not None:
        model.load_state_dict(average.weights())
    model.eval().requires_grad_(False).cpu()
    weights = training.path / "network.safetensors"
    save_network(model, weights)
    metrics = {"subsequences": float(len(parts.train)), "loss": training.last_loss}
    metrics |= _report(model, data, parts.test, length, options.seed)
    return training.finish(weights, metrics)


def _read(options: Options, length: int) -> _Data:
    series = read_series(options.data, options.label)
    if options.downsample > 1:
        series = [downsampled(one, options.downsample) for one in series]
    known = split(series, length, options.split, options.validation, options.test).train
    seen = torch.cat([series[i].label_L[first : first + length] for i, first in known])
    labels = tuple(torch.unique(seen).tolist()) if options.keep_ids else tuple(dict.fromkeys(seen.tolist()))
    if len(labels) < 2:
        raise ConfigError(f"data: the training part has {len(labels)} state; at least 2 are needed")
    table = {label: state for state, label in enumerate(labels)}
    states = [torch.tensor([table.get(label, -1) for label in one.label_L.tolist()]) for one in series]
    return _Data(series, states, labels)


def _levels(data: _Data, group_size: int, level: int) -> Tensor:
    """Return the state of a level for each fine one."""
    coarse = coarse_states(range(len(data.labels)), group_size, level)
    return torch.tensor([coarse[state] for state in range(len(data.labels))])


def _config(options: Options, data: _Data, mean_C: Tensor, std_C: Tensor) -> MemPromptTSSConfig:
    channels = data.series[0].channels
    return MemPromptTSSConfig(
        channels=len(channels),
        classes=len(data.labels),
        width=options.width,
        heads=options.heads,
        encoder_layers=options.encoder_layers,
        decoder_blocks=options.decoder_blocks,
        encoder_axis=options.encoder_axis,
        dropout=options.dropout,
        window=options.window,
        context=options.context,
        stride=options.stride,
        channel_names=channels,
        state_names=tuple(str(label) for label in data.labels),
        granularities=tuple(options.levels),
        mean=tuple(mean_C.tolist()),
        std=tuple(std_C.tolist()),
        rate_hz=options.rate_hz,
    )


def _preview(model: MemPromptTSS, data: _Data, parts: Split, length: int) -> Picture:
    """Show the beginning of the part that is held out, or of what is learned where nothing is."""
    pieces = parts.validation or parts.test or parts.train
    chosen, start = pieces[0]
    stop = max(first for number, first in pieces if number == chosen) + length
    one = data.series[chosen]
    return show_states(model, one.x_LC[start:stop], data.states[chosen][start:stop], one.channels)


def _accuracy(
    model: MemPromptTSS, x: Sequence[Tensor], states: Sequence[Tensor], pieces: Sequence[tuple[int, int]], length: int
) -> float:
    """Return the accuracy without prompts on some subsequences."""
    right = [
        segment(model, x[i][first : first + length], standardized=True).state_L == states[i][first : first + length]
        for i, first in pieces
    ]
    return float(torch.cat(right).float().mean())


def _report(model: MemPromptTSS, data: _Data, pieces: Sequence[tuple[int, int]], length: int, seed: int) -> dict[str, float]:
    """Score the test part file by file: without prompts, with 12 at random places, and at samples remote from all of them.

    With prompts every figure is the mean over several draws of places.
    """
    found: dict[str, list[float]] = {}
    for i in sorted({piece[0] for piece in pieces}):
        first = min(start for number, start in pieces if number == i)
        x_LC, state_L = data.series[i].x_LC[first:], data.states[i][first:]
        if int(state_L.min()) < 0 or len(x_LC) < length:
            continue
        silent_L = segment(model, x_LC).state_L
        for draw in range(_DRAWS):
            bank_ND, center_P = label_prompts(model, x_LC, state_L, _PROMPTS, seed + draw)
            told_L = segment(model, x_LC, bank_ND).state_L
            remote_L = remote(len(x_LC), center_P, model.config.window)
            for name, said_L in (("", silent_L), ("prompted_", told_L)):
                for score, value in scores(state_L.numpy(), said_L.numpy()).items():
                    found.setdefault(f"{name}{score}", []).append(value)
                if bool(remote_L.any()):
                    right = float((said_L == state_L)[remote_L].float().mean())
                    found.setdefault(f"{name}remote_acc", []).append(right)
    return {name: sum(values) / len(values) for name, values in found.items()}
