"""The Ray actors: shells around the tasks of ``pipelines.runtime``, without logic of their own.

Calls come in lanes. ``inbox``: one thread per message that may be under way; a ``push`` returns when its message has been
taken, which is the sender's credit. ``poll``: one long question for news. ``ctl``: short requests. Everything else runs in the
task's own thread.
"""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from connectors import faults
from connectors.base import Staged
from connectors.errors import StreambankError
from connectors.sources.paced import open_paced
from pipelines.runners.ray_metrics import RayMetrics
from pipelines.runners.transport import CREDIT, INLINE_BYTES, CreditTransport, PeerLost
from pipelines.runtime.clock import SystemClock
from pipelines.runtime.host import Host, Reading
from pipelines.runtime.inbox import Inbox
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import Body, Data, Edge, SplitState, TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.recovery import merge_open_streams, restore_operator
from pipelines.runtime.routing import Router
from pipelines.runtime.sink_task import SinkTask
from pipelines.spec import OperatorSpec, SinkSpec, SourceSpec

__all__ = ["ActorPlan", "OperatorActor", "SinkActor", "SourceActor"]

_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """What an actor is told when it is made."""

    task: TaskId
    node: Any
    """Its ``SourceSpec``, ``OperatorSpec`` or ``SinkSpec``."""
    inputs: Sequence[Edge]
    outputs: Sequence[Edge]
    attempt: int
    state: Path
    read_rows: int
    threads: int
    fault: str | None
    log_level: int
    paths: Sequence[str]
    """The driver's module search path, for types of the user's own."""


class _Actor:
    """What all three kinds share."""

    def __init__(self, plan: ActorPlan) -> None:
        for path in plan.paths:
            if path not in sys.path:
                sys.path.append(path)
        logging.basicConfig(level=plan.log_level, format="%(levelname)s %(name)s %(message)s")
        pa.set_cpu_count(plan.threads)
        pa.set_io_thread_count(plan.threads)
        faults.arm(plan.fault)
        self._plan = plan
        self._clock = SystemClock()
        self._metrics = RayMetrics(plan.task)
        self._host = Host(Inbox(plan.inputs, attempt=plan.attempt, window=CREDIT))

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def push(self, edge: Edge, attempt: int, sequence: int, body: Body) -> None:
        """Take in a message; return when the task has taken it."""
        self._host.inbox.offer(edge, attempt, sequence, body)
        del body  # this thread waits; the rows belong to the task
        self._host.inbox.wait_taken(edge, sequence)

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def poll(self) -> Reading:
        """Return what the task has to tell, within half a second."""
        reading = self._host.poll(_POLL_S)
        self._metrics.update(reading.stats)
        if reading.failure is not None:
            return replace(reading, failure=_portable(reading.failure))
        return reading

    def close(self) -> TaskStats:
        """End the task; return its last reading."""
        self._host.close()
        return self._host.poll(0.0).stats

    def _router(self, receivers: Mapping[TaskId, ActorHandle]) -> tuple[Router, CreditTransport]:
        transport = CreditTransport(receivers, self._plan.attempt)
        return Router(self._plan.outputs, transport), transport


class SourceActor(_Actor):
    """A source task."""

    def describe(self) -> tuple[list[str], pa.Schema]:
        """Build the source; return its splits and schema."""
        node: SourceSpec = self._plan.node
        self._source = node.build()
        return self._source.splits(), self._source.schema

    def start(self, splits: Mapping[str, SplitState], receivers: Mapping[TaskId, ActorHandle]) -> None:
        """Begin to read."""
        from pipelines.runtime.source_task import SourceTask

        router, transport = self._router(receivers)
        self._task = SourceTask(
            self._plan.task,
            splits,
            lambda split, position: open_paced(self._source, split, position, self._clock),
            router,
            self._host.report,
            self._clock,
            read_rows=self._plan.read_rows,
        )
        transport.stats = self._task.stats
        self._host.start(self._task)

    @ray.method(concurrency_group="ctl")  # type: ignore[untyped-decorator]
    def request_barrier(self, epoch: int, final: bool) -> None:
        """Ask for a barrier."""
        self._task.request_barrier(epoch, final=final)
        self._host.inbox.wake()


class OperatorActor(_Actor):
    """An operator task."""

    def build(self, device: str, gpu_share: float, states: Sequence[OperatorState]) -> pa.Schema:
        """Build the operator and give it its state; return its output schema."""
        import torch

        node: OperatorSpec = self._plan.node
        torch.set_num_threads(self._plan.threads)
        if device != "cpu" and 0 < gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)  # Ray shares out the device, not its memory
        self._operator = node.build(device)
        task = self._plan.task
        restore_operator(self._operator, states, self._plan.state, shard=task.shard, shards=node.shards)
        self._open_streams = merge_open_streams(states, shard=task.shard, shards=node.shards)
        return self._operator.output_schema

    def start(self, receivers: Mapping[TaskId, ActorHandle]) -> None:
        """Begin to take messages."""
        from pipelines.runtime.operator_task import OperatorTask
        from pipelines.runtime.snapshots import SnapshotWriter

        node: OperatorSpec = self._plan.node
        router, transport = self._router(receivers)
        task = OperatorTask(
            self._plan.task,
            self._operator,
            node.inputs,
            self._host.inbox,
            router,
            SnapshotWriter(self._plan.state),
            self._host.report,
            self._clock,
            attempt=self._plan.attempt,
            max_batch=node.max_batch,
            max_wait_s=node.max_wait_ms / 1000,
            open_streams=self._open_streams,
        )
        transport.stats = task.stats
        self._host.start(task)


class SinkActor(_Actor):
    """A sink task."""

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def push(self, edge: Edge, attempt: int, sequence: int, body: Body) -> None:
        """Take in a message as every actor does, but let go of the object store where rows may be kept for an epoch."""
        super().push(edge, attempt, sequence, Data(_detached(body.batch)) if isinstance(body, Data) else body)

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Bring the sink's folder back to ``epoch``; once per attempt, on one shard."""
        node: SinkSpec = self._plan.node
        node.build().recover(epoch, staged)

    def start(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Open the sink and begin to take messages."""
        node: SinkSpec = self._plan.node
        sink = node.build()
        sink.open(schemas, attempt=self._plan.attempt, shard=self._plan.task.shard)
        self._task = SinkTask(self._plan.task, sink, self._host.inbox, self._host.report)
        self._host.start(self._task)

    @ray.method(concurrency_group="ctl")  # type: ignore[untyped-decorator]
    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish an epoch; returns when it is done."""
        self._host.call(lambda: self._task.commit(epoch, staged))


def _detached(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Copy the small columns of a big batch.

    All columns of a message are views of one object in the store, so a sink that keeps the keys of frames would keep the
    frames. Columns that make up an eighth of the batch stay views: who keeps them knows their size.
    """
    if batch.nbytes <= INLINE_BYTES:
        return batch  # sent inline: not in the store
    rows = pa.array(range(batch.num_rows), pa.int64())
    columns = [column if 8 * column.nbytes > batch.nbytes else column.take(rows) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _portable(error: BaseException) -> BaseException:
    """Return an error that survives the way to the driver; one that is not ours carries its stack trace as a note."""
    if not isinstance(error, StreambankError | PeerLost):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
