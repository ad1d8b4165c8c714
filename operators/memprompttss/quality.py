"""What is put for numbers that are missing from samples, and how good each sample is then."""

# R rows of a batch, B streams, C channels

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["GOOD", "HELD", "MISSING", "OFF_RATE", "fill"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

GOOD = 0
HELD = 1
MISSING = 2
OFF_RATE = 3
"""Quality of a sample: all numbers there; some held; some held for too long, or never there; sampled at another rate."""


def fill(
    values_RC: Floats, starts_B: Ints, last_BC: Floats, held_BC: Ints, max_hold: int
) -> tuple[Floats, npt.NDArray[np.uint8], Floats, Ints]:
    """Hold the last number of a channel where one is missing.

    Rows of stream b are ``starts_B[b]`` up to the next start, in order. ``last_BC``: the last number before (NaN: none yet),
    ``held_BC``: for how many samples it has been held. Returns values without a gap (0 where there never was a number), the
    quality of each row, and ``last_BC`` and ``held_BC`` afterwards.
    """
    there_RC = np.isfinite(values_RC)
    R = len(values_RC)
    sizes_B = np.diff(np.concatenate([starts_B, [R]]))
    if there_RC.all():
        return values_RC, np.zeros(R, np.uint8), values_RC[starts_B + sizes_B - 1], np.zeros_like(held_BC)
    first_R = np.repeat(starts_B, sizes_B)
    stream_R = np.repeat(np.arange(len(starts_B)), sizes_B)
    at_R1 = np.arange(R)[:, None]
    # The newest row with a number up to each row; one before the stream's first row means: from before.
    newest_RC = np.maximum.accumulate(np.where(there_RC, at_R1, -1), axis=0)
    before_RC = newest_RC < first_R[:, None]
    filled_RC = np.where(before_RC, last_BC[stream_R], np.take_along_axis(values_RC, np.maximum(newest_RC, 0), axis=0))
    age_RC = np.where(before_RC, held_BC[stream_R] + at_R1 - first_R[:, None] + 1, at_R1 - newest_RC)
    never_RC = ~np.isfinite(filled_RC)
    quality_R = np.where((never_RC | (age_RC > max_hold)).any(1), MISSING, np.where((age_RC > 0).any(1), HELD, GOOD))
    end_B = starts_B + sizes_B - 1
    last = filled_RC[end_B]
    return np.where(never_RC, np.float32(0), filled_RC), quality_R.astype(np.uint8), last, age_RC[end_B]
