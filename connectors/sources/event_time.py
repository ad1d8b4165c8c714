"""Event times of every notation as microseconds since 1970 UTC. Times without a zone are taken for UTC."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa

from connectors.errors import ConfigError
from connectors.records import PER_SECOND
from connectors.sources.casting import convert, tolerant
from connectors.sources.time_text import times_of_text

__all__ = ["MessageTimeUnit", "TimeUnit", "parse_start_time", "times_us"]

MessageTimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]
TimeUnit = Literal[MessageTimeUnit, "rows"]
"""Notations of a time column: numbers since 1970, ISO 8601, by the column's type, or no column but evenly spaced rows."""

# Years 1 to 9999, what Python's datetime can show.
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_799_999_999


def parse_start_time(text: str) -> int:
    """Return the microseconds since 1970 UTC of an ISO 8601 time. Raise ``ConfigError`` if it is none."""
    time_us = times_us(pa.array([text], pa.string()), "iso")[0].as_py()
    if time_us is None:
        raise ConfigError(f"start_time: {text!r} is not an ISO 8601 time; write for example '2026-03-01T08:00:00Z'")
    return int(time_us)


def times_us(array: pa.Array, unit: str) -> pa.Array:
    """Return event times as int64 microseconds; null where there is none or it is beyond year 1 to 9999.

    ``unit`` is a ``TimeUnit`` but auto and rows; columns of times and dates are ``iso``.
    """
    if unit == "iso":
        if pa.types.is_date(array.type):
            array = tolerant(array, lambda part: part.cast(pa.timestamp("us")), pa.timestamp("us"))
        if not pa.types.is_timestamp(array.type):
            return _within(times_of_text(convert(array, pa.string()), "us"), 1, 1)
        array, unit = array.view(pa.int64()), array.type.unit
    if unit == "ns":
        return _within(convert(array, pa.int64()), 1, 1000)
    if pa.types.is_integer(array.type):
        return _within(convert(array, pa.int64()), 1_000_000 // PER_SECOND[unit], 1)
    floats = convert(array, pa.float64())
    scaled = floats.to_numpy(zero_copy_only=False) * (1_000_000 / PER_SECOND[unit])
    fine = (scaled >= _MIN_US) & (scaled <= _MAX_US)  # false for NaN, which stands for null too
    us = np.rint(np.where(fine, scaled, 0.0)).astype(np.int64)
    return pa.array(us) if fine.all() else pa.array(us, mask=~fine)


def _within(numbers: pa.Array, factor: int, divisor: int) -> pa.Array:
    """Return ``numbers * factor // divisor``, null where that is no time."""
    values = (numbers.fill_null(0) if numbers.null_count else numbers).to_numpy()
    missing = (values > _MAX_US * divisor // factor) | (values < _MIN_US * divisor // factor)
    if numbers.null_count:
        missing |= numbers.is_null().to_numpy(zero_copy_only=False)
    if not missing.any():
        return pa.array(values * factor // divisor if divisor > 1 else values * factor)
    return pa.array(np.where(missing, 0, values) * factor // divisor, mask=missing)
