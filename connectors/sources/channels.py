"""Channels of samples: which columns of a table they are, and the one column that they are packed into (``records.SAMPLE``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, SourceError, nearest
from connectors.sources.casting import convert, is_text

__all__ = ["ALL", "Channels", "channel_columns", "check_channels", "pack"]

ALL = "all"

Channels = str | Sequence[str] | None
"""As an option: a list of columns, ``all`` of those that can be, or none."""


def check_channels(channels: Channels, allowed: Collection[str] | None = None) -> None:
    """Raise ``ConfigError`` for an option ``channels`` that is no list of different names, of ``allowed`` ones where given."""
    if channels is None or channels == ALL:
        return
    if isinstance(channels, str):
        raise ConfigError(f"channels: must be a list of columns, such as [{channels}], or all; got {channels!r}")
    twice = next((name for number, name in enumerate(channels) if name in channels[:number]), None)
    if not channels or twice is not None:
        what = f"{twice!r} stands twice" if channels else "the list is empty"
        raise ConfigError(f"channels: {what}; name columns, each once, or leave it out")
    if allowed is not None and (unknown := [name for name in channels if name not in allowed]):
        near = nearest(unknown[0], allowed)
        raise ConfigError(f"channels: there is no {unknown[0]!r}{near}; allowed: {', '.join(allowed)}")


def channel_columns(file: pa.Schema, channels: str | Sequence[str], taken: Collection[str], where: str) -> tuple[str, ...]:
    """Return the columns of a file that are channels; ``all``: those of numbers that are not ``taken`` otherwise.

    Raise ``SourceError`` where one cannot hold numbers, or none is there. Names that the file lacks are returned, too.
    """
    if channels != ALL:
        for field in file:
            if field.name in channels and not _may_hold_numbers(field.type):
                raise SourceError(f"{where}: channels: column {field.name!r} is {field.type}; a channel holds numbers")
        return tuple(channels)
    found = tuple(
        field.name
        for field in file
        if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)) and field.name not in taken
    )
    if not found:
        raise SourceError(f"{where}: channels: no column but the keys and 'columns' holds numbers; there are {file.names}")
    return found


def pack(raw: pa.RecordBatch, channels: Sequence[str]) -> tuple[pa.Array, list[tuple[str, pa.Array]]]:
    """Return columns as one of lists, and for each that has values that are no numbers which these are; they are null."""
    rows, width = raw.num_rows, len(channels)
    values = np.empty((rows, width), np.float32)
    missing = np.zeros((rows, width), np.bool_)
    wrong = []
    for place, name in enumerate(channels):
        source = raw.column(name)
        if pa.types.is_boolean(source.type):
            source = source.cast(pa.uint8())
        if pa.types.is_integer(source.type):
            source = source.cast(pa.float64(), safe=False)  # a channel is float32, so rounding is no loss to speak of
        channel = convert(convert(source, pa.float64()), pa.float32())
        if channel.null_count:
            if channel.null_count > source.null_count:
                wrong.append((name, pc.and_(channel.is_null(), source.is_valid())))
            missing[:, place] = channel.is_null().to_numpy(zero_copy_only=False)
        values[:, place] = channel.to_numpy(zero_copy_only=False)
    flat = pa.array(values.reshape(-1), mask=missing.reshape(-1) if missing.any() else None)
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), flat), wrong


def _may_hold_numbers(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or is_text(kind)
    )
