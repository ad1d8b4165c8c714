"""Whether a stream is sampled as often as its model expects. A model of samples has no idea of seconds, so nobody else tells.

Measured over blocks of intervals, by event time: jitter is no fault, and neither is a sample lost now and then. Works on what
an operator has accepted, so it holds for files, topics and live sensors alike, however rows are cut into batches.
"""

# N samples of one stream

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from connectors.options import option
from operators.streams import NEVER_US, Stream

__all__ = ["BLOCK", "RATE_STATUSES", "RateOptions", "SampledStream", "forget_rate", "measure_rate", "rate_error"]

BLOCK = 64
"""Intervals after which the rate is told anew."""

PAUSE = 4
"""An interval of more than so many expected ones is a pause, unless most of a block are."""

RATE_STATUSES = {"wrong_rate": "the stream is sampled at another rate than `rate_hz`; `error` says at which"}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RateOptions:
    """Options of operators whose model knows one sampling rate."""

    rate_hz: float | None = option(
        None, "Samples per second that the model expects of a stream; null: not checked.", unit="Hz", gt=0
    )
    rate_tolerance: float = option(0.05, "Share of `rate_hz` by which the measured rate may differ.", gt=0, lt=1)


@dataclass(slots=True)
class SampledStream(Stream):
    """A stream whose rate is measured."""

    rate_intervals: int = 0
    """Of the block that has begun; the other figures too are of that block."""
    rate_pauses: int = 0
    rate_pauses_us: int = 0
    rate_us: int = 0
    """Sum of the intervals that are no pauses."""
    rate_wrong_hz: float = 0.0
    """What the last whole block has shown, if that was out of bounds."""


def forget_rate(stream: SampledStream) -> None:
    """Begin anew, as after a gap. The next verdict comes after a whole block."""
    stream.rate_intervals = stream.rate_pauses = stream.rate_pauses_us = stream.rate_us = 0
    stream.rate_wrong_hz = 0.0


def measure_rate(stream: SampledStream, last_us: int, times_us_N: Ints, options: RateOptions) -> Floats:
    """Take note of accepted samples; return per sample the wrong rate in Hz that holds for it, NaN where nothing is wrong.

    ``last_us`` is the time of the sample before (``NEVER_US``: none), ``times_us_N`` rise. A verdict holds from the sample that
    ends its block to the one before the next. Without ``rate_hz`` nothing is measured.
    """
    wrong_N = np.full(len(times_us_N), np.nan)
    if options.rate_hz is None or not len(times_us_N):
        return wrong_N
    known = last_us != NEVER_US
    steps = np.diff(times_us_N, prepend=last_us) if known else np.diff(times_us_N)
    pauses = steps > PAUSE * 1e6 / options.rate_hz
    start, first = 0, 0 if known else 1  # the first sample of all ends no interval
    if first and stream.rate_wrong_hz:
        wrong_N[0] = stream.rate_wrong_hz
    while start < len(steps):
        stop = min(len(steps), start + BLOCK - stream.rate_intervals)
        if stream.rate_wrong_hz:
            wrong_N[first + start : first + stop] = stream.rate_wrong_hz
        own, paused = steps[start:stop], pauses[start:stop]
        stream.rate_intervals += stop - start
        stream.rate_pauses += int(paused.sum())
        stream.rate_pauses_us += int(own[paused].sum())
        stream.rate_us += int(own[~paused].sum())
        if stream.rate_intervals == BLOCK:
            _judge(stream, options)
            wrong_N[first + stop - 1] = stream.rate_wrong_hz or np.nan
        start = stop
    return wrong_N


def rate_error(hz: float, options: RateOptions) -> str:
    """Say in a row's ``error`` what is wrong and what to do."""
    return (
        f"sampled at {hz:.4g} Hz, measured over {BLOCK} samples; rate_hz is {options.rate_hz:g}, give or take "
        f"{options.rate_tolerance:.0%}: put the operator resample before it, or use a model of this rate"
    )


def _judge(stream: SampledStream, options: RateOptions) -> None:
    """Tell the rate of a whole block, and begin the next."""
    assert options.rate_hz is not None
    count, span_us = BLOCK - stream.rate_pauses, stream.rate_us
    if 2 * stream.rate_pauses > BLOCK:  # no pauses: the stream is that slow
        count, span_us = BLOCK, stream.rate_us + stream.rate_pauses_us
    hz = count * 1e6 / span_us if span_us else math.inf
    forget_rate(stream)
    if abs(hz - options.rate_hz) > options.rate_tolerance * options.rate_hz:
        stream.rate_wrong_hz = hz
