"""Training examples: columns and labels as tensors, read from Parquet by a feature map that is given or fitted on the way.

All rows are held in memory: this is for data that trains in minutes. Knows no network.
"""

# R rows

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from connectors.errors import ConfigError, nearest
from models.reloop2.feature_map import Feature, FeatureMap, fit_feature
from models.reloop2.features import encode

__all__ = ["Examples", "encode_examples", "fit_feature_map", "read_table"]


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows for training or evaluation, in time order."""

    columns: dict[str, Tensor]
    label_R: Tensor
    """float32, 0 or 1."""

    def __len__(self) -> int:
        return self.label_R.shape[0]

    def take(self, rows: Tensor | slice) -> Examples:
        """Return some rows: a copy for an index, views for a slice."""
        return Examples({name: column[rows] for name, column in self.columns.items()}, self.label_R[rows])

    def to(self, device: torch.device) -> Examples:
        """Return these rows on a device."""
        return Examples({name: column.to(device) for name, column in self.columns.items()}, self.label_R.to(device))


def read_table(path: str | os.PathLike[str], columns: Sequence[str], *, time: str | None, rows: int | None) -> pa.Table:
    """Read columns of a Parquet file or folder, sorted by ``time`` (kept in file order without), the first ``rows`` of them.

    Raises ``ConfigError`` where the file cannot be read or lacks a column.
    """
    source = Path(path)
    try:
        held = pq.ParquetDataset(source).schema.names
        wanted = list(dict.fromkeys([*columns, *([] if time is None else [time])]))
        missing = [f"{name!r}{nearest(name, held)}" for name in wanted if name not in held]
        if missing:
            raise ConfigError(f"{source}: has no column {', '.join(missing)}; it has {held}")
        table = pq.read_table(source, columns=wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{source}: cannot be read as Parquet: {error}; check the path") from error
    if time is not None:
        table = table.take(pa.array(np.argsort(table.column(time).to_numpy(), kind="stable")))
    return table if rows is None else table.slice(0, rows)


def fit_feature_map(
    table: pa.Table,
    *,
    categorical: Sequence[str],
    numeric: Sequence[str] = (),
    sequences: Mapping[str, str | None] | None = None,
    max_len: int = 100,
    min_count: int = 1,
) -> FeatureMap:
    """Fit a feature map on the columns of a training table, in the order categorical, numeric, sequences.

    ``sequences``: history → the categorical feature whose table it shares, or None. ``min_count``: rarer values are unknown
    ones, which trains the unknown row. Raises ``ConfigError``, ``SchemaError``.
    """
    features: dict[str, Feature] = {}
    for name in categorical:
        features[name] = fit_feature(name, "categorical", table.column(name), min_count=min_count)
    for name in numeric:
        features[name] = fit_feature(name, "numeric", table.column(name))
    for name, owner in (sequences or {}).items():
        if owner is not None and owner not in features:
            raise ConfigError(f"sequence {name!r} shares the table of {owner!r}, which is not among {list(categorical)}")
        shared = None if owner is None else features[owner]
        column = table.column(name)
        features[name] = fit_feature(name, "sequence", column, max_len=max_len, min_count=min_count, shared_with=shared)
    return FeatureMap(tuple(features.values()))


def encode_examples(table: pa.Table, feature_map: FeatureMap, label: str, where: str) -> tuple[Examples, int]:
    """Return the usable rows of ``table`` and how many were not: a bad feature, or a label other than 0 and 1."""
    table = table.combine_chunks()
    batch = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)
    encoded = encode(batch, feature_map, where)
    kind = table.schema.field(label).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ConfigError(f"{where}: label column {label!r} is {kind}; it must hold 0 and 1")
    label_R = torch.tensor(table.column(label).cast(pa.float32()).to_numpy(zero_copy_only=False))
    good_R = ~encoded.bad_B & ((label_R == 0) | (label_R == 1))
    examples = Examples(encoded.columns, label_R)
    bad = int((~good_R).sum())
    return (examples.take(good_R) if bad else examples), bad
