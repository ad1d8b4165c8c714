"""The actors of one attempt, seen from the driver: made, connected, listened to, told to commit, ended.

Knows nothing of retries. An actor that dies makes ``hear`` or ``commit`` raise ``ActorLost``; an error inside a task is raised
as it is.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from connectors.base import Staged
from connectors.errors import StreambankError
from pipelines.graph import Graph
from pipelines.runners.actors import ActorPlan, OperatorActor, SinkActor, SourceActor
from pipelines.runners.reservation import Reservation, Stopped
from pipelines.runners.transport import CREDIT, PeerLost
from pipelines.runtime.host import Reading
from pipelines.runtime.logs import log_format
from pipelines.runtime.manifest import Manifest
from pipelines.runtime.messages import TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.recovery import assign_splits, staged_of
from pipelines.runtime.tasks import TaskPlan
from pipelines.spec import OperatorSpec, SinkSpec, SourceSpec

__all__ = ["ActorLost", "Fleet"]

START_TIMEOUT_S = 300.0
"""Time for all actors to be placed and to load their weights."""

_LOOK_S = 0.5
_ANSWER_TIMEOUT_S = 300.0
_CLOSE_TIMEOUT_S = 10.0
_DEATH_TIMEOUT_S = 30.0

Arguments = tuple[Any, ...]

logger = logging.getLogger(__name__)


class ActorLost(StreambankError):
    """An actor of this attempt has died or hangs."""


class Fleet:
    """All actors of one attempt."""

    def __init__(
        self, graph: Graph, room: Reservation, *, attempt: int, fault: str | None, stop: threading.Event | None = None
    ) -> None:
        self.stats: dict[TaskId, TaskStats] = {}
        self.reading_since = monotonic()
        """When the sources were told to read (until then: when this was made)."""
        self._graph = graph
        self._room = room
        self._stop = stop or threading.Event()
        self._attempt = attempt
        self._fault = fault
        self._actors: list[ActorHandle] = []
        self._actor_of: dict[TaskId, ActorHandle] = {}
        self._asked: dict[Any, ActorHandle] = {}
        self._lost_peers: set[TaskId] = set()
        self._sources = [task for node in graph.spec.sources for task in graph.tasks_of(node.name)]

    def start(self, base: Manifest | None) -> None:
        """Make all actors and set their tasks to work from ``base``. Raise ``Stopped`` if the run is stopped meanwhile."""
        spec, tasks_of = self._graph.spec, self._graph.tasks_of
        shares = {task: share for group, share in zip(self._room.actors, self._room.shares, strict=True) for task in group}
        for number, group in enumerate(self._room.actors):
            actor = self._create(number, group)
            self._actors.append(actor)
            self._actor_of |= dict.fromkeys(group, actor)
        recorded = {node.name: base.splits(spec.state, node.name) if base is not None else None for node in spec.sources}
        described = self._prepare("describe", {task: (recorded[task.node],) for task in self._sources})
        schemas = {task.node: schema for task, (_, schema) in described.items()}
        builds: dict[TaskId, Arguments] = {}
        for node in spec.operators:
            states = base.operators.get(node.name, ()) if base is not None else ()
            for task in tasks_of(node.name):
                share = shares[task]
                builds[task] = (share.device, share.gpus, max(1, int(node.num_cpus)), states)
        for outputs in self._prepare("build", builds).values():
            schemas |= outputs
        epoch = base.epoch if base is not None else -1
        self._prepare("recover", {TaskId(sink.name, 0): (epoch, staged_of(base, sink.name)) for sink in spec.sinks})
        starts: dict[TaskId, Arguments] = {}
        for sink in spec.sinks:
            starts |= {task: (schemas,) for task in tasks_of(sink.name)}
        starts |= {task: () for task in builds}
        self._start(starts)
        self.reading_since = monotonic()
        reads: dict[TaskId, Arguments] = {}
        for source in spec.sources:
            splits = assign_splits(source.name, described[TaskId(source.name, 0)][0], source.parallelism)
            reads |= {task: (share,) for task, share in zip(tasks_of(source.name), splits, strict=True)}
        self._start(reads)
        self._asked = {actor.poll.remote(): actor for actor in self._actors}

    def hear(self, timeout_s: float) -> list[Reading]:
        """Return what tasks have to tell; wait ``timeout_s`` for the first. Raise ``ActorLost`` or a task's own error."""
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        if not answered:
            answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=timeout_s)
        heard: list[Reading] = []
        for answer in answered:
            actor = self._asked.pop(answer)
            readings: list[Reading] = self._get(answer, self._name(actor))
            for reading in readings:
                self._note(reading)
            self._asked[actor.poll.remote()] = actor
            heard += readings
        return heard

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        """Ask all source tasks for a barrier."""
        self._order("request_barrier", {task: (epoch, final) for task in self._sources})

    def commit(self, epoch: int, staged: Mapping[TaskId, Sequence[Staged]]) -> None:
        """Have all sink tasks publish the epoch; return when they have."""
        self._order("commit", {task: (epoch, files) for task, files in staged.items()})

    def close(self) -> None:
        """End all tasks in good order and take their last readings."""
        closing = [(actor.close.remote(), self._name(actor)) for actor in self._actors]
        for answer, name in closing:
            self.stats |= {stats.task: stats for stats in self._get(answer, name, _CLOSE_TIMEOUT_S)}

    def end(self, timeout_s: float) -> None:
        """Have the tasks of an attempt that has failed close what they hold, as far as they can within ``timeout_s``."""
        if self._actors:
            ray.wait([actor.close.remote() for actor in self._actors], num_returns=len(self._actors), timeout=timeout_s)

    def kill(self) -> None:
        """End all actors at once; return when they are dead, so that none of them touches a file anymore."""
        for actor in self._actors:
            ray.kill(actor)
        deadline = monotonic() + _DEATH_TIMEOUT_S
        for actor in self._actors:
            while not _is_dead(actor, deadline - monotonic()):
                if monotonic() > deadline:
                    logger.warning(
                        "attempt=%d %s did not die within %.0f s", self._attempt, self._name(actor), _DEATH_TIMEOUT_S
                    )
                    break

    def _create(self, number: int, tasks: Sequence[TaskId]) -> ActorHandle:
        plans = [TaskPlan.of(self._graph, task, attempt=self._attempt) for task in tasks]
        plan = ActorPlan(
            pipeline=self._graph.spec.name,
            tasks=cloudpickle.dumps(plans),
            threads=max(1, int(plans[0].node.num_cpus)),
            fault=self._fault,
            log_level=logging.getLogger().getEffectiveLevel(),
            log_format=log_format(),
            paths=[str(Path(path or ".").resolve()) for path in sys.path],
        )
        kind = {SourceSpec: SourceActor, OperatorSpec: OperatorActor, SinkSpec: SinkActor}[type(plans[0].node)]
        groups = {"inbox": max(1, CREDIT * sum(len(task.inputs) for task in plans)), "poll": 1, "ctl": 1}
        remote = ray.remote(concurrency_groups=groups, max_restarts=0, max_task_retries=0)(kind)
        name = f"{self._graph.spec.name}.{tasks[0]}.{self._attempt}.{uuid4().hex[:8]}"
        return remote.options(name=name, **self._room.options(number)).remote(plan)

    def _name(self, actor: ActorHandle) -> str:
        return " with ".join(str(task) for task, other in self._actor_of.items() if other is actor)

    def _note(self, reading: Reading) -> None:
        """Keep the counters; raise the failure, if there is one."""
        task = reading.stats.task
        self.stats[task] = reading.stats
        if isinstance(reading.failure, PeerLost):
            # Its receiver has the cause to tell; if nobody has, this attempt is over all the same.
            if task in self._lost_peers:
                raise ActorLost(f"{task} cannot reach a receiver: {reading.failure}")
            self._lost_peers.add(task)
        elif reading.failure is not None:
            raise reading.failure

    def _prepare(self, step: str, arguments: Mapping[TaskId, Arguments]) -> dict[TaskId, Any]:
        """Have all these tasks take a step of their making, side by side; return what each answers."""
        answers = {task: self._actor_of[task].prepare.remote(task, step, *given) for task, given in arguments.items()}
        return {task: self._get_started(answer, task) for task, answer in answers.items()}

    def _start(self, arguments: Mapping[TaskId, Arguments]) -> None:
        answers = {}
        for task, given in arguments.items():
            receivers = {edge.receiver: self._actor_of[edge.receiver] for edge in self._graph.outputs_of(task)}
            answers[task] = self._actor_of[task].start.remote(task, receivers, *given)
        for task, answer in answers.items():
            self._get_started(answer, task)

    def _get_started(self, answer: Any, task: TaskId) -> Any:
        """Wait for a step of the start, which may take long (weights), but not for one that nobody wants anymore."""
        deadline = monotonic() + START_TIMEOUT_S
        while not ray.wait([answer], timeout=_LOOK_S)[0]:
            if self._stop.is_set():
                raise Stopped
            if monotonic() > deadline:
                raise ActorLost(f"no answer from {task} within {START_TIMEOUT_S:.0f} s of the start")
        return self._get(answer, str(task))

    def _order(self, what: str, arguments: Mapping[TaskId, Arguments]) -> None:
        answers = {task: self._actor_of[task].order.remote(task, what, *given) for task, given in arguments.items()}
        for task, answer in answers.items():
            self._get(answer, str(task), _ANSWER_TIMEOUT_S)

    @staticmethod
    def _get(answer: Any, name: str, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(answer, timeout=timeout_s)
        except RayActorError as error:
            raise ActorLost(f"the actor of {name} has died: {str(error).splitlines()[0]}") from None
        except GetTimeoutError:
            raise ActorLost(f"no answer from {name} within {timeout_s:.0f} s") from None
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, StreambankError) else error) from None


def _is_dead(actor: ActorHandle, timeout_s: float) -> bool:
    """Ask an actor that was killed: one that still answers, or does not answer in time, lives."""
    try:
        ray.get(actor.poll.remote(), timeout=max(0.1, timeout_s))
    except RayActorError:
        return True
    except (GetTimeoutError, RayTaskError):
        return False
    return False
