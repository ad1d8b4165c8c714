"""Exports the counters of tasks and of the run itself through Ray's Prometheus endpoint.

Tags (pipeline, node of the pipeline file, kind of task, shard) are bounded in number; a stream's name is never one.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipelines.runtime.coordinator import Coordinator
from pipelines.runtime.messages import TaskId
from pipelines.runtime.metrics import TaskStats

__all__ = ["RunMetrics", "TaskMetrics"]

_COUNTERS = {
    "rows_in": ("streambank_rows_in_total", "Rows read, processed or written."),
    "rows_out": ("streambank_rows_out_total", "Rows sent on; for a sink: committed."),
    "control_rows": ("streambank_control_rows_total", "Control rows taken."),
    "batches": ("streambank_batches_total", "Batches read, processed or written."),
    "step_s": ("streambank_step_seconds_total", "Seconds inside the reader, the operator or the sink."),
    "queue_wait_s": ("streambank_queue_wait_seconds_total", "Summed waiting time of batches before their step."),
    "late_rows": ("streambank_late_rows_total", "Rows that came behind the watermark of their input; only with align_s."),
    "blocked_s": ("streambank_blocked_seconds_total", "Seconds spent waiting for a receiver."),
}
_TAGS = ("pipeline", "node", "kind", "shard")


class TaskMetrics:
    """The metrics of one task; made and updated in its actor."""

    def __init__(self, pipeline: str, task: TaskId) -> None:
        self._tags = {"pipeline": pipeline, "node": task.node, "shard": str(task.shard)}
        self._counters = {field: Counter(name, text, tag_keys=_TAGS) for field, (name, text) in _COUNTERS.items()}
        self._dropped = Counter("streambank_dropped_total", "Rows or messages dropped.", tag_keys=(*_TAGS, "reason"))
        self._statuses = Counter(
            "streambank_status_total",
            "Rows given by status; of a source those with an error.",
            tag_keys=(*_TAGS, "output", "status"),
        )
        self._unread = Counter("streambank_unread_files_total", "Files not read, or not to the end.", tag_keys=_TAGS)
        self._epoch = Gauge("streambank_last_epoch", "Last epoch that the task has acknowledged.", tag_keys=_TAGS)
        self._held = Gauge("streambank_held_rows", "Rows that wait for other inputs; only with align_s.", tag_keys=_TAGS)
        self._lag = Gauge("streambank_source_lag_rows", "Rows that the source has not read yet.", tag_keys=_TAGS)
        self._operator = Gauge("streambank_operator", "Gauges of the operator itself.", tag_keys=(*_TAGS, "name"))
        self._before = TaskStats(task=task, kind="source")

    def update(self, stats: TaskStats) -> None:
        """Export what has changed since the last call."""
        tags = {**self._tags, "kind": stats.kind}
        for field, counter in self._counters.items():
            if (change := getattr(stats, field) - getattr(self._before, field)) > 0:
                counter.inc(change, tags)
        for reason, count in stats.dropped.items():
            if (change := count - self._before.dropped[reason]) > 0:
                self._dropped.inc(change, {**tags, "reason": reason})
        before = {"": self._before.tally, **self._before.tally.outputs}
        for output, tally in ("", stats.tally), *stats.tally.outputs.items():
            earlier = before[output].statuses if output in before else {}
            for status, count in tally.statuses.items():
                if (change := count - earlier.get(status, 0)) > 0:
                    self._statuses.inc(change, {**tags, "output": output, "status": status})
        if (change := stats.tally.unread_files - self._before.tally.unread_files) > 0:
            self._unread.inc(change, tags)
        for name, value in stats.gauges.items():
            self._operator.set(value, {**tags, "name": name})
        if stats.lag_rows is not None:
            self._lag.set(stats.lag_rows, tags)
        if stats.held_rows or self._before.held_rows:
            self._held.set(stats.held_rows, tags)
        self._epoch.set(stats.last_epoch, tags)
        self._before = stats


class RunMetrics:
    """The metrics of the run as a whole; made and updated in the driver."""

    def __init__(self, pipeline: str) -> None:
        self._tags = {"pipeline": pipeline}
        tags = ("pipeline",)
        self._attempts = Gauge("streambank_attempts", "Attempts of this run so far: 1 unless actors died.", tag_keys=tags)
        self._epoch = Gauge("streambank_committed_epoch", "Last committed epoch, -1 before the first.", tag_keys=tags)
        self._seconds = Gauge("streambank_epoch_seconds", "From barrier to commit of the last epoch.", tag_keys=tags)
        self._age = Gauge("streambank_epoch_age_seconds", "Since the last commit, or the start of the attempt.", tag_keys=tags)
        self._rows = Gauge(
            "streambank_rows_committed", "Rows of a source or sink since the first epoch.", tag_keys=("pipeline", "node")
        )

    def update(self, coordinator: Coordinator, attempts: int, now_s: float) -> None:
        """Export how the run stands; ``now_s`` is by the coordinator's clock."""
        self._attempts.set(attempts, self._tags)
        self._epoch.set(coordinator.last_epoch, self._tags)
        self._age.set(now_s - coordinator.committed_s, self._tags)
        if coordinator.epoch_seconds is not None:
            self._seconds.set(coordinator.epoch_seconds, self._tags)
        if coordinator.manifest is not None:
            for node, rows in coordinator.manifest.rows.items():
                self._rows.set(rows, {**self._tags, "node": node})
