"""What a runner tells while it runs (``Progress``) and at its end (``RunReport``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipelines.runtime.coordinator import Coordinator
from pipelines.runtime.manifest import Manifest
from pipelines.runtime.metrics import TaskStats
from pipelines.runtime.recovery import staged_of
from pipelines.runtime.tally import Tally
from pipelines.spec import PipelineSpec

__all__ = ["Progress", "RunReport", "finish", "idle", "make_progress", "make_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A reading, about twice a second. Counts are those of the current attempt, except ``rows_committed``."""

    seconds: float
    """Since the first row could be read (start-up not counted)."""
    attempt: int
    epoch: int
    """Last committed epoch, -1 before the first."""
    rows_read: int
    """By all sources."""
    rows_written: int
    """Handed to all sinks, committed or not."""
    rows_left: int | None
    """Estimated rows that the sources have not read yet; None where a source cannot tell."""
    rows_committed: Mapping[str, int]
    """Per source and sink, from the first epoch to the last committed one."""
    tasks: Sequence[TaskStats]
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Per source and operator what has become of its rows, from the first epoch to now, committed or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended."""

    status: Literal["finished", "stopped", "already finished"]
    """``stopped``: on request; ``--resume`` goes on from there. ``already finished``: nothing has come since."""
    runner: str
    seconds: float
    """From the first possible row to the last commit; on Ray of the last attempt."""
    startup_s: float
    """The rest: opening sources and sinks, loading weights, starting Ray, attempts that failed."""
    attempts: int
    """1 unless actors died on the way."""
    epoch: int
    epochs: int
    """Committed by this run."""
    rows_committed: Mapping[str, int]
    """Per source and sink, over all runs into this state folder."""
    tasks: Sequence[TaskStats]
    """Last reading of every task, of the last attempt."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Per source and operator what has become of its rows, over all runs into this state folder."""

    @property
    def all_ok(self) -> bool:
        """Whether every row came out with a good status and nothing was lost, late or left unread."""
        return all(tally.all_ok for tally in self.tallies.values())


def make_progress(tasks: Sequence[TaskStats], coordinator: Coordinator, attempt: int, seconds: float) -> Progress:
    """Sum up the readings of all tasks."""
    sources = [stats for stats in tasks if stats.kind == "source"]
    left = [stats.lag_rows for stats in sources]
    return Progress(
        seconds=seconds,
        attempt=attempt,
        epoch=coordinator.last_epoch,
        rows_read=sum(stats.rows_in for stats in sources),
        rows_written=sum(stats.rows_in for stats in tasks if stats.kind == "sink"),
        rows_left=None if None in left else sum(rows for rows in left if rows is not None),
        rows_committed=coordinator.manifest.rows if coordinator.manifest is not None else {},
        tasks=tasks,
        tallies=_tallies(tasks, coordinator),
    )


def _tallies(tasks: Sequence[TaskStats], coordinator: Coordinator) -> dict[str, Tally]:
    """Add up what the tasks have counted in this attempt and what had been counted before."""
    parts: dict[str, list[Tally]] = {}
    for stats in tasks:
        if stats.kind != "sink" or not stats.tally.all_ok:
            parts.setdefault(stats.task.node, []).append(stats.count())
    return {node: Tally.sum(own).after(coordinator.earlier.get(node, Tally())) for node, own in parts.items()}


def make_report(tasks: Sequence[TaskStats], coordinator: Coordinator, *, runner: str, seconds: float) -> RunReport:
    """Return the report of an attempt that came to its end."""
    manifest = coordinator.manifest
    assert manifest is not None  # the end is a committed epoch
    return RunReport(
        status="finished" if manifest.finished or coordinator.read_all else "stopped",
        runner=runner,
        seconds=seconds,
        startup_s=0.0,
        attempts=1,
        epoch=manifest.epoch,
        epochs=coordinator.epochs,
        rows_committed=manifest.rows,
        tasks=tasks,
        tallies=manifest.tallies,
    )


def finish(spec: PipelineSpec, manifest: Manifest, runner: str) -> RunReport:
    """Return the report of a run that finds nothing left to read; publish what a crash after the last manifest left staged."""
    for sink in spec.sinks:
        sink.build().recover(manifest.epoch, staged_of(manifest, sink.name))
    return idle(manifest, runner, "already finished")


def idle(manifest: Manifest | None, runner: str, status: Literal["stopped", "already finished"]) -> RunReport:
    """Return the report of a run that has read nothing."""
    return RunReport(
        status=status,
        runner=runner,
        seconds=0.0,
        startup_s=0.0,
        attempts=0,
        epoch=manifest.epoch if manifest is not None else -1,
        epochs=0,
        rows_committed=manifest.rows if manifest is not None else {},
        tasks=(),
        tallies=manifest.tallies if manifest is not None else {},
    )
