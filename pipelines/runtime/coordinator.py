"""Epochs of one attempt: when one begins, who has answered, the manifest that commits it, and the end of the run.

Knows tasks by their ids only and speaks to them through a ``Fleet``. One epoch is under way at a time. Invariant: sinks are
told to publish an epoch only after its manifest is durable, and the next epoch begins only after they have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from connectors import faults
from connectors.base import Staged
from connectors.errors import StreambankError
from pipelines.graph import Graph
from pipelines.runtime.clock import Clock
from pipelines.runtime.logs import about_process
from pipelines.runtime.manifest import Manifest, OperatorState, StateFolder
from pipelines.runtime.messages import Ack, Event, Exhausted, OperatorAck, SinkAck, SourceAck, SplitState, TaskId
from pipelines.runtime.recovery import options_of
from pipelines.runtime.tally import Tally

__all__ = ["EPOCH_TIMEOUT_S", "Coordinator", "EpochTimeout", "Fleet"]

EPOCH_TIMEOUT_S = 600.0
"""An epoch that is not complete by then is given up together with its attempt: some task hangs."""

logger = logging.getLogger(__name__)


class EpochTimeout(StreambankError):
    """Tasks did not answer a barrier in time."""


class Fleet(Protocol):
    """How the coordinator reaches the tasks of its attempt."""

    def request_barrier(self, epoch: int, *, final: bool) -> None:
        """Ask every source task for ``Barrier(epoch)``."""
        ...

    def commit(self, epoch: int, staged: Mapping[TaskId, Sequence[Staged]]) -> None:
        """Have every sink task publish its files; return when all have."""
        ...


class Coordinator:
    """The epochs of one attempt, from the one after ``base`` on."""

    def __init__(
        self,
        graph: Graph,
        folder: StateFolder,
        fleet: Fleet,
        clock: Clock,
        *,
        base: Manifest | None,
        attempt: int,
        timeout_s: float = EPOCH_TIMEOUT_S,
    ) -> None:
        self.done = False
        """The final epoch is committed."""
        self.manifest = base
        """The last committed one."""
        self.earlier = base.tallies if base is not None else {}
        """What had become of the rows when this attempt began, by node."""
        self.epochs = 0
        """How many this attempt has committed."""
        self.epoch_seconds: float | None = None
        """How long the last of them took, from its barrier to the last sink's commit."""
        self.committed_s = clock()
        """When it was committed, by the clock; before the first: when this was made."""
        self._graph = graph
        self._folder = folder
        self._fleet = fleet
        self._clock = clock
        self._attempt = attempt
        self._timeout_s = timeout_s
        self._options = options_of(graph.spec)
        self._tasks = graph.tasks
        self._tasks_of = {name: graph.tasks_of(name) for name in graph.spec.nodes}
        self._reading = {task for source in graph.spec.sources for task in self._tasks_of[source.name]}
        self._rows_before = dict(base.rows) if base is not None else {}
        self._acks: dict[TaskId, Ack] = {}
        self._epoch: int | None = None
        self._final = False
        self._stopping = False
        self._began_s = clock()
        about_process(pipeline=graph.spec.name, attempt=attempt, epoch=self.last_epoch)

    @property
    def last_epoch(self) -> int:
        """The last committed epoch, -1 before the first."""
        return self.manifest.epoch if self.manifest is not None else -1

    @property
    def read_all(self) -> bool:
        """True when there is nothing left to read that the run waits for."""
        return not self._reading

    @property
    def under_way(self) -> bool:
        """True between the request for a barrier and the commit of its epoch."""
        return self._epoch is not None

    def report(self, event: Event) -> None:
        """Take note of what a task says. Answers to an epoch that is not under way are ignored: they can only be repeats."""
        if isinstance(event, Exhausted):
            self._reading.discard(event.task)
        elif event.epoch == self._epoch:
            self._acks[event.task] = event

    def stop(self) -> None:
        """End the run with one more epoch."""
        self._stopping = True

    def tick(self) -> None:
        """Begin an epoch that is due, or commit the one that is complete. Raise ``EpochTimeout`` for one that hangs."""
        if self.done:
            return
        now = self._clock()
        if self._epoch is not None:
            missing = [task for task in self._tasks if task not in self._acks]
            if not missing:
                self._commit(self._epoch)
            elif now - self._began_s > self._timeout_s:
                raise EpochTimeout(
                    f"epoch {self._epoch} is not complete after {self._timeout_s:.0f} s; no answer from "
                    f"{', '.join(map(str, missing))}"
                )
        else:
            final = self._stopping or not self._reading
            if final or now >= self._began_s + self._graph.spec.epoch_s:  # the same sum as in idle_s
                self._epoch, self._final, self._began_s = self.last_epoch + 1, final, now
                self._acks = {}
                self._fleet.request_barrier(self._epoch, final=final)

    def idle_s(self) -> float:
        """Return the seconds until ``tick`` has something to do on its own."""
        if self._epoch is None and (self._stopping or not self._reading):
            return 0.0
        wait_s = self._timeout_s if self._epoch is not None else self._graph.spec.epoch_s
        return max(0.0, self._began_s + wait_s - self._clock())

    def _commit(self, epoch: int) -> None:
        manifest = self._build(epoch)
        faults.reach("before_manifest", epoch)
        self._folder.write(manifest)
        faults.reach("after_manifest", epoch)
        self.manifest = manifest
        self.epochs += 1
        self._epoch = None
        sinks = {task: ack.staged for task, ack in self._acks.items() if isinstance(ack, SinkAck)}
        self._fleet.commit(epoch, sinks)
        self._folder.clean()
        self.done = self._final
        self.committed_s = self._clock()
        self.epoch_seconds = self.committed_s - self._began_s
        about_process(epoch=epoch)
        logger.debug("epoch=%d committed attempt=%d seconds=%.3f", epoch, self._attempt, self.epoch_seconds)

    def _build(self, epoch: int) -> Manifest:
        spec = self._graph.spec
        sources: dict[str, dict[str, SplitState]] = {}
        operators: dict[str, tuple[OperatorState, ...]] = {}
        sinks: dict[str, tuple[tuple[Staged, ...], ...]] = {}
        rows: dict[str, int] = {}
        ended: dict[str, dict[str, SplitState]] = {}
        tallies: dict[str, Tally] = {}
        endless = False
        for source in spec.sources:
            acks = [ack for ack in self._of(source.name) if isinstance(ack, SourceAck)]
            states = {split: state for ack in acks for split, state in ack.splits.items()}
            sources[source.name] = {split: state for split, state in states.items() if not state.done}
            ended[source.name] = {split: state for split, state in states.items() if state.done}
            endless |= any(ack.endless for ack in acks)
            tallies[source.name] = self._tally(source.name, [ack.tally for ack in acks])
            rows[source.name] = self._rows_before.get(source.name, 0) + sum(ack.rows for ack in acks)
        for operator in spec.operators:
            answers = [ack for ack in self._of(operator.name) if isinstance(ack, OperatorAck)]
            tallies[operator.name] = self._tally(operator.name, [ack.tally for ack in answers])
            operators[operator.name] = tuple(
                OperatorState(tuple(ack.chain), ack.open_streams, ack.alignment) for ack in answers
            )
        for sink in spec.sinks:
            done = [ack for ack in self._of(sink.name) if isinstance(ack, SinkAck)]
            staged = [tuple(ack.staged) for ack in done]
            sinks[sink.name] = tuple(staged)
            if not (tally := self._tally(sink.name, [ack.tally for ack in done])).all_ok:
                tallies[sink.name] = tally
            before = self.manifest.rows.get(sink.name, 0) if self.manifest is not None else 0
            rows[sink.name] = before + sum(file.rows for shard in staged for file in shard)
        return Manifest(
            name=spec.name,
            options=self._options,
            attempt=self._attempt,
            epoch=epoch,
            finished=self._final and not endless and not any(sources.values()),
            sources=sources,
            ended=self._folder.add_ended(self.manifest, epoch, ended),
            operators=operators,
            sinks=sinks,
            rows=rows,
            tallies=tallies,
        )

    def _tally(self, node: str, parts: Sequence[Tally]) -> Tally:
        return Tally.sum(parts).after(self.earlier.get(node, Tally()))

    def _of(self, node: str) -> list[Ack]:
        return [self._acks[task] for task in self._tasks_of[node]]
