"""Reads the splits of one source task and sends their rows on, a barrier when asked for one.

Knows readers only by their contract. Runs in one thread; ``request_barrier`` may be called from another. Invariant: the
positions it reports for an epoch name exactly the first rows that it has not sent before the epoch's barrier.

Splits take turns, or are kept in step by event time where an operator behind aligns by it (``SplitTimes``).
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from connectors.base import Position, Reader
from pipelines.runtime.clock import Clock
from pipelines.runtime.contracts import ReaderContract
from pipelines.runtime.edges import Router
from pipelines.runtime.messages import Barrier, Close, Data, End, Event, Exhausted, SourceAck, SplitState, TaskId, Watermark
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.watermarks import SplitTimes

__all__ = ["MAX_OPEN_SPLITS", "SourceTask"]

MAX_OPEN_SPLITS = 64
"""Splits that a task reads at the same time; more wait until one ends. Bounds file handles and decoder memory."""

_READ_BYTES = 16 << 20
_IDLE_S = 0.02
"""How soon to ask again a reader that cannot say when it will have rows."""

_BUSY_S = 0.001
"""How soon to ask again one that says it may have some now."""


class SourceTask:
    """Takes turns among its splits. ``read_rows`` is how many rows one turn of all open splits should bring.

    Where its rows are aligned by event time, a split without rows holds the others back for ``split_wait_s``.

    ``bounded`` and ``splits_end`` are those of the source: splits that do not end are all open at the same time. A source that
    is not ``awaited`` does not keep the run from ending once there is nothing to read. ``discover`` returns splits that are to
    be added, read from ``appeared_at`` on; it is asked after every barrier. ``unread`` returns the files that no split reads.
    """

    def __init__(
        self,
        task: TaskId,
        splits: Mapping[str, SplitState],
        open_split: Callable[[str, Position | None], Reader],
        router: Router,
        report: Callable[[Event], None],
        clock: Clock,
        contract: ReaderContract,
        *,
        read_rows: int,
        bounded: bool = True,
        awaited: bool = True,
        splits_end: bool = True,
        split_wait_s: float = math.inf,
        discover: Callable[[], Sequence[str]] = list,
        unread: Callable[[], Mapping[str, str]] = dict,
        appeared_at: Position | None = None,
    ) -> None:
        self.task = task
        self.stats = TaskStats(task=task, kind="source", splits=len(splits), splits_done=sum(s.done for s in splits.values()))
        self.ended = False
        self._open_split = open_split
        self._router = router
        self._report = report
        self._clock = clock
        self._contract = contract
        self._read_rows = read_rows
        self._bounded = bounded
        self._awaited = awaited
        self._max_open = MAX_OPEN_SPLITS if splits_end else sys.maxsize
        self._dropped: dict[str, Counter[str]] = {}
        self._discover = discover
        self._unread = unread
        self._noted: set[str] = set()
        self._appeared_at = appeared_at
        self._state = {name: state for name, state in splits.items() if not state.done}
        self._waiting = deque(name for name, state in splits.items() if not state.done)
        self._open: deque[tuple[str, Reader]] = deque()
        self._times = SplitTimes(splits, split_wait_s, clock) if router.aligned else None
        self._rows_before = {name: state.rows for name, state in self._state.items()}
        self._expected: dict[str, int] = {}  # rows of open splits in this attempt
        self._expected_rows = 0  # and of those that have ended
        self._cannot_tell: set[str] = set()
        self._error_column: int | None = None
        self._request: tuple[int, bool] | None = None
        self._reported_exhausted = False
        self._begun = False
        self._idle_s = 0.0

    @property
    def asked(self) -> bool:
        """Whether a barrier has been asked for and not been sent."""
        return self._request is not None

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        """Ask for ``Barrier(epoch)`` before the next read; ``final``: followed by ``End``."""
        self._request = (epoch, final)

    def idle_s(self) -> float:
        """Return how long it is useless to call ``step``, after it returned False."""
        return self._idle_s

    def step(self) -> bool:
        """Send one message's worth; return False if there is nothing to send now."""
        if self.ended:
            return False
        if self._request is not None:
            self._send_barrier(*self._request)
            return True
        self._open_more()
        if not self._begun:
            self._begun = True
            self._send_watermark()  # of the run before
        self._idle_s = _IDLE_S
        waits = []
        share = max(1, self._read_rows // len(self._open)) if self._open and self._times is None else self._read_rows
        for name, reader in self._turns():
            started = self._clock()
            batch = self._contract.batch(reader.read(share, _READ_BYTES), name, share)
            self.stats.step_s += self._clock() - started
            if reader.dropped:
                self._count_dropped(name, reader.dropped)
            if reader.unread:
                self._note_unread(reader.unread)
            if batch is not None:
                self._send(name, batch)
            if reader.ended:
                self._router.send(Close(tuple(reader.ended)))
            if batch is not None or reader.ended:
                return True
            if reader.exhausted:
                self._finish(name, reader)
                return True
            if self._times is not None:
                self._times.silent(name)
            due = reader.next_due()
            if due is not None:
                waits.append(due)
        if waits and len(waits) == len(self._open):
            self._idle_s = max(min(waits), _BUSY_S)
        read_all = not self._open if self._bounded else not self._awaited
        if read_all and not self._reported_exhausted:
            self._reported_exhausted = True
            self._report(Exhausted(self.task))
        return self._send_watermark()

    def close(self) -> None:
        """Release all readers. May be called twice."""
        while self._open:
            self._open.popleft()[1].close()

    def _turns(self) -> Iterator[tuple[str, Reader]]:
        """Yield the open splits in the order in which they are asked for rows."""
        if self._times is not None:
            readers = dict(self._open)
            yield from [(name, readers[name]) for name in self._times.order(readers)]
            return
        for _ in range(len(self._open)):
            self._open.rotate(-1)
            yield self._open[-1]

    def _note_unread(self, unread: Mapping[str, str]) -> None:
        new = {name: reason for name, reason in unread.items() if name not in self._noted}
        self._noted.update(new)
        self.stats.tally.note_unread(new)

    def _count_dropped(self, name: str, dropped: Mapping[str, int]) -> None:
        now = Counter(dropped)
        self.stats.dropped.update(now - self._dropped.get(name, Counter()))
        self._dropped[name] = now

    def _send(self, name: str, batch: pa.RecordBatch) -> None:
        self.stats.rows_in += batch.num_rows
        self.stats.rows_out += batch.num_rows
        self.stats.batches += 1
        if self._error_column is None:
            self._error_column = batch.schema.get_field_index("error")
        self.stats.tally.count_errors(batch, self._error_column)
        state = self._state[name]
        time_us = self._times.read(name, batch) if self._times is not None else None
        self._state[name] = SplitState(state.position, False, state.rows + batch.num_rows, time_us)
        self._router.send(Data(batch, self._watermark()))

    def _watermark(self) -> int | None:
        """Return the watermark if it has moved and is asked for. Splits that wait for others to end have no part in it."""
        if self._times is None or (self._waiting and len(self._open) < self._max_open):
            return None
        return self._times.advance([name for name, _ in self._open])

    def _send_watermark(self) -> bool:
        watermark = self._watermark()
        if watermark is not None:
            self._router.send(Watermark(watermark))
        return watermark is not None

    def _open_more(self) -> None:
        while self._waiting and len(self._open) < self._max_open:
            name = self._waiting.popleft()
            reader = self._open_split(name, self._state[name].position)
            self._open.append((name, reader))
            if self._times is not None:
                self._state[name] = replace(self._state[name], time_us=self._times.opened(name))
            self.stats.splits_open = len(self._open)
            self._estimate(name, reader.total_rows())

    def _finish(self, name: str, reader: Reader) -> None:
        self._open.remove((name, reader))
        closes = tuple(reader.closes)
        rows = self._state[name].rows
        self._state[name] = SplitState(self._contract.position(reader.position(), name), True, rows, self._state[name].time_us)
        reader.close()
        self.stats.splits_open = len(self._open)
        self.stats.splits_done += 1
        self._estimate(name, rows)
        self._expected.pop(name)
        if closes:
            self._router.send(Close(closes))
        self._open_more()
        self._send_watermark()

    def _send_barrier(self, epoch: int, final: bool) -> None:
        self._request = None
        self._send_watermark()  # all splits may have ended: then nothing must wait for this task when the run is finished
        for name, reader in self._open:
            state = self._state[name]
            self._state[name] = SplitState(self._contract.position(reader.position(), name), False, state.rows, state.time_us)
        self._router.send(Barrier(epoch))
        self.stats.last_epoch = epoch
        self._report(SourceAck(self.task, epoch, dict(self._state), self.stats.rows_out, not self._bounded, self.stats.count()))
        for name in [name for name, state in self._state.items() if state.done]:  # the coordinator has taken note
            del self._state[name], self._rows_before[name]
        if final:
            self._router.send(End())
            self.ended = True
            self.close()
        else:
            self._add(self._discover())
            self._note_unread(self._unread())

    def _add(self, splits: Sequence[str]) -> None:
        """Take on splits that no task has read so far; they wait for their turn behind the others."""
        self._state.update(dict.fromkeys(splits, SplitState(self._appeared_at)))
        self._rows_before.update(dict.fromkeys(splits, 0))
        self._waiting.extend(splits)
        self.stats.splits += len(splits)
        if self._times is not None:
            self._times.add(splits)

    def _estimate(self, name: str, total: int | None) -> None:
        """Estimate the rows that this attempt will bring, if every split has been opened and can tell."""
        self._expected_rows -= self._expected.pop(name, 0)
        self._cannot_tell.discard(name)
        if total is None:
            self._cannot_tell.add(name)
        else:
            self._expected[name] = total - self._rows_before[name]
            self._expected_rows += self._expected[name]
        self.stats.total_rows = None if self._cannot_tell or self._waiting else self._expected_rows
