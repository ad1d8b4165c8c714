"""Segments out of the states of samples: a long enough run of a state starts one, shorter runs belong to the one before.

Pure functions over what one stream and granularity knows. Samples are counted from the stream's origin.
"""

# L samples

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["NONE", "Machine", "Segment", "advance", "changes"]

Ints = npt.NDArray[np.int64]

NONE = -1
"""No segment, no run."""


@dataclass(slots=True)
class Machine:
    """Where the segmentation stands: the segment that is going on, and the run of equal states at its end."""

    start: int = NONE
    state: int = NONE
    run_start: int = NONE
    run_state: int = NONE


class Segment(NamedTuple):
    """Samples ``start`` to ``end`` - 1; ``end`` is ``NONE`` while it goes on."""

    start: int
    end: int
    state: int


def advance(machine: Machine, first: int, state_L: npt.NDArray[np.int32] | Ints, min_segment: int) -> list[Segment]:
    """Take the states of samples ``first``, ``first + 1``, ..; change ``machine``; return segments that ended or began.

    In order; a segment that begins is there with ``end`` ``NONE``. The first segment of a stream begins with its first sample,
    whatever short runs are before its first long one.
    """
    found: list[Segment] = []
    starts = np.concatenate([[0], np.flatnonzero(state_L[1:] != state_L[:-1]) + 1, [len(state_L)]])
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        state = int(state_L[begin])
        if machine.run_start == NONE or state != machine.run_state:
            machine.run_start, machine.run_state = first + begin, state
        is_long = first + end - machine.run_start >= max(min_segment, 1)
        if not is_long or (state == machine.state and machine.start != NONE):
            continue
        if machine.start == NONE:
            machine.start = 0
        else:
            found.append(Segment(machine.start, machine.run_start, machine.state))
            machine.start = machine.run_start
        machine.state = state
        found.append(Segment(machine.start, NONE, state))
    return found


def changes(old: Sequence[Segment], new: Sequence[Segment]) -> tuple[list[Segment], list[tuple[Segment, int]]]:
    """Compare two segmentations of the same samples; return segments that are gone, and those that are new or different.

    Each of the latter comes with the start of the old one that had its first sample (``NONE``: none did).
    """
    by_start = {segment.start: segment for segment in old}
    kept = {segment.start for segment in new}
    gone = [segment for segment in old if segment.start not in kept]
    changed = []
    for segment in new:
        if by_start.get(segment.start) == segment:
            continue
        before = [other.start for other in old if other.start <= segment.start]
        changed.append((segment, max(before, default=NONE)))
    return gone, changed
