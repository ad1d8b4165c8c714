"""Even times of a stream, and the numbers there: means of the samples of each interval, or lines between samples.

Sums run in the order of samples, whatever they are cut into, so that the outcome has the same bits.
"""

# N samples of a stream, M times, C channels

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Means", "interval_of", "lines", "means", "time_of"]

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def time_of(number_M: Ints, rate_hz: float) -> Ints:
    """Return when each interval begins, in microseconds since the first."""
    times: Ints = np.rint(number_M * (1e6 / rate_hz)).astype(np.int64)
    return times


def interval_of(time_us_N: Ints, rate_hz: float) -> Ints:
    """Return the interval that each time since the first one lies in: [time_of(n), time_of(n + 1))."""
    number_N: Ints = np.floor(time_us_N * (rate_hz / 1e6)).astype(np.int64)
    number_N -= time_of(number_N, rate_hz) > time_us_N
    number_N += time_of(number_N + 1, rate_hz) <= time_us_N
    return number_N


class Means(NamedTuple):
    """What the intervals that are over have given, and what the open one has so far."""

    mean_MC: Doubles
    """NaN: no number came."""
    sum_C: Doubles
    count_C: Ints


def means(number_N: Ints, values_NC: Doubles, first: int, sum_C: Doubles, count_C: Ints) -> Means:
    """Return the means of the intervals ``first`` up to that of the last sample, which stays open.

    ``number_N``: the interval of each sample, in order; ``sum_C``, ``count_C``: what interval ``first`` has already.
    """
    at_N, there_NC = number_N - first, np.isfinite(values_NC)
    size = int(at_N[-1]) + 1
    sums, counts = np.empty((size, len(sum_C))), np.empty((size, len(sum_C)), np.int64)
    at_1N = np.concatenate([[0], at_N])
    for c in range(len(sum_C)):  # bincount adds in order, beginning with what is there
        weights = np.concatenate([sum_C[c : c + 1], np.where(there_NC[:, c], values_NC[:, c], 0.0)])
        sums[:, c] = np.bincount(at_1N, weights, size)
        counts[:, c] = np.bincount(at_N[there_NC[:, c]], minlength=size)
    counts[0] += count_C
    mean_MC = np.full((size - 1, len(sum_C)), np.nan)
    np.divide(sums[:-1], counts[:-1], out=mean_MC, where=counts[:-1] > 0)
    return Means(mean_MC, sums[-1].copy(), counts[-1].copy())


def lines(time_us_M: Ints, time_us_N: Ints, values_NC: Doubles) -> Doubles:
    """Return the numbers at times between the first and the last sample; NaN where a sample beside it has none."""
    after_M = np.searchsorted(time_us_N, time_us_M)
    before_M = np.maximum(after_M - 1, 0)
    exact_M = time_us_N[after_M] == time_us_M
    span_M = np.where(exact_M, 1, time_us_N[after_M] - time_us_N[before_M])
    part_M1 = ((time_us_M - time_us_N[before_M]) / span_M)[:, None]
    between_MC = values_NC[before_M] * (1 - part_M1) + values_NC[after_M] * part_M1
    found: Doubles = np.where(exact_M[:, None], values_NC[after_M], between_MC)
    return found
