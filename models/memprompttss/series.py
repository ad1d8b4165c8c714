"""Labeled series of sensors from CSV and Parquet files, cut into subsequences, split without a look at what is held out."""

# L samples, C channels, N subsequences

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as parquet
import torch
from torch import Tensor

from connectors.errors import ConfigError

__all__ = ["Series", "Split", "SplitBy", "cut", "downsampled", "read_series", "regions", "split", "statistics", "vary"]

SplitBy = Literal["time", "file"]


@dataclass(frozen=True, slots=True)
class Series:
    """One file."""

    name: str
    x_LC: Tensor
    """float32, as it stands in the file."""
    label_L: Tensor
    """int64, as it stands in the file."""
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Which subsequences are for what. Each is a pair: number of the series, first sample."""

    train: list[tuple[int, int]]
    validation: list[tuple[int, int]]
    test: list[tuple[int, int]]


def read_series(pattern: str, label: str | None = None) -> list[Series]:
    """Read the files of a folder or glob in the order of their names.

    ``label``: the column of the states; None: the last one. All other numeric columns are channels. Raise ``ConfigError`` for
    files that do not fit together, and for what is no number.
    """
    place = Path(pattern)
    names = sorted(str(p) for p in place.iterdir()) if place.is_dir() else sorted(glob.glob(pattern))  # noqa: PTH207 - absolute patterns, too
    files = [Path(name) for name in names if name.endswith((".csv", ".parquet"))]
    if not files:
        raise ConfigError(f"data: no .csv or .parquet file in {pattern}; give a folder, a file or a glob")
    found = [_read(file, label) for file in files]
    for one in found[1:]:
        if one.channels != found[0].channels:
            raise ConfigError(
                f"data: {one.name} has the channels {list(one.channels)}, {found[0].name} has {list(found[0].channels)}; all "
                "files need the same columns in the same order"
            )
    return found


def _read(file: Path, label: str | None) -> Series:
    try:
        table: pa.Table = csv.read_csv(file) if file.suffix == ".csv" else parquet.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"data: {file} cannot be read: {error}") from error
    state = label or table.schema.names[-1]
    if state not in table.schema.names or table.num_columns < 2:
        raise ConfigError(f"data: {file} has no label column {state!r} beside channels; it has {table.schema.names}")
    channels = [name for name in table.schema.names if name != state]
    columns = []
    for name in channels:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ConfigError(f"data: column {name!r} of {file} is {kind}; channels are numbers: remove the column")
        columns.append(table.column(name).cast(pa.float32()).to_numpy())
    x_LC = torch.from_numpy(np.stack(columns, axis=1).copy())
    bad = int((~x_LC.isfinite()).any(1).sum())
    labels = table.column(state)
    if bad or labels.null_count:
        raise ConfigError(
            f"data: {file} has {bad} rows with a missing number and {labels.null_count} without a label; remove them"
        )
    try:
        whole = pc.cast(labels, pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"data: label column {state!r} of {file} is {labels.type}; states are whole numbers") from error
    return Series(file.stem, x_LC, torch.from_numpy(whole.copy()), tuple(channels))


def downsampled(one: Series, by: int) -> Series:
    """Average the samples of each group; the state is that of its middle."""
    groups, channels = len(one.x_LC) // by, one.x_LC.shape[1]
    x_LC = one.x_LC[: groups * by].reshape(groups, by, channels).mean(1)
    return Series(one.name, x_LC, one.label_L[by // 2 :: by][:groups], one.channels)


def cut(series: Sequence[Series], length: int) -> list[tuple[int, int]]:
    """Return subsequences of ``length`` samples that do not overlap, file by file."""
    return [(i, first) for i, one in enumerate(series) for first in range(0, len(one.x_LC) - length + 1, length)]


def split(series: Sequence[Series], length: int, by: SplitBy, validation: float, test: float) -> Split:
    """Split into training, validation and test: the last subsequences of each file (``time``), or the last files (``file``)."""
    parts: tuple[list[tuple[int, int]], ...] = ([], [], [])
    pieces = cut(series, length)
    if by == "file":
        held, last = round(validation * len(series)), round(test * len(series))
        limits = (len(series) - last - held, len(series) - last)
        for piece in pieces:
            parts[sum(piece[0] >= limit for limit in limits)].append(piece)
    else:
        for i in range(len(series)):
            mine = [piece for piece in pieces if piece[0] == i]
            limits = (int(len(mine) * (1 - validation - test)), int(len(mine) * (1 - test)))
            for number, piece in enumerate(mine):
                parts[sum(number >= limit for limit in limits)].append(piece)
    if not parts[0]:
        raise ConfigError(
            f"data: nothing is left to learn from: {len(pieces)} subsequences of {length} samples in {len(series)} files, of "
            f"which {validation + test:.0%} are held out; give longer files, or a smaller window"
        )
    return Split(*parts)


def regions(pieces: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return for each subsequence where the unbroken part that it belongs to begins and ends, in samples of its file."""
    found: list[list[int]] = []
    of_piece, before = [], (-1, -1)
    for number, first in pieces:
        if (number, first - length) != before:
            found.append([first, first])
        found[-1][1] = first + length
        of_piece.append(len(found) - 1)
        before = (number, first)
    return [(found[at][0], found[at][1]) for at in of_piece]


def vary(
    x_LC: Tensor, state_L: Tensor, region: tuple[int, int], length: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut ``length`` samples from anywhere in a region, played up to ``share`` faster or slower.

    Values between samples are linear. Returns samples [length, C] and states [length].
    """
    first, end = region
    start, speed = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    step = min(1 + share * (2 * speed - 1), (end - first - 1) / max(1, length - 1))
    at_N = first + start * (end - first - 1 - step * (length - 1)) + step * torch.arange(length, dtype=torch.float64)
    low_N = at_N.floor().long().clamp(first, end - 1)
    high_N = (low_N + 1).clamp_max(end - 1)
    part_N1 = (at_N - low_N).clamp(0, 1)[:, None].to(x_LC.dtype)
    return x_LC[low_N] * (1 - part_N1) + x_LC[high_N] * part_N1, state_L[torch.where(part_N1[:, 0] < 0.5, low_N, high_N)]


def statistics(series: Sequence[Series], pieces: Sequence[tuple[int, int]], length: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over these subsequences."""
    x_RC = torch.cat([series[i].x_LC[first : first + length] for i, first in pieces]).double()
    return x_RC.mean(0).float(), x_RC.std(0, unbiased=False).clamp_min(1e-6).float()
