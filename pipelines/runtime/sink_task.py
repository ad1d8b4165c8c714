"""Drives one shard of a sink: writes rows, stages them at a barrier, publishes them when told that the epoch is committed.

Knows sinks only by their contract. Runs in one thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from connectors import faults
from connectors.base import Sink, Staged
from pipelines.runtime.contracts import require_staged
from pipelines.runtime.edges import Inbox
from pipelines.runtime.messages import Barrier, Data, End, Event, SinkAck, TaskId
from pipelines.runtime.metrics import DUPLICATE_MESSAGE, TaskStats

__all__ = ["SinkTask"]


class SinkTask:
    """One sink shard."""

    def __init__(self, task: TaskId, sink: Sink, inbox: Inbox, report: Callable[[Event], None]) -> None:
        self.task = task
        self._name = str(task)
        self.stats = TaskStats(task=task, kind="sink")
        self.ended = False
        self._sink = sink
        self._inbox = inbox
        self._sources = {edge: edge.source for edge in inbox.edges}
        self._report = report

    def step(self) -> bool:
        """Take one message; return False if there is none."""
        message = self._inbox.take()
        if message is None:
            return False
        edge, body = message
        if isinstance(body, Data):
            assert edge is not None  # only barriers and ends have none
            started = time.perf_counter()
            try:
                self._sink.write(self._sources[edge], body.batch)
            except Exception as error:
                error.add_note(f"in sink {self.task}, write of {body.batch.num_rows} rows of {edge.source!r}")
                raise
            self.stats.step_s += time.perf_counter() - started
            self.stats.rows_in += body.batch.num_rows
            self.stats.batches += 1
        elif isinstance(body, Barrier):
            self._prepare(body.epoch)
        elif isinstance(body, End):
            self.ended = True
        if self._inbox.duplicates:
            self.stats.dropped[DUPLICATE_MESSAGE] = self._inbox.duplicates
        return True

    def idle_s(self) -> float | None:
        """Return None: a sink has nothing to do before the next message."""
        return None

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish what was staged for ``epoch``; call it in the task's thread, after the manifest is durable."""
        faults.reach("before_commit", epoch, self._name)
        self._sink.commit(epoch, staged)
        faults.reach("after_commit", epoch, self._name)
        self.stats.rows_out += sum(file.rows for file in staged)

    def close(self) -> None:
        """Release the sink; what was not prepared is dropped."""
        self._sink.close()

    def _prepare(self, epoch: int) -> None:
        faults.reach("before_prepare", epoch, self._name)
        started = time.perf_counter()
        staged = require_staged(self.task.node, self._sink, self._sink.prepare(epoch))
        self.stats.step_s += time.perf_counter() - started
        faults.reach("after_prepare", epoch, self._name)
        self.stats.last_epoch = epoch
        self.stats.tally.incomplete = +Counter(self._sink.incomplete())
        self._report(SinkAck(self.task, epoch, tuple(staged), self.stats.tally.copy()))
