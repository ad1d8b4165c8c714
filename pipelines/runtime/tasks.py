"""Makes the tasks of a pipeline: from a node's spec and its place in the graph to a source, operator or sink task.

The only place that knows how; both runners call it, and differ in the transport and in who drives a task. What a task goes on
with (splits, states of operators) comes from ``pipelines.runtime.recovery``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors.base import Source
from connectors.sources.paced import open_paced
from pipelines.devices import resolve_source_device
from pipelines.graph import Graph
from pipelines.runtime.clock import Clock
from pipelines.runtime.contracts import ReaderContract, require_splits
from pipelines.runtime.edges import Inbox, Router, Transport
from pipelines.runtime.keys import shard_of
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import Alignment, Edge, Event, SplitState, TaskId
from pipelines.runtime.recovery import merge_open_streams, restore_operator
from pipelines.runtime.sink_task import SinkTask
from pipelines.runtime.source_task import SourceTask
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec, span_us

if TYPE_CHECKING:
    from operators.base import Operator
    from pipelines.runtime.aligner import Aligner, HeldRows
    from pipelines.runtime.operator_task import OperatorTask
    from pipelines.runtime.snapshots import SnapshotWriter

__all__ = ["Report", "TaskPlan", "make_aligner", "make_operator", "make_operator_task", "make_sink_task", "make_source_task"]

Report = Callable[[Event], None]

_SINK_ROWS = 8192
_CONTROL_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """What a task must know of its pipeline. Can be pickled."""

    task: TaskId
    node: SourceSpec | OperatorSpec | SinkSpec
    inputs: Sequence[Edge]
    outputs: Sequence[Edge]
    attempt: int
    state: Path
    """The state folder."""
    read_rows: int = 0
    awaited: bool = False
    split_wait_s: float = math.inf
    """Sources only, as the two above: see ``SourceTask``."""
    keeps_streams: bool = False
    gives_back: bool = False
    """Operators only, as the one above: see ``OperatorTask``."""

    @staticmethod
    def of(graph: Graph, task: TaskId, *, attempt: int) -> TaskPlan:
        """Return the plan of one task of a graph."""
        spec, node = graph.spec, graph.spec.node(task.node)
        own: dict[str, Any] = {}
        if isinstance(node, SourceSpec):
            own = {
                "read_rows": _read_rows(spec, task.node),
                "awaited": spec.awaits(node),
                "split_wait_s": graph.split_wait_s(task.node),
            }
        elif isinstance(node, OperatorSpec):
            own = {"keeps_streams": spec.keeps_streams(node), "gives_back": spec.takes_kept(node)}
        inputs, outputs = graph.inputs_of(task), graph.outputs_of(task)
        return TaskPlan(task=task, node=node, inputs=inputs, outputs=outputs, attempt=attempt, state=spec.state, **own)


def make_source_task(
    plan: TaskPlan, source: Source, splits: Mapping[str, SplitState], transport: Transport, report: Report, clock: Clock
) -> SourceTask:
    """Make a task that reads ``splits`` of ``source``. Raise ``DeviceError`` where its device is not there."""
    assert isinstance(plan.node, SourceSpec)
    if plan.node.kept_on is not None:
        resolve_source_device(plan.node.kept_on, plan.task.node)
    return SourceTask(
        plan.task,
        splits,
        lambda split, position: open_paced(source, split, position, clock),
        Router(plan.outputs, transport),
        report,
        clock,
        ReaderContract(plan.task.node, plan.node.type, source.schema),
        read_rows=plan.read_rows,
        bounded=source.bounded,
        awaited=plan.awaited,
        splits_end=source.splits_end,
        split_wait_s=plan.split_wait_s,
        discover=(lambda: require_splits(source, source.discover()))
        if plan.task.shard == 0
        else list,  # the first task takes new ones on, until the next start
        unread=lambda: source.unread if plan.task.shard == 0 else {},
        appeared_at=source.appeared_at,
    )


def make_operator(plan: TaskPlan, states: Sequence[OperatorState], device: str | None = None) -> Operator:
    """Build one shard of an operator and give it what belongs to it of ``states``, the shards of the last epoch."""
    assert isinstance(plan.node, OperatorSpec)
    operator = plan.node.build(device)
    with _closed_on_error(operator):
        restore_operator(operator, states, plan.state, shard=plan.task.shard, shards=plan.node.shards)
    return operator


def make_operator_task(
    plan: TaskPlan,
    operator: Operator,
    states: Sequence[OperatorState],
    inbox: Inbox,
    transport: Transport,
    snapshots: SnapshotWriter,
    report: Report,
    clock: Clock,
) -> OperatorTask:
    """Make the task of an operator from ``make_operator``, which it closes at its end; ``states`` as there."""
    from pipelines.runtime.operator_task import OperatorTask

    node = plan.node
    assert isinstance(node, OperatorSpec)
    with _closed_on_error(operator):
        return OperatorTask(
            plan.task,
            operator,
            node.inputs,
            inbox,
            Router(plan.outputs, transport),
            snapshots,
            report,
            clock,
            attempt=plan.attempt,
            max_batch=node.max_batch,
            max_wait_s=node.max_wait_ms / 1000,
            open_streams=merge_open_streams(states, shard=plan.task.shard, shards=node.shards),
            aligner=make_aligner(node, inbox, states, plan.state, shard=plan.task.shard, clock=clock),
            keeps_streams=plan.keeps_streams,
            gives_back=plan.gives_back,
        )


def make_sink_task(plan: TaskPlan, schemas: Mapping[str, pa.Schema], inbox: Inbox, report: Report) -> SinkTask:
    """Make the task of a sink and open the sink. ``schemas`` are those of all outputs, by address."""
    assert isinstance(plan.node, SinkSpec)
    sink = plan.node.build()
    with _closed_on_error(sink):
        sink.open({name: schemas[name] for name in plan.node.inputs}, attempt=plan.attempt, shard=plan.task.shard)
    return SinkTask(plan.task, sink, inbox, report)


def make_aligner(
    node: OperatorSpec, inbox: Inbox, states: Sequence[OperatorState], root: Path, *, shard: int, clock: Clock
) -> Aligner | None:
    """Make the aligner of an operator shard, with the rows that waited when the last epoch ended; None without ``align_s``."""
    if node.align_s is None:
        return None
    from pipelines.runtime.aligner import Aligner
    from pipelines.runtime.held_rows import read_held

    aligner = Aligner(
        [edge for edge in inbox.edges if edge.aligned],
        span_us=span_us(node.align_s),
        wait_s=math.inf if node.align_wait_s is None else node.align_wait_s,
        clock=clock,
        backlog=inbox.backlog,
    )

    def keep(stream: str) -> bool:
        return shard_of(stream, node.shards) == shard

    own = states[shard : shard + 1] if len(states) == node.shards else states
    alignments: list[Alignment] = []
    held: list[HeldRows] = []
    for state in own:
        if state.alignment is None:
            continue
        closes = [(time_us, up, list(filter(keep, streams))) for time_us, up, streams in state.alignment.closes]
        alignments.append(replace(state.alignment, closes=closes))
        if state.alignment.rows is not None:
            held += read_held(root, state.alignment.rows, keep)
    aligner.restore(alignments, held)
    return aligner


def _read_rows(spec: PipelineSpec, source: str) -> int:
    """Return the rows of one message: a full batch of the operator that takes the largest ones, thousands for a bare sink.

    Bytes are bounded by the source task besides, so large rows (frames) come in smaller numbers.
    """
    wanted = [operator.max_batch for operator in spec.operators if source in operator.inputs]
    wanted += [
        _CONTROL_ROWS if operator.align_s is None else max(_CONTROL_ROWS, operator.max_batch)
        for operator in spec.operators
        if source in operator.control
    ]
    return max(wanted, default=_SINK_ROWS)


@contextmanager
def _closed_on_error(made: Any) -> Iterator[None]:
    """Close what no task will close if making the task fails."""
    try:
        yield
    except BaseException:
        made.close()
        raise
