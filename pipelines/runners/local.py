"""One process, one loop: every message is driven through all tasks before a source reads the next one.

So nothing queues up: a slow sink slows the sources on its own. Only an operator that aligns its inputs leaves messages where
they are; their senders then wait. Snapshots are written by one more thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from connectors.base import Source, Staged
from pipelines.graph import Graph
from pipelines.outputs import schemas_of
from pipelines.runners.report import Progress, RunReport, finish, make_progress, make_report
from pipelines.runtime.clock import Clock, SystemClock
from pipelines.runtime.coordinator import Coordinator
from pipelines.runtime.edges import Inbox
from pipelines.runtime.manifest import Manifest, StateFolder
from pipelines.runtime.messages import Body, Edge, Event, SplitState, TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.operator_task import OperatorTask
from pipelines.runtime.recovery import assign_splits, list_splits, something_to_read, staged_of, starting_point
from pipelines.runtime.sink_task import SinkTask
from pipelines.runtime.snapshots import SnapshotWriter
from pipelines.runtime.source_task import SourceTask
from pipelines.runtime.tasks import TaskPlan, make_operator, make_operator_task, make_sink_task, make_source_task
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec

__all__ = ["LocalRunner"]

_SLICE_S = 0.05
"""Longest wait in one piece, so that a stop is noticed soon."""

_PROGRESS_S = 0.5

_BACKLOG = 4
"""Messages of one edge that may wait until its sender does."""

Task = SourceTask | OperatorTask | SinkTask

logger = logging.getLogger(__name__)


class LocalRunner:
    """One run. ``clock`` serves pacing, batching and epochs."""

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        resume: bool,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event,
        clock: Clock | None = None,
    ) -> None:
        self._spec = spec
        self._graph = Graph(spec)
        self._resume = resume
        self._on_progress = on_progress
        self._stop = stop
        self._clock: Clock = clock or SystemClock()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._inboxes: dict[TaskId, Inbox] = {}
        self._to_aligned: dict[TaskId, list[Edge]] = {}
        for edge in self._graph.edges:
            if edge.aligned:
                self._to_aligned.setdefault(edge.sender, []).append(edge)
        self._sources: list[SourceTask] = []
        self._operators: list[OperatorTask] = []
        self._sinks: dict[TaskId, SinkTask] = {}

    def run(self) -> RunReport:
        """Run to the end of the sources or until stopped."""
        began = self._clock()
        folder = StateFolder(self._spec.state)
        with contextlib.ExitStack() as cleanup:
            folder.open()
            cleanup.callback(folder.close)
            base = starting_point(folder, self._spec, resume=self._resume)
            if base is not None and base.finished and not something_to_read(self._spec, base):
                return finish(self._spec, base, "local")
            attempt = folder.next_attempt(base)
            writer = SnapshotWriter(folder.root)
            cleanup.callback(writer.close)
            cleanup.callback(self._close)
            self._build(base, attempt, writer)
            coordinator = Coordinator(self._graph, folder, self, self._clock, base=base, attempt=attempt)
            started = self._clock()
            logger.info("pipeline=%s runner=local attempt=%d epoch=%d", self._spec.name, attempt, coordinator.last_epoch)
            self._loop(coordinator, attempt, started)
            report = make_report(self._stats(), coordinator, runner="local", seconds=self._clock() - started)
            return replace(report, startup_s=started - began)

    # -- what a router and the coordinator ask of this runner

    def send(self, messages: Sequence[tuple[Edge, int, Body]]) -> None:
        """Put messages of this attempt into their inboxes."""
        for edge, sequence, body in messages:
            inbox = self._inboxes[edge.receiver]
            inbox.offer(edge, inbox.attempt, sequence, body)

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        """Have every source send a barrier next."""
        for source in self._sources:
            source.request_barrier(epoch, final=final)

    def commit(self, epoch: int, staged: Mapping[TaskId, Sequence[Staged]]) -> None:
        """Publish the epoch's files."""
        for task, files in staged.items():
            self._sinks[task].commit(epoch, files)

    # -- building

    def _build(self, base: Manifest | None, attempt: int, writer: SnapshotWriter) -> None:
        sources = {node.name: node.build() for node in self._spec.sources}
        splits = {node.name: self._splits(node, sources[node.name], base) for node in self._spec.sources}
        schemas = {name: source.schema for name, source in sources.items()}
        for plan in self._plans(self._spec.operators, attempt):
            states = base.operators.get(plan.task.node, ()) if base is not None else ()
            operator = make_operator(plan, states)
            schemas |= schemas_of(plan.task.node, operator)
            inbox = self._inbox(plan)
            self._operators.append(
                make_operator_task(plan, operator, states, inbox, self, writer, self._events.put, self._clock)
            )
        for sink in self._spec.sinks:
            sink.build().recover(base.epoch if base is not None else -1, staged_of(base, sink.name))
        for plan in self._plans(self._spec.sinks, attempt):
            self._sinks[plan.task] = make_sink_task(plan, schemas, self._inbox(plan), self._events.put)
        for plan in self._plans(self._spec.sources, attempt):
            source, share = sources[plan.task.node], splits[plan.task.node][plan.task.shard]
            self._sources.append(make_source_task(plan, source, share, self, self._events.put, self._clock))

    def _plans(self, nodes: Sequence[SourceSpec | OperatorSpec | SinkSpec], attempt: int) -> list[TaskPlan]:
        tasks = [task for node in nodes for task in self._graph.tasks_of(node.name)]
        return [TaskPlan.of(self._graph, task, attempt=attempt) for task in tasks]

    def _splits(self, node: SourceSpec, source: Source, base: Manifest | None) -> list[dict[str, SplitState]]:
        recorded = base.splits(self._spec.state, node.name) if base is not None else None
        return assign_splits(node.name, list_splits(source, recorded), node.parallelism)

    def _inbox(self, plan: TaskPlan) -> Inbox:
        self._inboxes[plan.task] = Inbox(plan.inputs, attempt=plan.attempt)
        return self._inboxes[plan.task]

    # -- running

    def _loop(self, coordinator: Coordinator, attempt: int, started: float) -> None:
        downstream: list[OperatorTask | SinkTask] = [*self._operators, *self._sinks.values()]
        told_s = started
        while not coordinator.done:
            if self._stop.is_set():
                coordinator.stop()
            self._hear(coordinator)
            coordinator.tick()
            worked = self._drain(downstream)
            for source in self._sources:
                if (source.asked or not self._must_wait(source.task)) and source.step():
                    worked = True
                    self._drain(downstream)
            now = self._clock()
            if self._on_progress is not None and now - told_s >= _PROGRESS_S:
                told_s = now
                self._on_progress(make_progress(self._stats(), coordinator, attempt, now - started))
            if not worked:
                self._wait(coordinator)
        if self._on_progress is not None:
            self._on_progress(make_progress(self._stats(), coordinator, attempt, self._clock() - started))

    def _hear(self, coordinator: Coordinator, timeout_s: float = 0.0) -> None:
        """Pass on what tasks report; wait for it where asked to."""
        with contextlib.suppress(queue.Empty):
            coordinator.report(self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait())
            while True:
                coordinator.report(self._events.get_nowait())

    def _wait(self, coordinator: Coordinator) -> None:
        waits = [source.idle_s() for source in self._sources if not (source.ended or self._must_wait(source.task))]
        waits += [due for operator in self._operators if (due := operator.idle_s()) is not None]
        if coordinator.under_way:
            self._hear(coordinator, min([_SLICE_S, *waits]))  # for the thread that writes snapshots
        else:
            self._clock.sleep(min([_SLICE_S, coordinator.idle_s(), *waits]))

    def _stats(self) -> list[TaskStats]:
        return [task.stats.copy() for task in self._tasks()]

    def _close(self) -> None:
        for task in self._tasks():
            task.close()

    def _tasks(self) -> list[Task]:
        return [*self._sources, *self._operators, *self._sinks.values()]

    def _drain(self, tasks: Sequence[OperatorTask | SinkTask]) -> bool:
        """Drive messages through; one pass is enough since tasks are in topological order. Return whether there was any."""
        worked = False
        for task in tasks:
            while not self._must_wait(task.task) and task.step():
                worked = True
        return worked

    def _must_wait(self, task: TaskId) -> bool:
        """Return whether a receiver of the task, one that aligns its inputs, is not to get more of it now."""
        return any(self._inboxes[edge.receiver].backlog(edge) >= _BACKLOG for edge in self._to_aligned.get(task, ()))
