"""Drives an operator through its contract for :mod:`pipelines.testing.conformance`, and compares what a user would see."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Operator
from operators.state import State
from pipelines.testing._compare import ColumnCompare, clone_state, state_difference, table_difference

Ints = npt.NDArray[np.int64]


class ConformanceError(AssertionError):
    """An operator broke one of the promises of ``operators.base``."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the checks need to know about an operator. The fields are the arguments of :func:`check_operator`."""

    make: Callable[[], Operator]
    rows: pa.RecordBatch
    make_aligned: Callable[[], Operator] | None = None
    control: pa.RecordBatch | None = None
    bad_rows: pa.RecordBatch | None = None
    compare: Mapping[str, ColumnCompare] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset({"latency_ms"})
    atol: float = 0.0
    rtol: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.streams) < 2:
            raise ValueError(f"rows must hold at least 2 streams, got {self.streams}")

    @property
    def streams(self) -> list[str]:
        """Stream ids, sorted."""
        return sorted(set(self.rows.column("stream_id").to_pylist()))

    def rng(self) -> np.random.Generator:
        """Return the generator of the random interleavings and cuts."""
        return np.random.default_rng(self.seed)


def resources() -> set[str]:
    """Return the threads, child processes and open files of this process."""
    threads = {f"thread {thread.name!r} ({thread.ident})" for thread in threading.enumerate()}
    processes = {f"process {child.pid}" for child in psutil.Process().children(recursive=True)}
    files = set()
    if Path("/proc/self/fd").exists():
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the descriptor of this very listing
                files.add(f"descriptor {entry.name} of {entry.readlink()}")
    return threads | processes | {name for name in files if "/proc/" not in name}


# Driving an operator


def process_rows(operator: Operator, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    return checked_batches(operator, operator.process(batch))


def control_rows(operator: Operator, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    return checked_batches(operator, operator.control(batch))


def checked_batches(operator: Operator, batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the batches; raise where they hold a status that the operator does not declare."""
    unknown = statuses_of(batches) - set(operator.statuses)
    if unknown:
        raise ConformanceError(f"statuses: {sorted(unknown)} emitted, declared are {sorted(operator.statuses)}")
    return batches


def statuses_of(batches: Sequence[pa.RecordBatch]) -> set[str]:
    return {status for batch in batches for status in pc.unique(batch.column("status").cast(pa.string())).to_pylist()}


def is_keyed(operator: Operator) -> bool:
    return operator.keyed(operator.options)


def times_of(batch: pa.RecordBatch) -> Ints:
    times: Ints = batch.column("event_time").cast(pa.int64()).to_numpy()
    return times


def by_time(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.take(pa.array(np.argsort(times_of(batch), kind="stable")))


def rows_between(batch: pa.RecordBatch, start: int, stop: int) -> pa.RecordBatch:
    times = times_of(batch)
    return batch.filter(pa.array((times >= start) & (times < stop)))


def uncounted(state: State) -> State:
    """Return a copy without the counters, which bad rows may change."""
    copy = clone_state(state)
    copy.additive.pop("counters", None)
    return copy


@dataclass(frozen=True, slots=True)
class Event:
    stream: str
    row: int
    control: bool


Step = Sequence[Event]


def events_of(case: Case) -> dict[str, list[Event]]:
    """Return what happens to each stream, in order: rows as they stand, control rows where their time falls."""
    streams = case.rows.column("stream_id").to_pylist()
    times = case.rows.column("event_time").cast(pa.int64()).to_pylist()
    keyed: dict[str, list[tuple[tuple[int, int], Event]]] = {stream: [] for stream in case.streams}
    latest: dict[str, int] = {}
    for row, (stream, time_us) in enumerate(zip(streams, times, strict=True)):
        latest[stream] = max(time_us, latest.get(stream, time_us))
        keyed[stream].append(((latest[stream], 0), Event(stream, row, False)))
    if case.control is not None:
        times = case.control.column("event_time").cast(pa.int64()).to_pylist()
        for row, (stream, time_us) in enumerate(zip(case.control.column("stream_id").to_pylist(), times, strict=True)):
            keyed.setdefault(stream, []).append(((time_us, 1), Event(stream, row, True)))
    return {stream: [event for _, event in sorted(events, key=lambda pair: pair[0])] for stream, events in keyed.items()}


def interleave(case: Case, rng: np.random.Generator) -> list[Event]:
    """Mix the streams at random, keeping the order within each."""
    events = events_of(case)
    turns = rng.permutation([stream for stream, mine in events.items() for _ in mine])
    left = {stream: iter(mine) for stream, mine in events.items()}
    return [next(left[str(stream)]) for stream in turns]


def cut(events: Sequence[Event], rng: np.random.Generator, mean: int) -> list[Step]:
    """Cut into batches of random length around ``mean``; control rows and data rows go into batches of their own."""
    steps: list[list[Event]] = []
    for event in events:
        if not steps or steps[-1][-1].control != event.control or rng.random() < 1 / mean:
            steps.append([])
        steps[-1].append(event)
    return list(steps)


def do_step(operator: Operator, case: Case, step: Step) -> list[pa.RecordBatch]:
    source = case.control if step[0].control else case.rows
    assert source is not None
    batch = source.take(pa.array([event.row for event in step]))
    return (control_rows if step[0].control else process_rows)(operator, batch)


def run_steps(operator: Operator, case: Case, steps: Iterable[Step]) -> list[pa.RecordBatch]:
    return [out for step in steps for out in do_step(operator, case, step)]


def run_alone(case: Case) -> dict[str, pa.Table]:
    """Return the output of each stream alone, one row at a time."""
    events = events_of(case)
    return {stream: as_table(run_steps(case.make(), case, [[event] for event in mine])) for stream, mine in events.items()}


def alone_data(case: Case) -> dict[str, pa.Table]:
    """Return the output of each stream's data rows alone, without control rows."""
    return {
        stream: as_table(process_rows(case.make(), case.rows.filter(pc.equal(case.rows.column("stream_id"), stream))))
        for stream in case.streams
    }


def by_stream(case: Case, batches: Sequence[pa.RecordBatch]) -> dict[str, pa.Table]:
    table = as_table(batches)
    return {stream: table.filter(pc.equal(table.column("stream_id"), stream)) for stream in case.streams}


def shifted(rows: pa.RecordBatch, sequence: int, time_us: int) -> pa.RecordBatch:
    columns = list(rows.columns)
    columns[1] = pc.add(columns[1], sequence)
    columns[2] = pc.add(columns[2].cast(pa.int64()), time_us).cast(rows.schema.field(2).type)
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


# Comparing


def as_table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    if not batches:
        return pa.table({})
    # Answers to control rows may have columns of their own.
    return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")


def expect(case: Case, promise: str, wanted: Mapping[str, pa.Table], batches: Sequence[pa.RecordBatch]) -> None:
    got = as_table(batches)
    for stream, table in wanted.items():
        mine = got.filter(pc.equal(got.column("stream_id"), stream)) if got.num_rows else got
        expect_equal(case, f"{promise}: stream {stream!r}", table, mine)


def expect_equal(case: Case, promise: str, wanted: pa.Table, got: pa.Table) -> None:
    difference = table_difference(wanted, got, ignore=case.ignore, atol=case.atol, rtol=case.rtol, compare=case.compare)
    if difference is not None and wanted.num_rows + got.num_rows:
        raise ConformanceError(f"{promise}: {difference}")


def expect_state(promise: str, wanted: State, got: State) -> None:
    difference = state_difference(wanted, got)
    if difference is not None:
        raise ConformanceError(f"{promise}: {difference}")
