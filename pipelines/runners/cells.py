"""What an actor holds for each of its tasks: the steps from its plan to a task that runs, as the driver orders them.

A cell is called from the threads of its actor; what it starts runs in the task's own thread (``Host``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.base import Staged
from pipelines.outputs import schemas_of
from pipelines.runners.transport import CreditTransport
from pipelines.runtime.clock import SystemClock
from pipelines.runtime.host import Host
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import SplitState
from pipelines.runtime.recovery import Listing, list_splits
from pipelines.runtime.tasks import TaskPlan, make_operator, make_operator_task, make_sink_task, make_source_task
from pipelines.spec import OperatorSpec, SourceSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = ["Cell", "OperatorCell", "SinkCell", "SourceCell", "make_cell"]


class SourceCell:
    """A source task in the making, then running."""

    def __init__(self, plan: TaskPlan, host: Host) -> None:
        self._plan = plan
        self._host = host

    def describe(self, recorded: Mapping[str, SplitState] | None) -> tuple[Listing | None, pa.Schema]:
        """Build the source; return its schema and, from the first task, what there is to read. See ``list_splits``."""
        assert isinstance(self._plan.node, SourceSpec)
        self._source = self._plan.node.build()
        listing = list_splits(self._source, recorded)
        return listing if self._plan.task.shard == 0 else None, self._source.schema

    def start(self, transport: CreditTransport, splits: Mapping[str, SplitState]) -> None:
        """Begin to read."""
        self._task = make_source_task(self._plan, self._source, splits, transport, self._host.report, SystemClock())
        transport.stats = self._task.stats
        self._host.start(self._task)

    def request_barrier(self, epoch: int, final: bool) -> None:
        """Ask for a barrier."""
        self._task.request_barrier(epoch, final=final)
        self._host.inbox.wake()

    def close(self) -> None:
        """Do nothing: the task has closed its readers."""


class OperatorCell:
    """An operator task in the making, then running."""

    def __init__(self, plan: TaskPlan, host: Host) -> None:
        self._plan = plan
        self._host = host
        self._operator: Operator | None = None
        self._states: Sequence[OperatorState] = ()

    def build(self, device: str, gpu_share: float, threads: int, states: Sequence[OperatorState]) -> dict[str, pa.Schema]:
        """Build the operator and give it its state; return the schemas of its outputs by address."""
        import torch

        torch.set_num_threads(threads)
        if device != "cpu" and 0 < gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)  # Ray shares out the device, not its memory
        self._states = states
        self._operator = make_operator(self._plan, states, device)
        return schemas_of(self._plan.task.node, self._operator)

    def start(self, transport: CreditTransport) -> None:
        """Begin to take messages."""
        from pipelines.runtime.snapshots import SnapshotWriter

        assert self._operator is not None  # built before
        plan, host, writer = self._plan, self._host, SnapshotWriter(self._plan.state)
        task = make_operator_task(plan, self._operator, self._states, host.inbox, transport, writer, host.report, SystemClock())
        self._states = ()
        transport.stats = task.stats
        host.start(task)

    def close(self) -> None:
        """Close the operator, if its task was never started or could not."""
        if self._operator is not None:
            self._operator.close()


class SinkCell:
    """A sink task in the making, then running."""

    def __init__(self, plan: TaskPlan, host: Host) -> None:
        self._plan = plan
        self._host = host

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Bring the sink's folder back to ``epoch``; once per attempt, on one shard."""
        assert not isinstance(self._plan.node, SourceSpec | OperatorSpec)
        self._plan.node.build().recover(epoch, staged)

    def start(self, transport: CreditTransport, schemas: Mapping[str, pa.Schema]) -> None:
        """Open the sink and begin to take messages. It sends none."""
        self._task = make_sink_task(self._plan, schemas, self._host.inbox, self._host.report)
        self._host.start(self._task)

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish an epoch; return when it is done."""
        self._host.call(lambda: self._task.commit(epoch, staged))

    def close(self) -> None:
        """Do nothing: the task has closed its sink."""


Cell = SourceCell | OperatorCell | SinkCell


def make_cell(plan: TaskPlan, host: Host) -> Cell:
    """Return the cell for a task's kind of node."""
    if isinstance(plan.node, SourceSpec):
        return SourceCell(plan, host)
    return OperatorCell(plan, host) if isinstance(plan.node, OperatorSpec) else SinkCell(plan, host)
