"""Telemetry of the machine that runs the source, as a sensor feed that is available everywhere: load, memory, disk, network.

One row per interval. Cannot replay: what was not committed when something died is gone (at most once).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.options import option
from connectors.records import TIME_TYPE, field, key_schema, sample_schema
from connectors.sources.channels import check_channels

__all__ = ["HOST", "HostOptions", "HostReader", "HostSource"]

HOST = key_schema(
    "host",
    1,
    [
        field("cpu", pa.float32(), unit="%"),
        field("memory", pa.float32(), unit="%"),
        field("swap", pa.float32(), unit="%"),
        field("load", pa.float32()),
        field("processes", pa.int32()),
        field("disk_read", pa.float32(), unit="B/s"),
        field("disk_write", pa.float32(), unit="B/s"),
        field("net_receive", pa.float32(), unit="B/s"),
        field("net_send", pa.float32(), unit="B/s"),
        field("temperature", pa.float32(), unit="degC"),
        pa.field("error", pa.string()),
    ],
)
"""``cpu`` over all cores since the row before; ``load`` is that of a minute; ``temperature`` is the highest sensor's. Null
where the machine does not tell."""

_MEASURED = tuple(name for name in HOST.names if name not in ("stream_id", "sequence", "event_time", "error"))

_MAX_BEHIND = 1
"""Intervals that may be missed without being skipped: a sensor reads now, not what was."""


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """Options of the source ``host``."""

    interval_s: float = option(1.0, "Time between rows.", unit="s", ge=0.05)
    stream_id: str | None = option(None, "Stream id; default: the machine's host name.")
    duration_s: float | None = option(None, "End after this long; default: never.", unit="s", gt=0)
    channels: str | list[str] | None = option(
        None,
        "Columns to pack into one column `values` (sample.v1), which operators of sensor data take: a list, or all. Default: a "
        "column each.",
    )

    def __post_init__(self) -> None:
        check_channels(self.channels, _MEASURED)

    @property
    def measured(self) -> list[str] | None:
        """The channels by name; None where each is a column."""
        return list(_MEASURED) if isinstance(self.channels, str) else self.channels


class HostSource(Source):
    """One split and stream: this machine. Rows of host.v1; with ``channels`` of sample.v1."""

    Options = HostOptions
    options: HostOptions
    replayable = False
    schema = HOST

    def __init__(self, options: HostOptions) -> None:
        super().__init__(options)
        self.bounded = options.duration_s is not None
        self.schema = HOST if options.measured is None else sample_schema(options.measured)

    def splits(self) -> list[str]:
        """Return the stream id."""
        return [self.options.stream_id or platform.node() or "host"]

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> HostReader:
        """Begin to measure."""
        return HostReader(split, self.options, position)


class HostReader(Reader):
    """Rows at fixed intervals by a monotonic clock. Rates are taken over the time since the row before."""

    def __init__(
        self, name: str, options: HostOptions, position: Position | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.closes: Sequence[str] = (name,)
        self._name = name
        self._options = options
        self._schema = HOST if options.measured is None else sample_schema(options.measured)
        self._clock = clock
        self._sequence = int(position["sequence"]) if position is not None else 0
        self._time_us = int(position["time_us"]) if position is not None else 0
        began_s = clock()
        self._end_s = began_s + options.duration_s if options.duration_s is not None else None
        self._due_s = began_s + options.interval_s
        self._last_s = began_s
        self._counters = _counters()
        psutil.cpu_percent()  # the first call only begins to measure

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return one row when it is due."""
        now_s = self._clock()
        if self._end_s is not None and now_s >= self._end_s:
            self.exhausted = True
        if self.exhausted or now_s < self._due_s:
            return None
        interval_s = self._options.interval_s
        self._due_s += interval_s
        if self._due_s < now_s - _MAX_BEHIND * interval_s:
            self._due_s = now_s + interval_s
        self._time_us = max(self._time_us + 1, time.time_ns() // 1000)
        measured = self._measure(now_s - self._last_s)
        self._last_s = now_s
        row = {"stream_id": self._name, "sequence": self._sequence, **measured, "error": None}
        if self._options.measured is not None:
            row["values"] = [measured[name] for name in self._options.measured]
        columns = [
            pa.array([self._time_us]).cast(TIME_TYPE) if name == "event_time" else pa.array([row[name]], kind)
            for name, kind in zip(self._schema.names, self._schema.types, strict=True)
        ]
        self._sequence += 1
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def position(self) -> Position:
        """Return where the counters stand."""
        return {"sequence": self._sequence, "time_us": self._time_us}

    def next_due(self) -> float | None:
        """Return the seconds until the next row."""
        return max(0.0, self._due_s - self._clock())

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _measure(self, seconds: float) -> dict[str, Any]:
        before, self._counters = self._counters, _counters()
        rates = {
            name: None if now is None or then is None else max(0.0, now - then) / seconds
            for (name, now), then in zip(self._counters.items(), before.values(), strict=True)
        }
        return {
            "cpu": psutil.cpu_percent(),
            "memory": psutil.virtual_memory().percent,
            "swap": psutil.swap_memory().percent,
            "load": psutil.getloadavg()[0],
            "processes": len(psutil.pids()),
            **rates,
            "temperature": _temperature(),
        }


def _counters() -> dict[str, float | None]:
    disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
    return {
        "disk_read": disk.read_bytes if disk else None,
        "disk_write": disk.write_bytes if disk else None,
        "net_receive": net.bytes_recv if net else None,
        "net_send": net.bytes_sent if net else None,
    }


def _temperature() -> float | None:
    read = getattr(psutil, "sensors_temperatures", None)  # Linux and FreeBSD only
    found = [sensor.current for sensors in read().values() for sensor in sensors] if read is not None else []
    return max(found, default=None)
