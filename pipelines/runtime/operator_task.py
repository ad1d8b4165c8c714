"""Drives one shard of an operator: batches its rows, passes on what it returns, snapshots it at barriers.

Knows operators only by their contract. Runs in one thread; the snapshot is written by another. Invariant: the snapshot of an
epoch holds the effect of exactly the rows before the epoch's barrier, and the epoch is acknowledged only when it is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import pyarrow as pa

from connectors import faults
from operators.base import Operator
from pipelines.runtime.batcher import Batcher
from pipelines.runtime.clock import Clock
from pipelines.runtime.inbox import Inbox
from pipelines.runtime.keys import encode_streams
from pipelines.runtime.messages import Barrier, Close, Data, Edge, End, Event, OperatorAck, SnapshotFile, TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.open_streams import OpenStreams
from pipelines.runtime.routing import Router
from pipelines.runtime.snapshots import SnapshotWriter

__all__ = ["FULL_SNAPSHOT_EVERY", "OperatorTask"]

FULL_SNAPSHOT_EVERY = 10
"""A chain is one full snapshot and at most nine incremental ones: bounds what recovery has to read."""

_GAUGES_EVERY_S = 1.0


class OperatorTask:
    """One operator shard. ``inputs`` are the names of its data nodes."""

    def __init__(
        self,
        task: TaskId,
        operator: Operator,
        inputs: Sequence[str],
        inbox: Inbox,
        router: Router,
        snapshots: SnapshotWriter,
        report: Callable[[Event], None],
        clock: Clock,
        *,
        attempt: int,
        max_batch: int,
        max_wait_s: float,
        open_streams: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.task = task
        self.stats = TaskStats(task=task, kind="operator")
        self.ended = False
        self._operator = operator
        self._inbox = inbox
        self._router = router
        self._snapshots = snapshots
        self._report = report
        self._clock = clock
        self._attempt = attempt
        self._batchers = {node: Batcher(max_batch, max_wait_s) for node in inputs}
        self._closing: list[str] = []  # streams to close once their last rows have left the batchers
        self._open = OpenStreams(inputs) if len(inputs) > 1 else None
        if self._open is not None and open_streams:
            self._open.restore(open_streams)
        self._chain: list[SnapshotFile] = []
        self._pending: Future[SnapshotFile] | None = None
        self._failure: BaseException | None = None
        self._gauges_at = -_GAUGES_EVERY_S

    def step(self) -> bool:
        """Do one unit of work: take in a message or process a batch. Return False if there is nothing to do now."""
        if self._failure is not None:
            raise self._failure
        if self._take_in():
            return True
        worked = False
        for node, batcher in self._batchers.items():
            if batcher.due_in(self._clock()) == 0.0:
                self._process(node, batcher)
                worked = True
        return worked

    def idle_s(self) -> float | None:
        """Return the seconds until a waiting batch falls due, None while none waits."""
        waits = [due for batcher in self._batchers.values() if (due := batcher.due_in(self._clock())) is not None]
        return min(waits, default=None)

    def close(self) -> None:
        """Do nothing: the operator ends with its process or its last reference. May be called twice."""

    def _take_in(self) -> bool:
        """Take one message from the inbox, unless a batcher is full."""
        if not all(batcher.wants_more for batcher in self._batchers.values()):
            return False
        message = self._inbox.take()
        if message is None:
            return False
        edge, body = message
        if isinstance(body, Barrier):
            self._flush()
            self._barrier(body)
        elif isinstance(body, End):
            self._flush()
            self._router.send(body)
            self.stats.gauges = self._operator.metrics()
            self.ended = True
        elif edge is None or edge.role == "control":
            self._control(body)
        elif isinstance(body, Data):
            self._data(edge, body.batch)
        else:
            self._close_streams(edge, body)
        if self._inbox.duplicates:
            self.stats.dropped["duplicate message"] = self._inbox.duplicates
        return True

    def _data(self, edge: Edge, batch: pa.RecordBatch) -> None:
        node = edge.sender.node
        if self._open is not None or self._closing:
            streams = encode_streams(batch)[0]
            if self._open is not None:
                self._open.seen(node, streams)
            if not set(self._closing).isdisjoint(streams):
                self._flush()  # the stream starts afresh: its old rows and its end come first
        self._batchers[node].add(batch, self._clock())

    def _close_streams(self, edge: Edge, close: Close) -> None:
        node = edge.sender.node
        streams = list(close.streams) if self._open is None else self._open.close(node, close.streams)
        self._closing += streams
        self._close_ready()

    def _close_ready(self) -> None:
        """Close the streams whose last row has been processed, here and downstream."""
        waiting = set().union(*(batcher.holds(self._closing) for batcher in self._batchers.values()))
        ended = [stream for stream in self._closing if stream not in waiting]
        self._closing = [stream for stream in self._closing if stream in waiting]
        for stream in ended:
            self._operator.close_stream(stream)
        if ended:
            self._router.send(Close(tuple(ended)))

    def _control(self, body: Data | Close) -> None:
        """Control rows see all data rows that arrived before them. The end of a control stream ends no data stream."""
        if isinstance(body, Close):
            return
        self._flush()
        self.stats.control_rows += body.batch.num_rows
        self._run(self._operator.control, body.batch)

    def _process(self, node: str, batcher: Batcher) -> None:
        self.stats.queue_wait_s += self._clock() - batcher.oldest_s()
        batch = batcher.take()
        self.stats.rows_in += batch.num_rows
        self.stats.batches += 1
        self._run(self._operator.process, batch)
        if self._closing:
            self._close_ready()

    def _run(self, method: Callable[[pa.RecordBatch], list[pa.RecordBatch]], batch: pa.RecordBatch) -> None:
        started = time.perf_counter()
        try:
            outputs = method(batch)
        except Exception as error:
            error.add_note(f"in operator {self.task}, {method.__name__} of {batch.num_rows} rows")
            raise
        self.stats.step_s += time.perf_counter() - started
        for output in outputs:
            if output.num_rows:
                self.stats.rows_out += output.num_rows
                self._router.send(Data(output))
        now = self._clock()
        if now - self._gauges_at >= _GAUGES_EVERY_S:
            self._gauges_at = now
            self.stats.gauges = self._operator.metrics()

    def _flush(self) -> None:
        for node, batcher in self._batchers.items():
            while batcher.rows:
                self._process(node, batcher)
        if self._closing:
            self._close_ready()

    def _barrier(self, barrier: Barrier) -> None:
        epoch = barrier.epoch
        faults.reach("before_snapshot", epoch, str(self.task))
        incremental = 0 < len(self._chain) < FULL_SNAPSHOT_EVERY
        state = self._operator.snapshot(incremental=incremental)
        open_streams = self._open.snapshot() if self._open is not None else {}
        path = f"snapshots/{self.task.node}/{epoch:06d}-{self._attempt}-{self.task.shard}.safetensors"
        pending = self._snapshots.submit(state, path)
        pending.add_done_callback(lambda written: self._written(epoch, open_streams, written))
        self._router.send(barrier)

    def _written(self, epoch: int, open_streams: dict[str, list[str]], written: Future[SnapshotFile]) -> None:
        """Acknowledge the epoch; runs in the writer's thread. The next barrier comes only after this epoch's end."""
        if (error := written.exception()) is not None:
            self._failure = error
            self._inbox.wake()
            return
        file = written.result()
        self._chain = [*self._chain, file] if file.incremental else [file]
        faults.reach("after_snapshot", epoch, str(self.task))
        self.stats.last_epoch = epoch
        self._report(OperatorAck(self.task, epoch, tuple(self._chain), open_streams))
