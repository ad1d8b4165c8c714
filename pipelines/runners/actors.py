"""The Ray actor: a shell around one task, or around an operator and the sources whose frames it reads.

Each task has a thread of its own. Calls come in concurrency groups: ``inbox`` has one thread per message that may be under
way, and a ``push`` returns when its message has been taken, which is the sender's credit; ``poll`` is one long question for
news; ``ctl`` takes short orders while everything else is running.
"""

from __future__ import annotations

import logging
import pickle
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from connectors import faults
from connectors.errors import StreambankError
from pipelines.runners.cells import SinkCell, make_cell
from pipelines.runners.ray_metrics import TaskMetrics
from pipelines.runners.transport import CREDIT, INLINE_BYTES, CreditTransport, PeerLost
from pipelines.runtime import logs
from pipelines.runtime.edges import Inbox
from pipelines.runtime.host import Host, Reading
from pipelines.runtime.messages import Body, Data, Edge, TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.tasks import TaskPlan

__all__ = ["ActorPlan", "OperatorActor", "SinkActor", "SourceActor", "TaskActor"]

_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """The arguments of an actor."""

    pipeline: str
    """Its name, for metrics."""
    tasks: bytes
    """Its ``TaskPlan``s, pickled: they may hold objects of modules that are found only with ``paths``."""
    threads: int
    fault: str | None
    log_level: int
    log_format: logs.LogFormat
    paths: Sequence[str]
    """The driver's module search path, for types of the user's own."""


class TaskActor:
    """Hosts the tasks of a plan."""

    def __init__(self, plan: ActorPlan) -> None:
        sys.path += [path for path in plan.paths if path not in sys.path]
        handler = logging.StreamHandler()
        handler.setFormatter(logs.formatter(plan.log_format))
        handler.addFilter(logs.Repeats())
        logging.basicConfig(level=plan.log_level, handlers=[handler], force=True)
        pa.set_cpu_count(plan.threads)
        pa.set_io_thread_count(plan.threads)
        faults.arm(plan.fault)
        tasks: Sequence[TaskPlan] = pickle.loads(plan.tasks)
        self._attempt = tasks[0].attempt
        logs.about_process(pipeline=plan.pipeline, attempt=self._attempt, task=str(tasks[0].task))
        self._bell = threading.Event()
        self._hosts = {task.task: Host(Inbox(task.inputs, attempt=task.attempt, window=CREDIT), self._bell) for task in tasks}
        self._cells = {task.task: make_cell(task, self._hosts[task.task]) for task in tasks}
        self._metrics = {task: TaskMetrics(plan.pipeline, task) for task in self._hosts}

    def prepare(self, task: TaskId, step: str, *arguments: Any) -> Any:
        """Call a method of a task's cell, before it runs."""
        return getattr(self._cells[task], step)(*arguments)

    def start(self, task: TaskId, receivers: Mapping[TaskId, ActorHandle], *arguments: Any) -> None:
        """Start a task. ``receivers`` are the actors of the tasks it sends to."""
        here = {task: host.inbox for task, host in self._hosts.items()}
        self._cells[task].start(CreditTransport(receivers, here, self._attempt), *arguments)

    @ray.method(concurrency_group="ctl")  # type: ignore[untyped-decorator]
    def order(self, task: TaskId, what: str, *arguments: Any) -> Any:
        """Call a method of a task's cell while it runs."""
        return getattr(self._cells[task], what)(*arguments)

    @ray.method(concurrency_group="inbox")  # type: ignore[untyped-decorator]
    def push(self, edge: Edge, attempt: int, sequence: int, body: Body) -> None:
        """Take in a message; return when the task has taken it."""
        inbox = self._hosts[edge.receiver].inbox
        if isinstance(body, Data) and isinstance(self._cells[edge.receiver], SinkCell):
            body = Data(_detached(body.batch))  # a sink may keep rows for an epoch
        inbox.offer(edge, attempt, sequence, body)
        del body  # this thread waits; the rows belong to the task
        inbox.wait_taken(edge, sequence)

    @ray.method(concurrency_group="poll")  # type: ignore[untyped-decorator]
    def poll(self) -> list[Reading]:
        """Return what the tasks that run have to tell, as soon as there is news or after half a second."""
        self._bell.wait(_POLL_S)
        self._bell.clear()
        readings = [host.read() for host in self._hosts.values() if host.started]
        for reading in readings:
            self._metrics[reading.stats.task].update(reading.stats)
        return [
            reading if reading.failure is None else replace(reading, failure=_portable(reading.failure)) for reading in readings
        ]

    def close(self) -> list[TaskStats]:
        """End the tasks, those that were never started too; return their last readings."""
        for task, host in self._hosts.items():
            host.close()
            self._cells[task].close()
        return [host.read().stats for host in self._hosts.values() if host.started]


# The name of an actor's class is what `ray list actors` and `ps` show.


class SourceActor(TaskActor):
    """Hosts a source task."""


class OperatorActor(TaskActor):
    """Hosts an operator task, and the source tasks whose frames it reads."""


class SinkActor(TaskActor):
    """Hosts a sink task."""


def _detached(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Copy the small columns of a big batch.

    All columns of a message are views of one object in the store, so a sink that keeps the keys of frames would keep the
    frames. Columns that make up an eighth of the batch stay views: who keeps them knows their size.
    """
    if batch.nbytes <= INLINE_BYTES:
        return batch
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
