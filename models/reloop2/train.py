"""Training of a base network for ReLoop2: on a person's own impressions, or on a made-up stream. What ``streambank train
reloop2`` calls.

Binary cross-entropy, Adam, early stop on the latest rows. Writes a safetensors file that the operator loads and
``training.json`` with the figures. Knows no stream.
"""

# R rows, B rows of a batch

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from models.devices import resolve_device
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.reloop2.config import CtrConfig
from models.reloop2.drifting_clicks import DriftConfig
from models.reloop2.evaluate import Metrics, evaluate
from models.reloop2.examples import Examples, encode_examples, fit_feature_map, read_table
from models.reloop2.losses import click_loss, weight_groups
from models.reloop2.model import build_model
from models.reloop2.predict import measure_hidden_mean, predict
from models.reloop2.preview import show_rates
from models.reloop2.recipe import RECIPES, write_data
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

__all__ = [
    "OWN_DATA",
    "RECIPES",
    "Fit",
    "Options",
    "Progress",
    "Schedule",
    "TrainResult",
    "fit",
    "measure_hidden_mean",
    "train",
]

OWN_DATA = ("data", "own impressions")
"""The option that brings one's own data, and what it is called in the help."""

_GRADIENT_NORM = 10.0  # BARS
_DECAY = 0.2  # of the learning rate whenever the validation logloss has not fallen
_REPORTS_PER_EPOCH = 4


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast. Defaults suit some hundred thousand rows and small embeddings, not the published sets."""

    epochs: int = option(8, "Passes over the rows at most.", ge=1)
    batch: int = option(512, "Rows per update.", unit="rows", ge=1)
    learning_rate: float = option(1e-2, "Of Adam; it falls to a fifth whenever the validation logloss does not fall.", gt=0)
    patience: int = option(2, "Stop after so many epochs without a better validation logloss.", unit="epochs", ge=1)
    weight_decay: float = option(3e-5, "L2 on all weights but the embeddings.", ge=0)
    embedding_l2: float = option(3e-5, "L2 on the embeddings.", ge=0)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class Options(Schedule, PreviewOptions, OwnDataOptions):
    """What can be set for one's own data."""

    data: str = option(REQUIRED, "Parquet file or folder: one row per impression with its label.", path=True)
    label: str = option("click", "Column of labels, 0 or 1.")
    time: str | None = option(None, "Column to sort by; default: the rows are in time order.")
    rows: int | None = option(None, "Take the earliest rows only, to keep the rest for a replay.", unit="rows", ge=2)
    categorical: list[str] = option([], "Columns of ids or words, in the order the network sees them.")
    numeric: list[str] = option([], "Columns of numbers; they are scaled to mean 0 and deviation 1.")
    sequences: dict[str, str | None] = option(
        {}, "List columns (histories, oldest entry first), each with the categorical column whose table it shares, or null."
    )
    max_len: int = option(100, "How many of the latest entries of a history are kept.", ge=1)
    min_count: int = option(2, "Rarer values are taken as unknown, so that unknown values to come mean something.", ge=1)
    network: Literal["dcnv2", "deepfm", "din", "fibinet", "sdim"] = option("dcnv2", "Which network.")
    embedding_dim: int = option(8, "Width of the embeddings; 64 in the published runs on millions of rows.", ge=1)
    hidden_units: list[int] = option([64, 32], "Layers of the MLP; 1024, 512, 256 in the published runs.")
    settings: dict[str, Any] = option({}, "Further fields of the network's config, such as cross_layers or target_fields.")
    validation: float = option(0.1, "Share of the rows, the latest, that is held out for the stop.", gt=0, lt=1)
    device: str = option("cpu", "cpu, cuda, cuda:N or auto; networks of this size are not faster on a GPU.")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.categorical and not self.sequences and not self.numeric:
            raise ConfigError("no feature is named: give categorical, numeric or sequences (column names)")
        names = [*self.categorical, *self.numeric, *self.sequences]
        twice = sorted({name for name in names if names.count(name) > 1} | ({self.label} & set(names)))
        if twice:
            raise ConfigError(f"columns {twice} are named more than once among label, categorical, numeric and sequences")


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training ended."""

    epochs: int
    best_epoch: int
    validation: Metrics
    """Of the weights that were kept."""


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    world: DriftConfig | None = None,
    **options: Any,
) -> TrainResult:
    """Train a network and write it into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``world`` replaces its sizes): writes ``<recipe>.safetensors`` and the rows after
    the training rows as ``impressions.parquet`` and ``labels.parquet``, ready for a replay. It runs on one thread whatever the
    setting, and the same seed gives the same weights, bit for bit on the same kind of processor with the same PyTorch.

    Or ``data=FILE`` with any other field of :class:`Options`: writes ``model.safetensors``. A seed fixes the weights for one
    number of threads.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. ``progress`` is
    called some times per epoch. Raises ``ConfigError``, ``SchemaError`` for data that cannot be used, ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("world", world))
    if recipe is None:
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        training = Training(Path(out), resume=resume, progress=progress, **every)
        return _train(own, "model.safetensors", None, training)
    with one_thread():
        training = Training(Path(out), resume=resume, progress=progress)
        own = Options(seed=seed, **write_data(world or RECIPES[recipe], training.path, seed))
        return _train(own, f"{recipe}.safetensors", recipe, training)


