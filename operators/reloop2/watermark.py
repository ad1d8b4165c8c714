"""How far event time has come: per lane, and where the input has partitions, as far as the slowest active one.

Knows event times only, no clock: a partition is idle when the others have left it behind by more than ``idle_us``. An event
time that jumps ahead of everything seen counts as a jump of ``jump_us`` at most; else one row from the future would time out
all that wait. Invariant: the result depends on the order of the rows, not on how they are cut into calls.
"""

# S lanes, B rows of a call, P partitions

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from operators.reloop2.ids import Bools, Ints

__all__ = ["MAX_PARTITIONS", "NEVER", "Watermarks"]

NEVER = -(2**62)
"""Before all event times."""

MAX_PARTITIONS = 4096
"""More of them, and the one furthest behind is forgotten."""


class Watermarks:
    """Event time of ``lanes`` lanes. Partitions are for a single lane."""

    def __init__(self, lanes: int, *, lateness_us: int, idle_us: int, jump_us: int) -> None:
        self._lateness_us, self._idle_us, self._jump_us = lateness_us, idle_us, jump_us
        self.latest_S = np.full(lanes, NEVER)
        """Latest event time, jumps cut short."""
        self.partitions: dict[str, int] = {}
        """Partition → its latest event time, in the order of first appearance."""

    def advance(self, lanes_B: Ints, time_us_B: Ints) -> tuple[Ints, Bools]:
        """Take note of rows in order; return their event times with jumps cut short, and which rows jumped."""
        jumped_B = np.zeros(len(time_us_B), np.bool_)
        known_B = self.latest_S[lanes_B] != NEVER
        if known_B.all() and np.all(time_us_B - self.latest_S[lanes_B] <= self._jump_us):
            np.maximum.at(self.latest_S, lanes_B, time_us_B)
            return time_us_B, jumped_B
        # Rows that may jump are rare; whether one does depends on the row before it.
        times = time_us_B.tolist()
        for row, (lane, time) in enumerate(zip(lanes_B.tolist(), times, strict=True)):
            latest = int(self.latest_S[lane])
            if latest != NEVER and time > latest + self._jump_us:
                times[row] = time = latest + self._jump_us
                jumped_B[row] = True
            if time > latest:
                self.latest_S[lane] = time
        return np.array(times, np.int64), jumped_B

    def note_partitions(self, names: Sequence[str], codes_B: Ints, time_us_B: Ints) -> None:
        """Take note of the partitions of rows that ``advance`` has returned; ``codes_B`` numbers ``names``."""
        latest_P = np.full(len(names), NEVER)
        np.maximum.at(latest_P, codes_B, time_us_B)
        first_P = np.full(len(names), len(codes_B))
        np.minimum.at(first_P, codes_B, np.arange(len(codes_B)))
        for p in np.argsort(first_P, kind="stable").tolist():
            if latest_P[p] != NEVER:
                self.partitions[names[p]] = max(self.partitions.get(names[p], NEVER), int(latest_P[p]))
        while len(self.partitions) > MAX_PARTITIONS:
            del self.partitions[min(self.partitions, key=self.partitions.__getitem__)]

    def of(self, lanes_L: Ints) -> Ints:
        """Return the watermark of lanes: no earlier event time is waited for any longer."""
        latest_L = self.latest_S[lanes_L]
        if self.partitions:
            active_us = int(latest_L[0]) - self._idle_us
            latest_L = np.array([min(time for time in self.partitions.values() if time >= active_us)])
        return np.where(latest_L == NEVER, NEVER, latest_L - self._lateness_us)

    def clear(self, lane: int) -> None:
        """Forget a lane."""
        self.latest_S[lane] = NEVER
