"""The promises of :mod:`operators.base`, checked against a real operator. Call :func:`check_operator` in a test of yours.

The suite runs in one process without Ray. It drives the operator only through its contract and compares what a user would see:
output rows per stream, snapshots, and what the process allocates. Every failure is a :class:`ConformanceError` that names the
broken promise, the stream and the value.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Operator
from operators.state import State
from pipelines.testing._compare import ColumnCompare, clone_state, state_difference, table_difference

__all__ = [
    "Case",
    "ConformanceError",
    "check_bad_rows",
    "check_bounded",
    "check_causal",
    "check_close",
    "check_interleaving",
    "check_operator",
    "check_resharding",
    "check_snapshot",
]


class ConformanceError(AssertionError):
    """An operator broke one of the promises of ``operators.base``."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the checks need to know about an operator. The fields are the arguments of :func:`check_operator`."""

    make: Callable[[], Operator]
    rows: pa.RecordBatch
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


def check_operator(
    make: Callable[[], Operator],
    rows: pa.RecordBatch,
    *,
    control: pa.RecordBatch | None = None,
    bad_rows: pa.RecordBatch | None = None,
    compare: Mapping[str, ColumnCompare] | None = None,
    ignore: Iterable[str] = ("latency_ms",),
    atol: float = 0.0,
    rtol: float = 0.0,
    causal: bool = True,
    reshard: bool = True,
    fill_after: int = 1,
    seed: int = 0,
) -> None:
    """Check every promise of an operator; raise :class:`ConformanceError` at the first that is broken.

    ``make`` builds a fresh operator with equal options each time. ``rows`` holds good rows of at least two streams, in order
    within each stream, that all streams' slots suffice for. ``control`` rows are handed over where their event_time falls among
    the rows of their stream. ``bad_rows`` have the columns of ``rows``; their keys are replaced. Floats may differ by
    ``atol + rtol·|x|`` between batchings, since kernels differ; ``compare`` replaces the comparison of a column and ``ignore``
    leaves columns out (wall times). ``causal=False`` and ``reshard=False`` are for operators whose documentation says so.
    ``fill_after``: after how many repetitions of ``rows`` all memories are full.
    """
    case = Case(
        make=make,
        rows=rows,
        control=control,
        bad_rows=bad_rows,
        compare=compare or {},
        ignore=frozenset(ignore),
        atol=atol,
        rtol=rtol,
        seed=seed,
    )
    check_interleaving(case)
    if causal:
        check_causal(case)
    check_snapshot(case)
    if reshard:
        check_resharding(case)
    if bad_rows is not None:
        check_bad_rows(case)
    check_close(case)
    check_bounded(case, fill_after=fill_after)


# The promises


def check_interleaving(case: Case, *, tries: int = 4) -> None:
    """A stream's output is that of the stream alone, however streams are interleaved and batches cut."""
    alone = _alone(case)
    rng = case.rng()
    for attempt in range(tries):
        steps = _cut(_interleave(case, rng), rng, 1 if attempt == 0 else len(case.streams) * 2)
        _expect(case, "interleaving", alone, _run(case.make(), case, steps))


def check_causal(case: Case) -> None:
    """What comes later in a stream does not change earlier output, not even within one batch."""
    for stream in case.streams:
        mine = case.rows.filter(pc.equal(case.rows.column("stream_id"), stream))
        cut = mine.num_rows // 2
        payload = [i for i, name in enumerate(mine.schema.names) if name not in ("stream_id", "sequence", "event_time")]
        # The later rows get each other's content, in reverse.
        order = pa.array([*range(cut), *reversed(range(cut, mine.num_rows))])
        columns = [column.take(order) if i in payload else column for i, column in enumerate(mine.columns)]
        changed = pa.RecordBatch.from_arrays(columns, schema=mine.schema)
        last = mine.column("sequence")[cut - 1]
        outputs = []
        for batch in (mine, changed, mine.slice(0, cut)):
            table = _table(case.make().process(batch))
            outputs.append(table.filter(pc.less_equal(table.column("sequence"), last)) if table.num_rows else table)
        for got in outputs[1:]:
            _expect_equal(case, f"causal: stream {stream!r} up to sequence {last}", outputs[0], got)


