"""What an actor holds for each of its tasks: how a source, an operator or a sink is made from its spec and set to work.

A cell is called from the threads of its actor; what it starts runs in the task's own thread (``Host``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.base import Position, Staged
from connectors.sources.paced import open_paced
from pipelines.runners.transport import CreditTransport
from pipelines.runtime.clock import SystemClock
from pipelines.runtime.host import Host
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import Edge, SplitState, TaskId
from pipelines.runtime.recovery import discoverer, make_aligner, merge_open_streams, restore_operator
from pipelines.runtime.routing import Router
from pipelines.runtime.sink_task import SinkTask
from pipelines.runtime.source_task import SourceTask
from pipelines.spec import OperatorSpec, SinkSpec, SourceSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = ["Cell", "OperatorCell", "SinkCell", "SourceCell", "TaskPlan", "make_cell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """What an actor is told about one of its tasks."""

    task: TaskId
    node: SourceSpec | OperatorSpec | SinkSpec
    inputs: Sequence[Edge]
    outputs: Sequence[Edge]
    attempt: int
    state: Path
    read_rows: int
    awaited: bool
    split_wait_s: float
    """Sources only, as ``read_rows``: see ``SourceTask``."""
    keeps_streams: bool
    """Operators only: see ``OperatorTask``."""


class SourceCell:
    """A source task in the making, then at work."""

    def __init__(self, plan: TaskPlan, node: SourceSpec, host: Host) -> None:
        self._plan = plan
        self._host = host
        self._node = node
        self._clock = SystemClock()

    def describe(self) -> tuple[list[str], pa.Schema, Position | None, bool]:
        """Build the source; return its splits, its schema, where splits begin that appear later, and whether it can replay."""
        self._source = self._node.build()
        return self._source.splits(), self._source.schema, self._source.appeared_at, self._source.replayable

    def start(self, transport: CreditTransport, splits: Mapping[str, SplitState]) -> None:
        """Begin to read."""
        self._task = SourceTask(
            self._plan.task,
            splits,
            lambda split, position: open_paced(self._source, split, position, self._clock),
            Router(self._plan.outputs, transport),
            self._host.report,
            self._clock,
            read_rows=self._plan.read_rows,
            bounded=self._source.bounded,
            awaited=self._plan.awaited,
            splits_end=self._source.splits_end,
            split_wait_s=self._plan.split_wait_s,
            discover=discoverer(self._source, self._plan.task),
        )
        transport.stats = self._task.stats
        self._host.start(self._task)

    def request_barrier(self, epoch: int, final: bool) -> None:
        """Ask for a barrier."""
        self._task.request_barrier(epoch, final=final)
        self._host.inbox.wake()


class OperatorCell:
    """An operator task in the making, then at work."""

    def __init__(self, plan: TaskPlan, node: OperatorSpec, host: Host) -> None:
        self._plan = plan
        self._node = node
        self._host = host
        self._operator: Operator

    def build(self, device: str, gpu_share: float, threads: int, states: Sequence[OperatorState]) -> pa.Schema:
        """Build the operator and give it its state; return its output schema."""
        import torch

        torch.set_num_threads(threads)
        if device != "cpu" and 0 < gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)  # Ray shares out the device, not its memory
        self._operator = self._node.build(device)
        shard, shards = self._plan.task.shard, self._node.shards
        restore_operator(self._operator, states, self._plan.state, shard=shard, shards=shards)
        self._open_streams = merge_open_streams(states, shard=shard, shards=shards)
        self._aligner = make_aligner(self._node, self._host.inbox, states, self._plan.state, shard=shard, clock=SystemClock())
        return self._operator.output_schema

    def start(self, transport: CreditTransport) -> None:
        """Begin to take messages."""
        from pipelines.runtime.operator_task import OperatorTask
        from pipelines.runtime.snapshots import SnapshotWriter

        task = OperatorTask(
            self._plan.task,
            self._operator,
            self._node.inputs,
            self._host.inbox,
            Router(self._plan.outputs, transport),
            SnapshotWriter(self._plan.state),
            self._host.report,
            SystemClock(),
            attempt=self._plan.attempt,
            max_batch=self._node.max_batch,
            max_wait_s=self._node.max_wait_ms / 1000,
            open_streams=self._open_streams,
            aligner=self._aligner,
            keeps_streams=self._plan.keeps_streams,
        )
        transport.stats = task.stats
        self._host.start(task)


class SinkCell:
    """A sink task in the making, then at work."""

    def __init__(self, plan: TaskPlan, node: SinkSpec, host: Host) -> None:
        self._plan = plan
        self._node = node
        self._host = host

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Bring the sink's folder back to ``epoch``; once per attempt, on one shard."""
        self._node.build().recover(epoch, staged)

    def start(self, transport: CreditTransport, schemas: Mapping[str, pa.Schema]) -> None:
        """Open the sink and begin to take messages. It sends none."""
        sink = self._node.build()
        sink.open(schemas, attempt=self._plan.attempt, shard=self._plan.task.shard)
        self._task = SinkTask(self._plan.task, sink, self._host.inbox, self._host.report)
        self._host.start(self._task)

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish an epoch; return when it is done."""
        self._host.call(lambda: self._task.commit(epoch, staged))


Cell = SourceCell | OperatorCell | SinkCell


def make_cell(plan: TaskPlan, host: Host) -> Cell:
    """Return the cell for a task's kind of node."""
    if isinstance(plan.node, SourceSpec):
        return SourceCell(plan, plan.node, host)
    if isinstance(plan.node, OperatorSpec):
        return OperatorCell(plan, plan.node, host)
    return SinkCell(plan, plan.node, host)
