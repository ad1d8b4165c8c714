"""Training of a base network for ReLoop2: on a person's own impressions, or on a made-up stream. What ``streambank train
reloop2`` calls.

Writes a safetensors file that the operator loads and ``training.json`` with the figures. Knows no stream.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from connectors.errors import ConfigError, DeviceError
from connectors.options import REQUIRED, option
from models.reloop2 import checkpoint
from models.reloop2.config import NETWORKS, CtrConfig
from models.reloop2.drifting_clicks import DriftConfig, make_stream
from models.reloop2.examples import encode_examples, fit_feature_map, read_table
from models.reloop2.fitting import Progress, Schedule, fit, measure_hidden_mean
from models.reloop2.model import build_model
from models.training import TrainResult, check_choice, make_folder, write_report

__all__ = ["OWN_DATA", "RECIPES", "Options", "Progress", "TrainOptions", "TrainResult", "measure_hidden_mean", "train"]

RECIPES: dict[str, DriftConfig] = {"drift": DriftConfig()}
"""Ready recipes by name."""

OWN_DATA = ("data", "own impressions")
"""The option that brings one's own data, and what it is called in the help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
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
    network: str = option("dcnv2", "Which network.", choices=tuple(sorted(NETWORKS)))
    embedding_dim: int = option(8, "Width of the embeddings; 64 in the published runs on millions of rows.", ge=1)
    hidden_units: list[int] = option([64, 32], "Layers of the MLP; 1024, 512, 256 in the published runs.")
    settings: dict[str, Any] = option({}, "Further fields of the network's config, such as cross_layers or target_fields.")
    epochs: int = option(8, "Passes over the rows at most.", ge=1)
    batch: int = option(512, "Rows per update.", unit="rows", ge=1)
    learning_rate: float = option(1e-2, "Of Adam; it falls to a fifth whenever the validation logloss does not fall.", gt=0)
    patience: int = option(2, "Stop after so many epochs without a better validation logloss.", unit="epochs", ge=1)
    weight_decay: float = option(3e-5, "L2 on all weights but the embeddings.", ge=0)
    embedding_l2: float = option(3e-5, "L2 on the embeddings.", ge=0)
    validation: float = option(0.1, "Share of the rows, the latest, that is held out for the stop.", gt=0, lt=1)
    seed: int = option(0, "Of new weights and all draws.", ge=0)
    device: str = option("cpu", "cpu, cuda or cuda:N; networks of this size are not faster on a GPU.")

    def __post_init__(self) -> None:
        if not self.categorical and not self.sequences and not self.numeric:
            raise ConfigError("no feature is named: give categorical, numeric or sequences (column names)")
        names = [*self.categorical, *self.numeric, *self.sequences]
        twice = sorted({name for name in names if names.count(name) > 1} | ({self.label} & set(names)))
        if twice:
            raise ConfigError(f"columns {twice} are named more than once among label, categorical, numeric and sequences")


Options = TrainOptions


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    world: DriftConfig | None = None,
    **options: Any,
) -> TrainResult:
    """Train a network and write it into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``world`` replaces its sizes): writes ``<recipe>.safetensors`` and the rows after
    the training rows as ``impressions.parquet`` and ``labels.parquet``, ready for a replay. Or ``data=FILE`` with any other
    field of :class:`TrainOptions`: writes ``model.safetensors``. A seed fixes the weights, bit for bit on one kind of processor
    and with one number of threads.

    ``progress`` is called some times per epoch. Raises ``ConfigError``, ``SchemaError`` for data that cannot be used,
    ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("world", world))
    folder = make_folder(out)
    began = time.monotonic()
    if recipe is None:
        weights, settled = folder / "model.safetensors", TrainOptions(seed=seed, **options)
    else:
        weights, settled = folder / f"{recipe}.safetensors", _make_data(world or RECIPES[recipe], folder, seed)
    metrics = _train(settled, weights, progress)
    result = TrainResult(weights, None, metrics, time.monotonic() - began)
    write_report(folder, recipe, seed, result)
    return result


def _train(options: TrainOptions, weights: Path, progress: Callable[[Progress], None] | None) -> dict[str, float]:
    device = _device(options.device)
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
    training, bad = encode_examples(earlier, feature_map, options.label, options.data)
    validation, bad_later = encode_examples(later, feature_map, options.label, options.data)
    if not len(training) or not len(validation):
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
    model = build_model(CtrConfig.from_json(plain | options.settings), feature_map, seed=options.seed).to(device)
    fields = {field.name for field in dataclasses.fields(Schedule)}
    schedule = Schedule(**{name: getattr(options, name) for name in fields if hasattr(options, name)})
    done = fit(model, training, validation, schedule, seed=options.seed, progress=progress)
    checkpoint.save(model, weights)
    found = {"logloss": done.validation.logloss, "auc": done.validation.auc}
    counts = {"rows": len(training), "rows_bad": bad + bad_later, "epochs": done.epochs, "best_epoch": done.best_epoch}
    scores = {f"validation_{name}": value for name, value in found.items() if value is not None}
    return {name: float(value) for name, value in (scores | counts).items()}


def _make_data(world: DriftConfig, folder: Path, seed: int) -> TrainOptions:
    """Write the made-up stream: training rows, and the rest as the two streams of a replay."""
    table = make_stream(world, seed)
    table = table.append_column("stream_id", pa.array(["impressions"] * table.num_rows))
    table = table.append_column("sequence", table.column("impression_id"))
    training, rest = table.slice(0, world.training_rows), table.slice(world.training_rows)
    pq.write_table(training, folder / "training.parquet")
    pq.write_table(rest.drop_columns(["label_time", "click"]), folder / "impressions.parquet")
    labels = rest.select(["stream_id", "impression_id", "label_time", "click"]).sort_by("label_time")
    labels = labels.rename_columns(["stream_id", "impression_id", "event_time", "label"])
    labels = labels.set_column(3, "label", labels.column("label").cast(pa.float32()))
    labels = labels.append_column("sequence", pa.array(range(labels.num_rows), pa.int64()))
    pq.write_table(labels, folder / "labels.parquet")
    return TrainOptions(
        data=str(folder / "training.parquet"), categorical=["user_id", "user_group", "item_id", "cate_id"], seed=seed
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"device {name!r} is not available here ({torch.cuda.device_count()} GPUs); use device: cpu")
    return device
