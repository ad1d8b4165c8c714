"""Drives an operator through its contract for :mod:`pipelines.testing.conformance`, and compares what a user would see."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ContractError
from operators.base import Emitted, Operator
from operators.output import not_finite_columns
from operators.state import State
from pipelines.runtime.contracts import OperatorContract
from pipelines.testing._compare import ColumnCompare, clone_state, state_difference, table_difference

Ints = npt.NDArray[np.int64]

Tables = dict[str, pa.Table]
"""Output rows by the name of their output; the one without a name has an empty one."""


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

    @cached_property
    def alone(self) -> dict[str, Tables]:
        """The output of each stream alone, one row at a time, control rows where their time falls."""
        events = events_of(self)
        return {stream: as_tables(run_steps(self.make(), self, [[event] for event in mine])) for stream, mine in events.items()}

    @cached_property
    def alone_data(self) -> dict[str, Tables]:
        """The output of each stream's data rows alone, in one batch, without control rows."""
        mine = {stream: self.rows.filter(pc.equal(self.rows.column("stream_id"), stream)) for stream in self.streams}
        return {stream: as_tables(process_rows(self.make(), rows)) for stream, rows in mine.items()}


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


def process_rows(operator: Operator, batch: pa.RecordBatch) -> list[Emitted]:
    return checked(operator, "process", operator.process(batch))


def control_rows(operator: Operator, batch: pa.RecordBatch) -> list[Emitted]:
    return checked(operator, "control", operator.control(batch))


def checked(operator: Operator, method: str, given: Sequence[Emitted]) -> list[Emitted]:
    """Return output rows; raise where an output, a schema or a status is not declared, or a number is NaN or infinite."""
    try:
        emitted = list(OperatorContract("operator", operator).outputs(method, given))
    except ContractError as error:
        raise ConformanceError(f"outputs: {error}") from error
    unknown = statuses_of(emitted) - set(operator.statuses)
    if unknown:
        raise ConformanceError(f"statuses: {sorted(unknown)} emitted, declared are {sorted(operator.statuses)}")
    for _, batch in map(named, emitted):
        for column, bad_R in not_finite_columns(batch).items():
            raise ConformanceError(
                f"numbers: {column!r} of row {int(bad_R.argmax())} from {method} is NaN or infinite; give null and a status "
                "that says why, or declare the field with records.field(..., infinite=True)"
            )
    return emitted


def statuses_of(emitted: Iterable[Emitted]) -> set[str]:
    batches = (batch for _, batch in map(named, emitted))
    columns = [batch.column("status").cast(pa.string()) for batch in batches if "status" in batch.schema.names]
    return {status for column in columns for status in pc.unique(column).to_pylist()}


def named(emitted: Emitted) -> tuple[str, pa.RecordBatch]:
    """Return the name of the output, and the rows."""
    return ("", emitted) if isinstance(emitted, pa.RecordBatch) else (emitted.name, emitted.batch)


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


def do_step(operator: Operator, case: Case, step: Step) -> list[Emitted]:
    source = case.control if step[0].control else case.rows
    assert source is not None
    batch = source.take(pa.array([event.row for event in step]))
    return (control_rows if step[0].control else process_rows)(operator, batch)


def run_steps(operator: Operator, case: Case, steps: Iterable[Step]) -> list[Emitted]:
    return [out for step in steps for out in do_step(operator, case, step)]


def by_stream(case: Case, emitted: Sequence[Emitted]) -> dict[str, Tables]:
    tables = as_tables(emitted)
    return {stream: of_stream(tables, stream) for stream in case.streams}


def shifted(rows: pa.RecordBatch, sequence: int, time_us: int) -> pa.RecordBatch:
    columns = list(rows.columns)
    columns[1] = pc.add(columns[1], sequence)
    columns[2] = pc.add(columns[2].cast(pa.int64()), time_us).cast(rows.schema.field(2).type)
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


# Comparing


def as_tables(emitted: Iterable[Emitted]) -> Tables:
    """Return all rows of each output in one table, in the order in which they came."""
    batches: dict[str, list[pa.RecordBatch]] = {}
    for output, batch in map(named, emitted):
        batches.setdefault(output, []).append(batch)
    return {
        output: pa.concat_tables([pa.Table.from_batches([batch]) for batch in parts], promote_options="default")
        for output, parts in batches.items()
    }


def of_stream(tables: Tables, stream: str) -> Tables:
    return {output: table.filter(pc.equal(table.column("stream_id"), stream)) for output, table in tables.items()}


def streams_of(tables: Tables) -> set[str]:
    return {stream for table in tables.values() for stream in table.column("stream_id").unique().to_pylist()}


def expect(case: Case, promise: str, wanted: Mapping[str, Tables], emitted: Sequence[Emitted]) -> None:
    got = as_tables(emitted)
    for stream, tables in wanted.items():
        expect_equal(case, f"{promise}: stream {stream!r}", tables, of_stream(got, stream))


def expect_equal(case: Case, promise: str, wanted: Tables, got: Tables) -> None:
    """Compare the rows of each output; in which order rows of different outputs come is nobody's promise."""
    none = pa.table({})
    for output in {**wanted, **got}:
        table, other = wanted.get(output, none), got.get(output, none)
        difference = table_difference(table, other, ignore=case.ignore, atol=case.atol, rtol=case.rtol, compare=case.compare)
        if difference is not None and table.num_rows + other.num_rows:
            where = f"output {output!r}: " if output else ""
            raise ConformanceError(f"{promise}: {where}{difference}")


def expect_state(promise: str, wanted: State, got: State) -> None:
    difference = state_difference(wanted, got)
    if difference is not None:
        raise ConformanceError(f"{promise}: {difference}")
