"""Event times of every notation as microseconds since 1970 UTC. Times without a zone are taken for UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError
from connectors.records import TIME_TYPE
from connectors.sources.casting import convert, tolerant

__all__ = ["MessageTimeUnit", "TimeUnit", "parse_start_time", "times_us"]

MessageTimeUnit = Literal["auto", "s", "ms", "us", "ns", "iso"]
TimeUnit = Literal[MessageTimeUnit, "rows"]
"""Notations of a time column: numbers since 1970, ISO 8601, by the column's type, or no column but evenly spaced rows."""

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Years 1 to 9999, what Python's datetime can show.
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_799_999_999
_ZONE = re.compile(r"(Z|[+-]\d{2}:?\d{2})$")


def parse_start_time(text: str) -> int:
    """Return the microseconds since 1970 UTC of an ISO 8601 time. Raise ``ConfigError`` if it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"start_time: {text!r} is not an ISO 8601 time; write for example '2026-03-01T08:00:00Z'") from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def times_us(array: pa.Array, unit: str) -> pa.Array:
    """Return event times as int64 microseconds; null where there is none or it is beyond year 1 to 9999.

    ``unit`` is a ``TimeUnit`` but auto and rows; columns of times and dates are ``iso``.
    """
    if unit == "iso":
        if pa.types.is_date(array.type):
            array = tolerant(array, lambda part: part.cast(pa.timestamp("us")), pa.timestamp("us"))
        if not pa.types.is_timestamp(array.type):
            return _within(tolerant(convert(array, pa.string()), _parse_iso, pa.int64()), 1, 1)
        array, unit = array.view(pa.int64()), array.type.unit
    if unit == "ns":
        return _within(convert(array, pa.int64()), 1, 1000)
    if pa.types.is_integer(array.type):
        return _within(convert(array, pa.int64()), 1_000_000 // _PER_SECOND[unit], 1)
    floats = convert(array, pa.float64())
    scaled = floats.to_numpy(zero_copy_only=False) * (1_000_000 / _PER_SECOND[unit])
    fine = (scaled >= _MIN_US) & (scaled <= _MAX_US)  # false for NaN, which stands for null too
    us = np.rint(np.where(fine, scaled, 0.0)).astype(np.int64)
    return pa.array(us) if fine.all() else pa.array(us, mask=~fine)


def _within(numbers: pa.Array, factor: int, divisor: int) -> pa.Array:
    """Return ``numbers * factor // divisor``, null where that is no time."""
    missing = numbers.is_null().to_numpy(zero_copy_only=False)
    values = numbers.fill_null(0).to_numpy()
    missing = missing | (values > _MAX_US * divisor // factor) | (values < _MIN_US * divisor // factor)
    if not missing.any():
        return pa.array(values * factor // divisor)
    return pa.array(np.where(missing, 0, values) * factor // divisor, mask=missing)


def _parse_iso(part: pa.Array) -> pa.Array:
    known = part.drop_null()
    zoned = len(known) > 0 and _ZONE.search(known[0].as_py().strip()) is not None
    kind = TIME_TYPE if zoned else pa.timestamp("us")
    return pc.utf8_trim_whitespace(part).cast(kind).view(pa.int64())
