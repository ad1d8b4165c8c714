"""The actors of one attempt, seen from the driver: made, connected, listened to, told to commit, ended.

Knows nothing of retries. An actor that dies makes ``hear`` or ``commit`` raise ``ActorLost``; an error inside a task is raised
as it is.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from connectors.base import Staged
from connectors.errors import StreambankError
from pipelines.graph import Graph
from pipelines.runners.actors import ActorPlan, OperatorActor, SinkActor, SourceActor
from pipelines.runners.cluster import Share
from pipelines.runners.transport import CREDIT, PeerLost
from pipelines.runtime.host import Reading
from pipelines.runtime.manifest import Manifest
from pipelines.runtime.messages import TaskId
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.recovery import assign_splits, staged_of
from pipelines.runtime.sizing import read_rows
from pipelines.spec import OperatorSpec, SourceSpec

__all__ = ["ActorLost", "Fleet"]

START_TIMEOUT_S = 300.0
"""Time for all actors to be placed and to load their weights."""

_ANSWER_TIMEOUT_S = 300.0
_CLOSE_TIMEOUT_S = 10.0
_DEATH_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


class ActorLost(StreambankError):
    """An actor of this attempt has died or hangs."""


class Fleet:
    """All actors of one attempt."""

    def __init__(self, graph: Graph, shares: Mapping[TaskId, Share], *, attempt: int, fault: str | None) -> None:
        self.stats: dict[TaskId, TaskStats] = {}
        self.reading_since = monotonic()
        """When the sources were told to read (until then: when this was made)."""
        self._graph = graph
        self._shares = shares
        self._attempt = attempt
        self._fault = fault
        self._actors: dict[TaskId, ActorHandle] = {}
        self._asked: dict[Any, TaskId] = {}
        self._lost_peers: set[TaskId] = set()
        self._sources = [task for node in graph.spec.sources for task in graph.tasks_of(node.name)]

    def start(self, base: Manifest | None) -> None:
        """Make all actors and set them to work from ``base``."""
        spec = self._graph.spec
        run = uuid4().hex[:8]
        for task in self._graph.tasks:
            self._actors[task] = self._create(task, run)
        described = self._all({task: self._actors[task].describe.remote() for task in self._sources})
        built = {
            task: self._actors[task].build.remote(
                self._shares[task].device, self._shares[task].gpus, self._states(base, task.node)
            )
            for node in spec.operators
            for task in self._graph.tasks_of(node.name)
        }
        schemas = {task.node: schema for task, (_, schema) in described.items()}
        schemas |= {task.node: schema for task, schema in self._all(built).items()}
        epoch = base.epoch if base is not None else -1
        firsts = {sink.name: self._actors[TaskId(sink.name, 0)] for sink in spec.sinks}
        self._all({name: actor.recover.remote(epoch, staged_of(base, name)) for name, actor in firsts.items()})
        starts: dict[TaskId, Any] = {}
        for sink in spec.sinks:
            inputs = {name: schemas[name] for name in sink.inputs}
            starts |= {task: self._actors[task].start.remote(inputs) for task in self._graph.tasks_of(sink.name)}
        for operator in spec.operators:
            starts |= {
                task: self._actors[task].start.remote(self._receivers(task)) for task in self._graph.tasks_of(operator.name)
            }
        self._all(starts)
        self.reading_since = monotonic()
        for source in spec.sources:
            listed, _ = described[TaskId(source.name, 0)]
            splits = assign_splits(source.name, listed, base, source.parallelism)
            tasks = zip(self._graph.tasks_of(source.name), splits, strict=True)
            self._all({task: self._actors[task].start.remote(share, self._receivers(task)) for task, share in tasks})
        self._asked = {actor.poll.remote(): task for task, actor in self._actors.items()}

    def hear(self, timeout_s: float) -> list[Reading]:
        """Return what tasks have to tell; wait ``timeout_s`` for the first. Raise ``ActorLost`` or a task's own error."""
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        if not answered:
            answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=timeout_s)
        readings = []
        for answer in answered:
            task = self._asked.pop(answer)
            reading: Reading = self._get(answer, task)
            self.stats[task] = reading.stats
            if isinstance(reading.failure, PeerLost):
                # Its receiver has the cause to tell; if nobody has, this attempt is over all the same.
                if task in self._lost_peers:
                    raise ActorLost(f"{task} cannot reach a receiver: {reading.failure}")
                self._lost_peers.add(task)
            elif reading.failure is not None:
                raise reading.failure
            self._asked[self._actors[task].poll.remote()] = task
            readings.append(reading)
        return readings

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        """Ask all source tasks for a barrier."""
        asked = {task: self._actors[task].request_barrier.remote(epoch, final) for task in self._sources}
        self._all(asked, _ANSWER_TIMEOUT_S)

    def commit(self, epoch: int, staged: Mapping[TaskId, Sequence[Staged]]) -> None:
        """Have all sink tasks publish the epoch; return when they have."""
        self._all({task: self._actors[task].commit.remote(epoch, files) for task, files in staged.items()}, _ANSWER_TIMEOUT_S)

    def close(self) -> None:
        """End all tasks in good order and take their last readings."""
        self.stats |= self._all({task: actor.close.remote() for task, actor in self._actors.items()}, _CLOSE_TIMEOUT_S)

    def kill(self) -> None:
        """End all actors at once; return when they are dead, so that none of them touches a file any more."""
        for actor in self._actors.values():
            ray.kill(actor)
        deadline = monotonic() + _DEATH_TIMEOUT_S
        for task, actor in self._actors.items():
            while not _is_dead(actor, deadline - monotonic()):
                if monotonic() > deadline:
                    logger.warning("attempt=%d %s did not die within %.0f s", self._attempt, task, _DEATH_TIMEOUT_S)
                    break

    def _create(self, task: TaskId, run: str) -> ActorHandle:
        node = self._graph.spec.node(task.node)
        inputs = self._graph.inputs_of(task)
        plan = ActorPlan(
            task=task,
            node=node,
            inputs=inputs,
            outputs=self._graph.outputs_of(task),
            attempt=self._attempt,
            state=self._graph.spec.state,
            read_rows=read_rows(self._graph.spec, task.node),
            threads=max(1, int(node.num_cpus)),
            fault=self._fault,
            log_level=logging.getLogger().getEffectiveLevel(),
            paths=[str(Path(path or ".").resolve()) for path in sys.path],
        )
        kind = SourceActor if isinstance(node, SourceSpec) else OperatorActor if isinstance(node, OperatorSpec) else SinkActor
        share = self._shares[task]
        lanes = {"inbox": max(1, CREDIT * len(inputs)), "poll": 1, "ctl": 1}
        remote = ray.remote(concurrency_groups=lanes, max_restarts=0, max_task_retries=0)(kind)
        name = f"{self._graph.spec.name}.{task}.{run}.{self._attempt}"
        return remote.options(name=name, num_cpus=share.cpus, num_gpus=share.gpus).remote(plan)

    def _receivers(self, task: TaskId) -> dict[TaskId, ActorHandle]:
        return {edge.receiver: self._actors[edge.receiver] for edge in self._graph.outputs_of(task)}

    @staticmethod
    def _states(base: Manifest | None, node: str) -> Sequence[Any]:
        return base.operators.get(node, ()) if base is not None else ()

    def _all(self, answers: Mapping[Any, Any], timeout_s: float = START_TIMEOUT_S) -> dict[Any, Any]:
        """Wait for one answer per key."""
        return {key: self._get(answer, key, timeout_s) for key, answer in answers.items()}

    def _get(self, answer: Any, task: TaskId | str, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(answer, timeout=timeout_s)
        except RayActorError as error:
            raise ActorLost(f"the actor of {task} has died: {str(error).splitlines()[0]}") from None
        except GetTimeoutError:
            raise ActorLost(f"no answer from {task} within {timeout_s:.0f} s") from None
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
