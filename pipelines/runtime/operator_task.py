"""Drives one shard of an operator: batches its rows, passes on what it returns, snapshots it at barriers.

Knows operators only by their contract. Rows go to the operator as they arrive or, with an aligner, in the order that it gives.
Runs in one thread; the snapshot is written by another. Invariant: the snapshot of an epoch holds the effect of exactly the rows
before the epoch's barrier, or the rows themselves where they wait; the epoch is acknowledged only when it is on disk.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pyarrow as pa

from connectors import device_frames, faults
from connectors.records import NEVER_US, encode_streams
from operators.base import Emitted, Operator
from pipelines.runtime.aligner import Aligner, HandedOver
from pipelines.runtime.batcher import Batcher
from pipelines.runtime.clock import Clock
from pipelines.runtime.contracts import OperatorContract
from pipelines.runtime.edges import Inbox, Router
from pipelines.runtime.held_rows import write_held
from pipelines.runtime.messages import (
    Alignment,
    Barrier,
    BarrierAhead,
    Close,
    Data,
    Edge,
    End,
    Event,
    OperatorAck,
    SnapshotFile,
    TaskId,
    Watermark,
)
from pipelines.runtime.metrics import DUPLICATE_MESSAGE, TaskStats
from pipelines.runtime.open_streams import OpenStreams
from pipelines.runtime.snapshots import SnapshotWriter
from pipelines.runtime.tally import Tally
from pipelines.runtime.watermarks import InputTimes

__all__ = ["FULL_SNAPSHOT_EVERY", "OperatorTask"]

FULL_SNAPSHOT_EVERY = 10
"""A chain is one full snapshot and at most nine incremental ones: bounds what recovery has to read."""

_GAUGES_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class OperatorTask:
    """One operator shard. ``inputs`` are the addresses of its data. With ``keeps_streams`` streams that end stay open.

    ``gives_back``: rows may name frames that their source keeps on a device; they are given back when a batch is processed.
    """

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
        aligner: Aligner | None = None,
        keeps_streams: bool = False,
        gives_back: bool = False,
    ) -> None:
        self.task = task
        self._name = str(task)
        self.stats = TaskStats(task=task, kind="operator")
        self.ended = False
        self._operator = operator
        self._contract = OperatorContract(task.node, operator)
        self._good = operator.good_statuses
        own = self.stats.tally
        self._tallies = {
            output: (own.outputs.setdefault(output, Tally()) if output else own, "status" in schema.names)
            for output, schema in self._contract.schemas.items()
        }
        self._inbox = inbox
        self._sources = {edge: edge.source for edge in inbox.edges}
        self._router = router
        self._snapshots = snapshots
        self._report = report
        self._clock = clock
        self._attempt = attempt
        self._aligner = aligner
        self._ready: deque[HandedOver | Watermark] = deque()  # what the aligner gave and the batchers have not yet
        self._times = InputTimes(inbox.edges) if aligner is None and router.aligned else None
        self._watermark_us = NEVER_US  # the last one of the aligner
        self._advanced_us = NEVER_US  # the last one that the operator was told
        self._advances = aligner is not None and type(operator).advance is not Operator.advance
        self._watermarks: deque[tuple[list[int], int]] = deque()  # to be sent when so many messages have left the batchers
        self._batchers = {node: Batcher(max_batch, max_wait_s, in_order=aligner is not None) for node in inputs}
        self._max_batch = max_batch
        self._keeps_streams = keeps_streams
        self._gives_back = gives_back
        self._announced = -1  # the last epoch
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
        """Return the seconds until a waiting batch falls due or a silent input is given up, None while there is neither."""
        waits = [due for batcher in self._batchers.values() if (due := batcher.due_in(self._clock())) is not None]
        if self._aligner is not None and (silent := self._aligner.idle_s()) is not None:
            waits.append(silent)
        return min(waits, default=None)

    def close(self) -> None:
        """Close the operator. May be called twice."""
        self._operator.close()

    # What comes in

    def _take_in(self) -> bool:
        """Take one message, from what has been aligned or from the inbox, unless a batcher is full."""
        if not all(batcher.wants_more for batcher in self._batchers.values()):
            return False
        if self._ready:
            self._hand_over(self._ready.popleft())
            return True
        message = self._inbox.take()
        self._announce()
        if message is None:
            return self._aligner is not None and self._release(self._aligner)
        edge, body = message
        if isinstance(body, Barrier):
            self._flush_all()
            self._run("flush", self._operator.flush)
            self._barrier(body)
        elif isinstance(body, End):
            self._flush_all()
            self._run("flush", self._operator.flush)
            self._router.send(body)
            self._measure()
            self.ended = True
        elif edge is not None:
            if self._aligner is not None and edge.aligned:
                self._hold(self._aligner, edge, body)
            else:
                self._receive(edge, body)
        if self._inbox.duplicates:
            self.stats.dropped[DUPLICATE_MESSAGE] = self._inbox.duplicates
        return True

    def _announce(self) -> None:
        """Tell aligning tasks behind this one of a barrier that is under way, so that they take what they have paused."""
        epoch = self._inbox.under_way
        if epoch is not None and epoch != self._announced:
            self._announced = epoch
            self._router.send(BarrierAhead(epoch))

    def _receive(self, edge: Edge, body: Data | Close | Watermark) -> None:
        """Hand a message over as it arrives."""
        if isinstance(body, Close):
            if edge.role == "data":  # the end of a control stream ends no data stream
                self._close_streams(self._sources[edge], body.streams)
            return
        if isinstance(body, Data):
            if edge.role == "control":
                self._control(body.batch)
            else:
                self._data(self._sources[edge], body.batch)
        watermark = body.watermark_us if isinstance(body, Data) else body.time_us
        if self._times is not None and watermark is not None:
            least = self._times.advance(edge, watermark)
            if least is not None:
                self._pass_on(least)

    def _hold(self, aligner: Aligner, edge: Edge, body: Data | Close | Watermark) -> None:
        """Give a message to the aligner; make ready what it releases."""
        if isinstance(body, Close):
            aligner.close(edge, body.streams)
            return
        watermark = body.time_us if isinstance(body, Watermark) else body.watermark_us
        if isinstance(body, Data):
            aligner.add(edge, body.batch)
        if watermark is not None:
            aligner.advance(edge, watermark)
        self._release(aligner)

    def _release(self, aligner: Aligner) -> bool:
        """Make ready what need not wait any longer. Return whether there is anything."""
        self._ready += aligner.release()
        if (self._advances or self._router.aligned) and aligner.watermark_us > self._watermark_us:
            self._watermark_us = aligner.watermark_us
            self._ready.append(Watermark(self._watermark_us))
        self._inbox.pause(aligner.ahead())
        if aligner.late_rows and not self.stats.late_rows:
            logger.warning(
                "task=%s %d rows came behind the watermark of their input; they are handed over late and counted as late_rows. "
                "A longer align_s gives them their place",
                self.task,
                aligner.late_rows,
            )
        self.stats.held_rows, self.stats.late_rows = aligner.held_rows, aligner.late_rows
        return bool(self._ready)

    def _hand_over(self, item: HandedOver | Watermark) -> None:
        """Hand over what the aligner gave: everything in its place among the rows of all streams."""
        if isinstance(item, Watermark):
            self._advance()
            self._pass_on(item.time_us)
        elif isinstance(item.body, Close):
            self._flush()
            self._close_streams(item.node, item.body.streams)
        elif item.role == "control":
            self._control(item.body.batch)
        else:
            batch = item.body.batch
            self._flush_but(item.node)
            if batch.num_rows > self._max_batch:
                self._ready.appendleft(HandedOver(item.role, item.node, Data(batch.slice(self._max_batch))))
                batch = batch.slice(0, self._max_batch)
            self._data(item.node, batch)

    def _advance(self) -> None:
        """Tell an operator that asks for it how far event time has come, after the rows before and before any row behind."""
        if self._advances and self._aligner is not None and self._aligner.released_us > self._advanced_us:
            self._advanced_us = self._aligner.released_us
            self._flush()
            self._run("advance", lambda: self._operator.advance(self._advanced_us))

    # What the operator gets, in this order

    def _data(self, node: str, batch: pa.RecordBatch) -> None:
        if self._open is not None or self._closing:
            streams = encode_streams(batch.column("stream_id"))[0]
            if self._open is not None:
                self._open.seen(node, streams)
            if not set(self._closing).isdisjoint(streams):
                self._flush()  # the stream starts over: its old rows and its end come first
        self._batchers[node].add(batch, self._clock())

    def _close_streams(self, node: str, streams: Sequence[str]) -> None:
        if self._keeps_streams:
            return
        self._closing += streams if self._open is None else self._open.close(node, streams)
        self._close_ready()

    def _close_ready(self) -> None:
        """Close the streams whose last row has been processed, here and downstream."""
        waiting = set().union(*(batcher.holds(self._closing) for batcher in self._batchers.values()))
        ended = [stream for stream in self._closing if stream not in waiting]
        self._closing = [stream for stream in self._closing if stream in waiting]
        for stream in ended:
            self._operator.close_stream(stream)
        if ended:
            self._contract.closed(ended)
            self._run("flush", self._operator.flush)  # what is left to say of them comes before their end
            self._router.send(Close(tuple(ended)))

    def _control(self, batch: pa.RecordBatch) -> None:
        """Control rows see all data rows that were handed over before them."""
        self._flush()
        self.stats.control_rows += batch.num_rows
        self._contract.taken(batch)
        self._run("control", lambda: self._operator.control(batch), batch.num_rows)

    def _pass_on(self, watermark_us: int) -> None:
        """Pass a watermark on, where it is asked for, when the rows before it have been processed."""
        if not self._router.aligned:
            return
        added = [batcher.added for batcher in self._batchers.values()]
        if self._watermarks and self._watermarks[-1][0] == added:
            self._watermarks.pop()  # the same rows, and the new one says more
        self._watermarks.append((added, watermark_us))
        self._pass_watermarks()

    def _pass_watermarks(self) -> None:
        done = [batcher.done for batcher in self._batchers.values()]
        reached = None
        while self._watermarks and all(have >= want for have, want in zip(done, self._watermarks[0][0], strict=True)):
            reached = self._watermarks.popleft()[1]
        if reached is not None:
            self._router.send(Watermark(reached))

    def _process(self, node: str, batcher: Batcher) -> None:
        self.stats.queue_wait_s += self._clock() - batcher.oldest_s()
        batch = batcher.take()
        self.stats.rows_in += batch.num_rows
        self.stats.batches += 1
        self._contract.taken(batch)
        self._run("process", lambda: self._operator.process(batch), batch.num_rows)
        if self._gives_back:
            device_frames.release(batch)
        if self._closing:
            self._close_ready()
        if self._watermarks:
            self._pass_watermarks()

    def _run(self, method: str, call: Callable[[], Sequence[Emitted]], rows: int = 0) -> None:
        started = time.perf_counter()
        try:
            outputs = call()
        except Exception as error:
            error.add_note(f"in operator {self.task}, {method} of {rows} rows")
            raise
        self.stats.step_s += time.perf_counter() - started
        for emitted in self._contract.outputs(method, outputs):
            output, batch = ("", emitted) if isinstance(emitted, pa.RecordBatch) else (emitted.name, emitted.batch)
            if batch.num_rows:
                self._count(output, batch, method)
                self._router.send(Data(batch), output)
        now = self._clock()
        if now - self._gauges_at >= _GAUGES_EVERY_S:
            self._gauges_at = now
            self._measure()

    def _count(self, output: str, batch: pa.RecordBatch, method: str) -> None:
        self.stats.rows_out += batch.num_rows
        tally, has_status = self._tallies[output]
        if not has_status:
            tally.rows += batch.num_rows
        elif new := tally.count(batch, self._good):
            self._contract.statuses(new, method)

    def _measure(self) -> None:
        self.stats.gauges = gauges = self._contract.gauges(self._operator.metrics())
        if self._gives_back:
            gauges["kept_frame_bytes"] = float(device_frames.kept_bytes())
        losses = self._operator.losses
        self.stats.tally.losses = Counter({name: round(gauges[name]) for name in losses if gauges.get(name)})
        self.stats.tally.reasons |= {name: losses[name] for name in self.stats.tally.losses}

    def _flush(self) -> None:
        self._flush_but(None)
        if self._closing:
            self._close_ready()

    def _flush_but(self, kept: str | None) -> None:
        for node, batcher in self._batchers.items():
            while node != kept and batcher.rows:
                self._process(node, batcher)

    def _flush_all(self) -> None:
        """Process everything that need not wait for another input."""
        while self._ready:
            if not all(batcher.wants_more for batcher in self._batchers.values()):
                self._flush()
            self._hand_over(self._ready.popleft())
        self._flush()

    def _barrier(self, barrier: Barrier) -> None:
        epoch = barrier.epoch
        faults.reach("before_snapshot", epoch, self._name)
        incremental = 0 < len(self._chain) < FULL_SNAPSHOT_EVERY
        state = self._contract.state(self._operator.snapshot(incremental=incremental), incremental=incremental)
        self._measure()
        tally = self.stats.count()
        open_streams = self._open.snapshot() if self._open is not None else {}
        path = f"snapshots/{self.task.node}/{epoch:06d}-{self._attempt}-{self.task.shard}"
        alignment, held = self._aligner.snapshot() if self._aligner is not None else (None, [])
        rows = self._snapshots.call(lambda root: write_held(held, root, f"{path}.arrows")) if held else None
        pending = self._snapshots.submit(state, f"{path}.safetensors")
        pending.add_done_callback(lambda written: self._written(epoch, open_streams, alignment, rows, tally, written))
        self._router.send(barrier)

    def _written(
        self,
        epoch: int,
        open_streams: dict[str, list[str]],
        alignment: Alignment | None,
        rows: Future[SnapshotFile] | None,
        tally: Tally,
        written: Future[SnapshotFile],
    ) -> None:
        """Acknowledge the epoch; runs in the writer's thread. The next barrier comes only after this epoch's end."""
        error = written.exception() or (rows.exception() if rows is not None else None)
        if error is not None:
            self._failure = error
            self._inbox.wake()
            return
        if alignment is not None and rows is not None:
            alignment = replace(alignment, rows=rows.result())
        file = written.result()
        self._chain = [*self._chain, file] if file.incremental else [file]
        faults.reach("after_snapshot", epoch, self._name)
        self.stats.last_epoch = epoch
        self._report(OperatorAck(self.task, epoch, tuple(self._chain), open_streams, alignment, tally))
