"""How far tasks are in event time: a source task over its splits, an operator task over its inputs.

A watermark says that no earlier rows are expected. They are kept and sent only where an operator aligns by event time, and
never go back: what comes behind them is late. Times are microseconds since the epoch, as in ``event_time``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.records import NEVER_US, TIME_TYPE
from pipelines.runtime.clock import Clock
from pipelines.runtime.messages import END_OF_TIME, Edge, SplitState

__all__ = ["InputTimes", "SplitTimes", "event_times"]

_AHEAD_ROWS = 1 << 16
"""Rows that a source task reads from its other splits while the one that is furthest behind has none."""


def event_times(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the event times of a batch in microseconds."""
    column = batch.column("event_time")
    if column.type != TIME_TYPE:
        column = column.cast(TIME_TYPE)
    times: npt.NDArray[np.int64] = column.view(pa.int64()).to_numpy(zero_copy_only=False)
    return times


class SplitTimes:
    """The splits of one source task. Its watermark is the latest event time of the open split that is furthest behind.

    So splits are in step: the one furthest behind is read first. One that is opened while others are read begins at the
    watermark; then the times of the splits say all there is to know, and a resumed run goes on from them. A split that has had
    no rows for ``idle_s`` does not count until it has some again.
    """

    def __init__(self, splits: Mapping[str, SplitState], idle_s: float, clock: Clock) -> None:
        self._times = {name: NEVER_US if state.time_us is None else state.time_us for name, state in splits.items()}
        self._idle_s = idle_s
        self._clock = clock
        self._silent_since: dict[str, float] = {}
        self._sent = NEVER_US
        self._ahead = 0  # rows read since the watermark moved

    def add(self, splits: Iterable[str]) -> None:
        """Take on more splits."""
        self._times.update(dict.fromkeys(splits, NEVER_US))

    def opened(self, split: str) -> int | None:
        """Note that a split is read from now on; return its time, None where nothing is known."""
        self._times[split] = time = max(self._times[split], self._sent)
        return None if time == NEVER_US else time

    def order(self, splits: Iterable[str]) -> list[str]:
        """Return which of the open splits may be read next, the one to be asked first at the front."""
        ordered = sorted(splits, key=self._times.__getitem__)
        if self._ahead < _AHEAD_ROWS:
            return ordered
        behind = min((self._times[name] for name in ordered if not self._idle(name)), default=NEVER_US)
        return [name for name in ordered if self._times[name] <= behind or self._idle(name)]

    def read(self, split: str, batch: pa.RecordBatch) -> int:
        """Note rows of a split; return the latest event time that it has had."""
        self._silent_since.pop(split, None)
        self._times[split] = latest = max(self._times[split], int(event_times(batch).max()))
        self._ahead += batch.num_rows
        return latest

    def silent(self, split: str) -> None:
        """Note that a split has no rows now."""
        self._silent_since.setdefault(split, self._clock())

    def advance(self, splits: Iterable[str]) -> int | None:
        """Return the watermark if it has moved, given the splits that have not ended."""
        splits = list(splits)
        counting = [self._times[name] for name in splits if not self._idle(name)]
        if splits and not counting:
            return None
        watermark = min(counting, default=END_OF_TIME)
        if watermark <= self._sent:
            return None
        self._sent, self._ahead = watermark, 0
        return watermark

    def _idle(self, split: str) -> bool:
        since = self._silent_since.get(split)
        return since is not None and self._clock() - since >= self._idle_s


class InputTimes:
    """The inputs of an operator task: its watermark is that of the input furthest behind."""

    def __init__(self, edges: Iterable[Edge]) -> None:
        self._times = dict.fromkeys(edges, NEVER_US)
        self._least = NEVER_US

    def advance(self, edge: Edge, watermark_us: int) -> int | None:
        """Note the watermark of one input; return that of all if it has moved."""
        self._times[edge] = max(self._times[edge], watermark_us)
        least = min(self._times.values())
        if least <= self._least:
            return None
        self._least = least
        return least