def check_snapshot(case: Case) -> None:
    """``restore(snapshot())`` is bit for bit at any point, full or as a chain of increments, and snapshots own their memory."""
    rng = case.rng()
    steps = _cut(_interleave(case, rng), rng, 2)
    plain = case.make()
    undisturbed = [plain_out for step in steps for plain_out in _step(plain, case, step)]
    final = plain.snapshot()

    for point in sorted({0, len(steps) // 3, len(steps) // 2, len(steps)}):
        first = case.make()
        for step in steps[:point]:
            _step(first, case, step)
        taken = first.snapshot()
        kept = clone_state(taken)
        second = case.make()
        second.restore(taken)
        again = second.snapshot()
        _expect_state(f"snapshot: restored after {point} of {len(steps)} batches", kept, again)
        rest = [out for step in steps[point:] for out in _step(second, case, step)]
        skipped = len(undisturbed) - len(rest)
        _expect_equal(case, f"snapshot: output after a restore at batch {point}", _table(undisturbed[skipped:]), _table(rest))
        _expect_state(f"snapshot: final state after a restore at batch {point}", final, second.snapshot())
        for step in steps[point:]:
            _step(first, case, step)
        _expect_state("snapshot: a snapshot changed while its operator went on", kept, taken)

    chained = case.make()
    state = clone_state(chained.snapshot())
    for number, step in enumerate(steps):
        _step(chained, case, step)
        if number % 2:
            state = state.apply(chained.snapshot(incremental=True))
    state = state.apply(chained.snapshot(incremental=True))
    _expect_state("snapshot: full and increments against one full snapshot", final, state)
    resumed = case.make()
    resumed.restore(state)
    _expect_state("snapshot: restored from full and increments", final, resumed.snapshot())


def check_resharding(case: Case) -> None:
    """Streams may move between shards: a state cut by stream, and states merged, go on as if nothing had happened."""
    rng = case.rng()
    events = _interleave(case, rng)
    half = len(events) // 2
    alone = _alone(case)
    whole = case.make()
    outputs = [out for step in _cut(events[:half], rng, 2) for out in _step(whole, case, step)]
    state = whole.snapshot()
    parts: list[State] = []
    third = half + (len(events) - half) // 2
    for parity in (0, 1):
        mine = set(case.streams[parity::2])
        shard = case.make()
        part = state.select([stream in mine for stream in state.streams])
        shard.restore(part if parity == 0 else part.without_additive())
        for step in _cut([event for event in events[half:third] if event.stream in mine], rng, 2):
            outputs += _step(shard, case, step)
        parts.append(shard.snapshot())
    merged = case.make()
    merged.restore(State.merge(parts))
    outputs += [out for step in _cut(events[third:], rng, 2) for out in _step(merged, case, step)]
    _expect(case, "resharding", alone, outputs)


def check_bad_rows(case: Case) -> None:
    """A bad row gives a row with status and error; it raises nothing, changes no state and no other row."""
    assert case.bad_rows is not None
    bad = case.bad_rows.select(case.rows.schema.names)
    rows = case.rows
    operator = case.make()
    half = rows.num_rows // 2
    operator.process(rows.slice(0, half))
    before = clone_state(operator.snapshot())
    # Each bad row stands directly before a good one and bears its keys: if it left a trace, the good one would be late.
    places = half + np.arange(bad.num_rows) % (rows.num_rows - half)
    keys = rows.take(pa.array(places))
    named = pa.RecordBatch.from_arrays([*keys.columns[:3], *bad.columns[3:]], schema=rows.schema)
    for i in range(named.num_rows):
        try:
            answers = _table(operator.process(named.slice(i, 1)))
        except Exception as error:
            raise ConformanceError(f"bad rows: row {i} raised {type(error).__name__}: {error}") from error
        if answers.num_rows != 1:
            raise ConformanceError(f"bad rows: row {i} gave {answers.num_rows} output rows instead of 1")
        status, reason = answers.column("status")[0].as_py(), answers.column("error")[0].as_py()
        if status == "ok" or not reason:
            raise ConformanceError(f"bad rows: row {i} came back with status {status!r} and error {reason!r}")
        _expect_state(f"bad rows: state after row {i}", before, operator.snapshot())

    order = np.argsort(np.concatenate([np.arange(rows.num_rows), places - 0.5]), kind="stable")
    together = pa.Table.from_batches([rows, named]).take(pa.array(order)).combine_chunks().to_batches()[0]
    found = _table(case.make().process(together))
    inputs = np.array(together.column("stream_id").to_pylist())
    for stream, wanted in _alone_data(case).items():
        mine = found.filter(pc.equal(found.column("stream_id"), stream))
        is_bad = (order >= rows.num_rows)[inputs == stream]
        if wanted.num_rows == len(is_bad) - is_bad.sum() and mine.num_rows == len(is_bad):  # one row out per row in
            mine = mine.filter(pa.array(~is_bad))
        else:
            mine = mine.filter(pc.is_null(mine.column("error")))
        _expect_equal(case, f"bad rows: good rows of {stream!r} beside bad ones", wanted, mine)


def check_close(case: Case) -> None:
    """A closed stream is forgotten and may start afresh; other streams do not notice; closing an unknown one is no error."""
    alone = _alone_data(case)
    operator = case.make()
    operator.close_stream("a stream that never was")
    first, other = case.streams[:2]
    mine = case.rows.filter(pc.equal(case.rows.column("stream_id"), first))
    theirs = case.rows.filter(pc.equal(case.rows.column("stream_id"), other))
    half = theirs.num_rows // 2
    outputs = operator.process(theirs.slice(0, half))
    operator.process(mine)
    base = clone_state(operator.snapshot())
    operator.close_stream(first)
    if first in operator.snapshot(incremental=True).streams:
        raise ConformanceError(f"close: an increment still holds {first!r} after close_stream")
    if first in operator.snapshot().streams:
        raise ConformanceError(f"close: the snapshot still holds {first!r} after close_stream")
    _expect(case, "close: after re-opening", {first: alone[first]}, operator.process(mine))
    outputs += operator.process(theirs.slice(half))
    _expect(case, "close: another stream", {other: alone[other]}, outputs)

    closing = case.make()
    closing.restore(base)
    closing.close_stream(first)
    closed = closing.snapshot(incremental=True)
    reopened = base.apply(closed)
    if first in reopened.streams:
        raise ConformanceError(f"close: the increment does not say that {first!r} was closed")
    closing.process(mine)
    reopened = reopened.apply(closing.snapshot(incremental=True))
    _expect_state("close: increments over close and re-open", closing.snapshot(), reopened)
    for stream in case.streams:
        closing.close_stream(stream)
    if closing.snapshot().streams:
        raise ConformanceError(f"close: all streams were closed, the snapshot holds {closing.snapshot().streams}")


def check_bounded(case: Case, *, fill_after: int = 1, slack: int = 64 * 1024) -> None:
    """Nothing grows with the length of a stream: after 10 times what fills all memories, no byte more than after filling.

    Compares snapshot and ``bank_bytes`` exactly, and what Python has allocated (from half way on) up to ``slack`` bytes.
    """
    operator = case.make()
    span = int(pc.max(case.rows.column("sequence")).as_py()) - int(pc.min(case.rows.column("sequence")).as_py()) + 1
    times = case.rows.column("event_time").cast(pa.int64())
    span_us = int(pc.max(times).as_py()) - int(pc.min(times).as_py()) + 1_000_000
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        snapshots: list[int] = []
        banks: list[float] = []
        python: list[int] = []
        for repetition in range(10 * fill_after):
            operator.process(_shifted(case.rows, repetition * span, repetition * span_us))
            if repetition + 1 in (fill_after, 10 * fill_after):
                banks.append(operator.metrics().get("bank_bytes", 0.0))
                snapshots.append(operator.snapshot().bytes())
            # From half way on: until then caches of Python and torch may fill.
            if repetition + 1 in (5 * fill_after, 10 * fill_after):
                gc.collect()
                python.append(tracemalloc.get_traced_memory()[0])
    finally:
        if not tracing:
            tracemalloc.stop()
    if snapshots[1] > snapshots[0]:
        raise ConformanceError(
            f"bounded: the snapshot grew from {snapshots[0]} to {snapshots[1]} bytes after {fill_after} repetitions; "
            "raise fill_after if memories are not full by then"
        )
    if banks[1] > banks[0]:
        raise ConformanceError(f"bounded: bank_bytes grew from {banks[0]:.0f} to {banks[1]:.0f}")
    if python[1] > python[0] + slack:
        raise ConformanceError(f"bounded: Python memory grew by {python[1] - python[0]} bytes, {slack} are allowed")


# Driving an operator


@dataclass(frozen=True, slots=True)
class _Event:
    stream: str
    row: int
    control: bool


_Step = Sequence[_Event]


def _events(case: Case) -> dict[str, list[_Event]]:
    """Return what happens to each stream, in order: rows as they stand, control rows where their time falls."""
    streams = case.rows.column("stream_id").to_pylist()
    times = case.rows.column("event_time").cast(pa.int64()).to_pylist()
    keyed: dict[str, list[tuple[tuple[int, int], _Event]]] = {stream: [] for stream in case.streams}
    latest: dict[str, int] = {}
    for row, (stream, time) in enumerate(zip(streams, times, strict=True)):
        latest[stream] = max(time, latest.get(stream, time))
        keyed[stream].append(((latest[stream], 0), _Event(stream, row, False)))
    if case.control is not None:
        times = case.control.column("event_time").cast(pa.int64()).to_pylist()
        for row, (stream, time) in enumerate(zip(case.control.column("stream_id").to_pylist(), times, strict=True)):
            keyed.setdefault(stream, []).append(((time, 1), _Event(stream, row, True)))
    return {stream: [event for _, event in sorted(events, key=lambda pair: pair[0])] for stream, events in keyed.items()}


def _interleave(case: Case, rng: np.random.Generator) -> list[_Event]:
    """Mix the streams at random, keeping the order within each."""
    events = _events(case)
    turns = rng.permutation([stream for stream, mine in events.items() for _ in mine])
    left = {stream: iter(mine) for stream, mine in events.items()}
    return [next(left[str(stream)]) for stream in turns]


def _cut(events: Sequence[_Event], rng: np.random.Generator, mean: int) -> list[_Step]:
    """Cut into batches of random length around ``mean``; control rows and data rows go into batches of their own."""
    steps: list[list[_Event]] = []
    for event in events:
        if not steps or steps[-1][-1].control != event.control or rng.random() < 1 / mean:
            steps.append([])
        steps[-1].append(event)
    return list(steps)


def _step(operator: Operator, case: Case, step: _Step) -> list[pa.RecordBatch]:
    source = case.control if step[0].control else case.rows
    assert source is not None
    batch = source.take(pa.array([event.row for event in step]))
    return operator.control(batch) if step[0].control else operator.process(batch)


def _run(operator: Operator, case: Case, steps: Iterable[_Step]) -> list[pa.RecordBatch]:
    return [out for step in steps for out in _step(operator, case, step)]


def _alone(case: Case) -> dict[str, pa.Table]:
    """Return the output of each stream alone, one row at a time."""
    events = _events(case)
    return {stream: _table(_run(case.make(), case, [[event] for event in mine])) for stream, mine in events.items()}


def _alone_data(case: Case) -> dict[str, pa.Table]:
    """Return the output of each stream's data rows alone, without control rows."""
    return {
        stream: _table(case.make().process(case.rows.filter(pc.equal(case.rows.column("stream_id"), stream))))
        for stream in case.streams
    }


def _shifted(rows: pa.RecordBatch, sequence: int, time_us: int) -> pa.RecordBatch:
    columns = list(rows.columns)
    columns[1] = pc.add(columns[1], sequence)
    columns[2] = pc.add(columns[2].cast(pa.int64()), time_us).cast(rows.schema.field(2).type)
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


# Comparing


def _table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    if not batches:
        return pa.table({})
    # Answers to control rows may have columns of their own.
    return pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")


def _expect(case: Case, promise: str, wanted: Mapping[str, pa.Table], batches: Sequence[pa.RecordBatch]) -> None:
    got = _table(batches)
    for stream, table in wanted.items():
        mine = got.filter(pc.equal(got.column("stream_id"), stream)) if got.num_rows else got
        _expect_equal(case, f"{promise}: stream {stream!r}", table, mine)


def _expect_equal(case: Case, promise: str, wanted: pa.Table, got: pa.Table) -> None:
    difference = table_difference(wanted, got, ignore=case.ignore, atol=case.atol, rtol=case.rtol, compare=case.compare)
    if difference is not None and wanted.num_rows + got.num_rows:
        raise ConformanceError(f"{promise}: {difference}")


def _expect_state(promise: str, wanted: State, got: State) -> None:
    difference = state_difference(wanted, got)
    if difference is not None:
        raise ConformanceError(f"{promise}: {difference}")
