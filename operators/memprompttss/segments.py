"""From states of samples to segments: a run of a state that is long enough starts one, shorter runs belong to the one before.

By index arithmetic over all streams at once; the same machine serves what comes and what is segmented again. Knows no memory.
"""

# B streams, N samples of each, R runs, L long runs, E segments that begin, in order of streams and of samples

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MACHINE", "NONE", "Begun", "Segment", "advance", "changes"]

Ints = npt.NDArray[np.int64]

NONE = -1
"""No segment, no run."""

MACHINE = ("start", "state", "run_start", "run_state")
"""Where a segmentation stands: the segment that is going on, and the run of equal states at its end."""


class Segment(NamedTuple):
    """Samples ``start`` to ``end`` - 1; ``end`` is ``NONE`` while it goes on."""

    start: int
    end: int
    state: int


class Begun(NamedTuple):
    """Segments that begin."""

    of_E: Ints
    """The number of the stream."""
    start_E: Ints
    state_E: Ints
    before_E: Ints
    """Start of the segment that ends there; ``NONE``: the first one of a stream begins."""
    before_state_E: Ints


def advance(machine_B4: Ints, first_B: Ints, state_BN: npt.NDArray[np.int32] | Ints, min_segment: int) -> tuple[Ints, Begun]:
    """Take the states of samples ``first_B``, ``first_B + 1``, ..; return the machines afterwards, and segments that began.

    The first segment of a stream begins with its first sample, whatever short runs are before its first long one.
    """
    N = state_BN.shape[1]
    start_B, segment_state_B, run_start_B, run_state_B = machine_B4.T
    turns_BN = np.ones(state_BN.shape, np.bool_)
    turns_BN[:, 1:] = state_BN[:, 1:] != state_BN[:, :-1]
    flat_R = np.flatnonzero(turns_BN)
    of_R, at_R = np.divmod(flat_R, N)
    state_R = state_BN.ravel()[flat_R].astype(np.int64)
    end_R = np.append(flat_R[1:], state_BN.size) - of_R * N + first_B[of_R]
    goes_on_R = (at_R == 0) & (run_start_B[of_R] != NONE) & (state_R == run_state_B[of_R])
    begin_R = np.where(goes_on_R, run_start_B[of_R], first_B[of_R] + at_R)
    long_L = np.flatnonzero(end_R - begin_R >= max(min_segment, 1))
    of_L, state_L = of_R[long_L], state_R[long_L]
    leads_L = np.append(True, of_L[1:] != of_L[:-1])[: len(of_L)]
    before_L = np.where(leads_L, segment_state_B[of_L], np.append(NONE, state_L[:-1])[: len(state_L)])
    is_first_L = leads_L & (start_B[of_L] == NONE)
    began_E = np.flatnonzero(is_first_L | (state_L != before_L))
    of_E, state_E, is_first_E = of_L[began_E], state_L[began_E], is_first_L[began_E]
    start_E = np.where(is_first_E, 0, begin_R[long_L[began_E]])
    follows_E = np.append(False, of_E[1:] == of_E[:-1])[: len(of_E)]
    last_E = np.append(~follows_E[1:], True)[: len(of_E)]
    before_E = np.where(follows_E, np.append(NONE, start_E[:-1])[: len(of_E)], start_B[of_E])
    last_R = np.append(of_R[1:] != of_R[:-1], True)
    after_B4 = np.stack([start_B, segment_state_B, begin_R[last_R], state_R[last_R]], axis=1)
    after_B4[of_E[last_E], 0], after_B4[of_E[last_E], 1] = start_E[last_E], state_E[last_E]
    return after_B4, Begun(of_E, start_E, state_E, before_E, before_L[began_E])


def changes(old: Sequence[Segment], new: Sequence[Segment]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Compare two segmentations of the same samples; return segments that are gone, and those that are new or different.

    Each of the latter comes with the start of the old one that had its first sample (``NONE``: none did).
    """
    by_start = {segment.start: segment for segment in old}
    kept = {segment.start for segment in new}
    gone = [segment for segment in old if segment.start not in kept]
    starts = sorted(by_start)
    changed = []
    for segment in new:
        if by_start.get(segment.start) != segment:
            behind = bisect_right(starts, segment.start)
            changed.append((segment, starts[behind - 1] if behind else NONE))
    return gone, changed
