"""Counters of one task: plain numbers that only the task's own thread writes; others read copies."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from pipelines.runtime.messages import TaskId
from pipelines.runtime.tally import Tally

__all__ = ["DUPLICATE_MESSAGE", "TaskStats"]

DUPLICATE_MESSAGE = "duplicate message"
"""Reason for which a message is dropped that has come before: nothing is lost."""


@dataclass(slots=True, kw_only=True)
class TaskStats:
    """What a task has done in this attempt."""

    task: TaskId
    kind: Literal["source", "operator", "sink"]
    rows_in: int = 0
    """Rows read (source), processed (operator) or written (sink)."""
    rows_out: int = 0
    control_rows: int = 0
    batches: int = 0
    step_s: float = 0.0
    """Seconds inside the reader, the operator or the sink."""
    queue_wait_s: float = 0.0
    """Summed over batches: from the arrival of the oldest row to the start of the step."""
    blocked_s: float = 0.0
    """Seconds spent waiting until a receiver took more: back-pressure."""
    held_rows: int = 0
    """Operators with ``align_s``: rows that wait until the other inputs have come as far in event time."""
    late_rows: int = 0
    """Operators with ``align_s``: rows with an event time that their input had declared over; handed over all the same."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Messages or rows dropped, by reason."""
    gauges: dict[str, float] = field(default_factory=dict)
    """What the operator itself reports: bank bytes, slots used, evictions."""
    tally: Tally = field(default_factory=Tally)
    """What has become of the rows; ``late_rows`` and ``dropped`` of these stand above."""
    total_rows: int | None = None
    """Source only: estimated rows of the splits of this run, where every one of them can tell."""
    splits_open: int = 0
    splits_done: int = 0
    splits: int = 0
    last_epoch: int = -1
    """The last epoch that the task has acknowledged."""

    @property
    def lag_rows(self) -> int | None:
        """Source only: estimated rows not yet read."""
        return None if self.total_rows is None else max(0, self.total_rows - self.rows_in)

    def copy(self) -> TaskStats:
        """Return a reading that does not change anymore."""
        return dataclasses.replace(self, dropped=Counter(self.dropped), gauges=dict(self.gauges), tally=self.tally.copy())

    def count(self) -> Tally:
        """Return the tally with everything that it is to hold, as of now."""
        tally = self.tally.copy()
        tally.late_rows = self.late_rows
        tally.dropped = Counter({reason: count for reason, count in self.dropped.items() if reason != DUPLICATE_MESSAGE})
        return tally
