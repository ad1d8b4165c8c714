"""Runs a pipeline on Ray: the driver coordinates, every task is an actor.

Ray's own restarts and retries are off, since they repeat and reorder calls. When an actor dies, the attempt is ended and the
next one goes on from the last committed epoch.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from connectors import faults
from connectors.errors import StreambankError
from pipelines.graph import Graph
from pipelines.runners.cluster import check_local_gpus, cluster
from pipelines.runners.fleet import ActorLost, Fleet
from pipelines.runners.placement import placement
from pipelines.runners.ray_metrics import RunMetrics
from pipelines.runners.report import Progress, RunReport, finish, idle, make_progress, make_report
from pipelines.runners.reservation import Stopped, reserve
from pipelines.runtime.clock import SystemClock
from pipelines.runtime.coordinator import Coordinator, EpochTimeout
from pipelines.runtime.manifest import Manifest, StateFolder
from pipelines.runtime.recovery import something_to_read, starting_point
from pipelines.spec import PipelineSpec

__all__ = ["RayRunner"]

_HEAR_S = 0.1
_PROGRESS_S = 0.5

_END_S = 2.0
"""Time that the tasks of a failed attempt have to close operators and sinks before their processes are killed."""

logger = logging.getLogger(__name__)


class RayRunner:
    """One run, of as many attempts as it takes."""

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        resume: bool,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event,
        fault: str | None,
    ) -> None:
        self._spec = spec
        self._graph = Graph(spec)
        self._resume = resume
        self._on_progress = on_progress
        self._stop = stop
        self._fault = fault
        self._clock = SystemClock()

    def run(self) -> RunReport:
        """Run to the end of the sources or until stopped. Needs ``max_attempts`` deaths in a row, no epoch between, to fail."""
        began = time.monotonic()
        faults.arm(self._fault)
        folder = StateFolder(self._spec.state)
        with contextlib.ExitStack() as cleanup:
            folder.open()
            cleanup.callback(folder.close)
            base = starting_point(folder, self._spec, resume=self._resume)
            if base is not None and base.finished and not something_to_read(self._spec, base):
                return finish(self._spec, base, "ray")
            check_local_gpus(self._graph)
            cleanup.enter_context(cluster(self._graph))
            return self._attempts(folder, base, began)

    def _attempts(self, folder: StateFolder, base: Manifest | None, began: float) -> RunReport:
        metrics = RunMetrics(self._spec.name)
        attempts = failures = 0
        first = base.epoch if base is not None else -1
        while True:
            attempts += 1
            try:
                report = self._attempt(folder, base, attempts, metrics)
            except Stopped:
                report = idle(base, "ray", "stopped")
            except (ActorLost, EpochTimeout) as error:
                last = base.epoch if base is not None else -1
                base = folder.newest()
                epoch = base.epoch if base is not None else -1
                failures = 1 if epoch > last else failures + 1
                if base is not None and base.finished:
                    report = replace(finish(self._spec, base, "ray"), status="finished")
                elif failures >= self._spec.max_attempts:
                    raise StreambankError(
                        f"gave up after {failures} attempts in a row without a committed epoch; the last one ended because "
                        f"{error}. Look for the reason in the log of that task (out of memory?); --resume goes on from epoch "
                        f"{epoch}"
                    ) from error
                else:
                    logger.warning("attempt ended: %s; going on from epoch %d", error, epoch)
                    continue
            startup_s = time.monotonic() - began - report.seconds
            return replace(report, attempts=attempts, epochs=report.epoch - first, startup_s=startup_s)

    def _attempt(self, folder: StateFolder, base: Manifest | None, number: int, metrics: RunMetrics) -> RunReport:
        """Run one attempt to its end; all its actors are dead when this returns or raises."""
        room = reserve(self._graph, placement(self._graph), again=number > 1, stop=self._stop)
        attempt = folder.next_attempt(base)
        fleet = Fleet(self._graph, room, attempt=attempt, fault=self._fault if number == 1 else None, stop=self._stop)
        try:
            fleet.start(base)
            started = fleet.reading_since
            coordinator = Coordinator(self._graph, folder, fleet, self._clock, base=base, attempt=attempt)
            logger.info("pipeline=%s runner=ray attempt=%d epoch=%d", self._spec.name, attempt, coordinator.last_epoch)
            self._supervise(fleet, coordinator, attempt, started, lambda: metrics.update(coordinator, number, self._clock()))
            seconds = time.monotonic() - started
            with contextlib.suppress(ActorLost):  # all is committed
                fleet.close()
            return make_report(list(fleet.stats.values()), coordinator, runner="ray", seconds=seconds)
        except Exception:
            fleet.end(_END_S)
            raise
        finally:
            fleet.kill()
            room.release()

    def _supervise(
        self, fleet: Fleet, coordinator: Coordinator, attempt: int, started: float, export: Callable[[], None]
    ) -> None:
        told_s = -_PROGRESS_S
        while not coordinator.done:
            if self._stop.is_set():
                coordinator.stop()
            coordinator.tick()
            for reading in fleet.hear(min(_HEAR_S, coordinator.idle_s())):
                for event in reading.events:
                    coordinator.report(event)
            now = time.monotonic()
            if now - told_s < _PROGRESS_S:
                continue
            told_s = now
            export()
            if self._on_progress is not None:
                self._on_progress(make_progress(list(fleet.stats.values()), coordinator, attempt, now - started))
        export()
        if self._on_progress is not None:
            stats = list(fleet.stats.values())
            self._on_progress(make_progress(stats, coordinator, attempt, time.monotonic() - started))
