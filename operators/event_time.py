"""How far event time has advanced, per slot, for operators with timeouts and windows. Knows no clock and no labels.

In an aligned run (``Context.aligned``) rows come in the order of event time, so event time has reached a row when the row
comes, whether or not ``advance`` has said so before: the steps in which ``advance`` comes change nothing. Without alignment
event time is that of the latest row that was accepted. What is due stays open for ``lateness_s`` longer: for rows that are out
of order, in an aligned run for control rows, which come behind the data rows of their span.
"""

# S slots, B rows of a call

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.errors import ConfigError
from connectors.records import NEVER_US

__all__ = ["EventTime", "earlier", "event_times", "microseconds"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class EventTime:
    """Event time of ``slots`` slots, in microseconds; ``NEVER_US`` before the first row."""

    def __init__(
        self, name: str, slots: int, *, aligned: bool, lateness_s: float = 0.0, max_jump_s: float | None = None
    ) -> None:
        """Raise ``ConfigError`` for ``max_jump_s`` in an aligned run: nothing is ahead of the rows that are handed over."""
        if aligned and max_jump_s is not None:
            raise ConfigError(
                f"{name}: max_jump_s={max_jump_s} does nothing with align_s, which hands rows over in the order of event time; "
                "remove one of them"
            )
        self.aligned = aligned
        self._lateness_us = microseconds(lateness_s)
        self._jump_us = None if max_jump_s is None else microseconds(max_jump_s)
        self.latest_S: Ints = np.full(slots, NEVER_US)
        """Latest event time of each slot's rows, jumps cut short."""

    def note(self, slots_B: Ints, time_us_B: Ints) -> tuple[Ints, Bools]:
        """Take note of rows in order; return their event times with jumps cut short, and which rows jumped."""
        jumped_B = np.zeros(len(time_us_B), np.bool_)
        latest_B = self.latest_S[slots_B]
        known_B = latest_B != NEVER_US
        if self._jump_us is None or (known_B.all() and np.all(time_us_B - latest_B <= self._jump_us)):
            np.maximum.at(self.latest_S, slots_B, time_us_B)
            return time_us_B, jumped_B
        # Rows that may jump are rare; whether one does depends on the row before it.
        times = time_us_B.tolist()
        for row, (slot, time_us) in enumerate(zip(slots_B.tolist(), times, strict=True)):
            latest_us = int(self.latest_S[slot])
            if latest_us != NEVER_US and time_us > latest_us + self._jump_us:
                times[row] = time_us = latest_us + self._jump_us
                jumped_B[row] = True
            self.latest_S[slot] = max(time_us, latest_us)
        return np.array(times, np.int64), jumped_B

    def at_row(self, slots_B: Ints, time_us_B: Ints) -> Ints:
        """Return event time just before rows, of distinct slots, are noted."""
        latest_B = self.latest_S[slots_B]
        return np.maximum(latest_B, time_us_B) if self.aligned else latest_B

    def advance(self, watermark_us: int) -> None:
        """Take note that all rows before this time have been handed over."""
        np.maximum(self.latest_S, watermark_us, out=self.latest_S)

    def due(self, time_us_B: Ints) -> Ints:
        """Return the time up to which deadlines have passed when event time is ``time_us_B``."""
        return earlier(time_us_B, self._lateness_us)

    def clear(self, slots_N: Ints) -> None:
        """Forget slots."""
        self.latest_S[slots_N] = NEVER_US


def earlier(time_us_B: Ints, by_us: int) -> Ints:
    """Subtract from event times; ``NEVER_US`` stays what it is."""
    return np.where(time_us_B == NEVER_US, NEVER_US, time_us_B - by_us)


def event_times(batch: pa.RecordBatch) -> Ints:
    """Return the event times of a batch in microseconds, [B]."""
    times: Ints = batch.column("event_time").cast(pa.int64()).to_numpy(zero_copy_only=False)
    return times


def microseconds(seconds: float) -> int:
    """Return a duration in microseconds."""
    return round(seconds * 1e6)
