"""The rows of one stream in a batch, and how far they have been taken in."""

# N rows of a stream

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from operators.memprompttss.config import Geometry
from operators.memprompttss.streams import SensorStream

__all__ = ["Job", "Tick"]

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Job:
    """Rows of one stream."""

    stream_id: str
    stream: SensorStream
    rows_N: Ints
    """Numbers of the rows within the batch."""
    cuts: Sequence[int]
    """Places in ``rows_N`` before which a gap lies."""
    late: Sequence[int] = ()
    """Places in ``rows_N`` of rows that are out of order."""
    taken: int = 0

    @property
    def slot(self) -> int:
        """The stream's slot."""
        return self.stream.slot

    def after_gap(self) -> bool:
        """Return whether the next row comes after a gap."""
        return self.taken in self.cuts

    def is_late(self) -> bool:
        """Return whether the next row is out of order."""
        return self.taken in self.late

    def take(self, geometry: Geometry, *, one_tick: bool) -> int:
        """Return how many rows are taken in next: one that is late; else up to a gap or a late one, and to the next tick, or as
        history allows.
        """
        if self.is_late():
            return 1
        end = min((cut for cut in (*self.cuts, *self.late) if cut > self.taken), default=len(self.rows_N))
        to_tick = geometry.window + self.stream.windows * geometry.stride - self.stream.received
        most = to_tick if one_tick else to_tick + geometry.stride * geometry.ahead
        return min(end - self.taken, most)


@dataclass(frozen=True, slots=True)
class Tick:
    """A window of a stream that is complete."""

    job: Job
    window: int
    """Its number since the origin."""
    key: int
    """The row that completed it."""
    received: int
    """Samples of the stream that had come when it was run."""