def fit(
    model: CtrModel,
    examples: Examples,
    validation: Examples,
    schedule: Schedule,
    *,
    seed: int = 0,
    training: Training | None = None,
) -> Fit:
    """Train ``model`` in place and leave it with the weights of the best epoch, its hidden mean measured, in eval mode.

    ``validation`` must be later than ``examples``: the stop is for the rows to come. Raises ``StreambankError`` when the loss
    is no longer finite.
    """
    training = training or Training()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(
        weight_groups(model, embedding_l2=schedule.embedding_l2, weight_decay=schedule.weight_decay), lr=schedule.learning_rate
    )
    per_epoch = _updates_per_epoch(model, len(examples), schedule.batch)
    state: dict[str, Any] = {"order": None, "best": None, "epochs": 0}

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        number = step % per_epoch
        if number == 0:
            state["order"] = torch.randperm(len(examples), generator=generator)
        rows_B = state["order"][number * schedule.batch : (number + 1) * schedule.batch]
        yield {"clicks": click_loss(model, examples.take(rows_B))}

    def after(done: int) -> After | None:
        epoch, rest = divmod(done, per_epoch)
        if rest:
            return None
        state["epochs"] = epoch
        metrics = evaluate(validation.label_R.numpy(), predict(model, validation).numpy())
        model.train()
        found = float("inf") if metrics.logloss is None else metrics.logloss
        note, best = f"epoch {epoch} validation logloss {found:.4f}", state["best"]
        if best is None or found < best["logloss"]:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            state["best"] = {"logloss": found, "epoch": epoch, "metrics": dataclasses.asdict(metrics), "weights": weights}
            return After(note)
        for group in optimizer.param_groups:
            group["lr"] *= _DECAY
        return After(note, last=epoch - best["epoch"] >= schedule.patience)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        stage = Stage(
            name="fit",
            steps=schedule.epochs * per_epoch,
            trained=model.train(),
            optimizer=optimizer,
            losses=losses,
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, per_epoch // _REPORTS_PER_EPOCH),
            generators=(generator, *_dropout_generators(model)),
            state=state,
            after=after,
            preview=lambda: show_rates(model, validation),
            hint="lower learning_rate, check the numeric columns for outliers",
        )
        training.run(stage)
    best = state["best"]
    model.load_state_dict(best["weights"])
    measure_hidden_mean(model, examples)
    return Fit(state["epochs"], best["epoch"], Metrics(**best["metrics"]))


def _train(options: Options, name: str, recipe: str | None, training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    columns = [*options.categorical, *options.numeric, *options.sequences, options.label]
    table = read_table(options.data, columns, time=options.time, rows=options.rows)
    held_out = round(options.validation * table.num_rows)
    if not 0 < held_out < table.num_rows:
        raise ConfigError(f"{options.data}: {table.num_rows} rows are too few to hold {options.validation:g} of them out")
    earlier, later = table.slice(0, table.num_rows - held_out), table.slice(table.num_rows - held_out)
    feature_map = fit_feature_map(
        earlier,
        categorical=options.categorical,
        numeric=options.numeric,
        sequences=options.sequences,
        max_len=options.max_len,
        min_count=options.min_count,
    )
    examples, bad = encode_examples(earlier, feature_map, options.label, options.data)
    validation, bad_later = encode_examples(later, feature_map, options.label, options.data)
    if not len(examples) or not len(validation):
        raise ConfigError(
            f"{options.data}: {bad + bad_later} of {table.num_rows} rows are bad (a null, a number that is not finite, or a "
            "label other than 0 and 1), and too few are left"
        )
    plain = {
        "network": options.network,
        "embedding_dim": options.embedding_dim,
        "hidden_units": options.hidden_units,
        "batch_norm": False,
        "dropout": 0.0,
    }
    config = CtrConfig.from_json(plain | options.settings)
    settings = {
        "method": "reloop2",
        "recipe": recipe,
        "seed": options.seed,
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(Schedule)},
        "network": config.to_json(),
        "data": _fingerprint(examples, validation),
    }
    if (complete := training.open(settings)) is not None:
        return complete
    model = build_model(config, feature_map, seed=options.seed).to(device)
    done = fit(model, examples, validation, options, seed=options.seed, training=training)
    checkpoint.save(model, training.path / name)
    found = {"logloss": done.validation.logloss, "auc": done.validation.auc}
    counts = {"rows": len(examples), "rows_bad": bad + bad_later, "epochs": done.epochs, "best_epoch": done.best_epoch}
    metrics = {f"validation_{name}": value for name, value in found.items() if value is not None} | counts
    return training.finish(training.path / name, {name: float(value) for name, value in metrics.items()})


def _updates_per_epoch(model: CtrModel, rows: int, batch: int) -> int:
    """Return the number of batches; a last one of a single row is left out where a norm over the batch could not be taken."""
    single = rows % batch == 1 or batch == 1
    if not single or not any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        return -(-rows // batch)
    if min(rows, batch) == 1:
        raise ConfigError(f"batch_norm needs two rows or more per update; batch is {batch}, and there are {rows} rows")
    return rows // batch


def _dropout_generators(model: CtrModel) -> list[torch.Generator]:
    device = model.hidden_mean.device
    on_gpu = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    return [torch.default_generator, *on_gpu]


def _fingerprint(examples: Examples, validation: Examples) -> str:
    parts = [column.numpy() for one in (examples, validation) for column in (*one.columns.values(), one.label_R)]
    return f"{len(examples)} and {len(validation)} rows, checksum {data_checksum(parts)}"
