"""The promises of :mod:`operators.base`, checked against a real operator. Call :func:`check_operator` in a test of yours.

The suite runs in one process without Ray. It drives the operator only through its contract and compares what a user would see:
output rows per stream, snapshots, and what the process allocates. Every failure is a :class:`ConformanceError` that names the
broken promise, the stream and the value.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Operator
from operators.state import State
from pipelines.testing._compare import ColumnCompare, clone_state
from pipelines.testing._driving import (
    Case,
    ConformanceError,
    Tables,
    as_tables,
    by_stream,
    by_time,
    checked,
    control_rows,
    cut,
    do_step,
    expect,
    expect_equal,
    expect_state,
    interleave,
    is_keyed,
    of_stream,
    process_rows,
    resources,
    rows_between,
    run_steps,
    shifted,
    statuses_of,
    streams_of,
    times_of,
    uncounted,
)

__all__ = [
    "Case",
    "ConformanceError",
    "check_admission",
    "check_advance",
    "check_bad_rows",
    "check_bounded",
    "check_causal",
    "check_close",
    "check_close_stream",
    "check_cuts",
    "check_interleaving",
    "check_operator",
    "check_resharding",
    "check_snapshot",
]


Ints = npt.NDArray[np.int64]


def check_operator(
    make: Callable[[], Operator],
    rows: pa.RecordBatch,
    *,
    make_aligned: Callable[[], Operator] | None = None,
    control: pa.RecordBatch | None = None,
    bad_rows: pa.RecordBatch | None = None,
    compare: Mapping[str, ColumnCompare] | None = None,
    ignore: Iterable[str] = ("latency_ms",),
    atol: float = 0.0,
    rtol: float = 0.0,
    causal: bool = True,
    reshard: bool | None = None,
    fill_after: int = 1,
    seed: int = 0,
) -> None:
    """Check every promise of an operator; raise :class:`ConformanceError` at the first that is broken.

    ``make`` builds a fresh operator with equal options each time. ``rows`` holds good rows of at least two streams, in order
    within each stream, that all streams' slots suffice for. ``make_aligned`` builds the same operator for an aligned run
    (``Context.aligned``); by default ``make`` does. ``control`` rows are handed over where their event_time falls among the
    rows of their stream. ``bad_rows`` have the columns of ``rows``; their keys are replaced. Floats may differ by
    ``atol + rtol·|x|`` between batchings, since kernels differ; ``compare`` replaces the comparison of a column and ``ignore``
    leaves columns out (wall times). ``causal=False`` is for operators whose documentation says so; ``reshard`` is by default
    what ``Operator.keyed`` says. Where one memory serves all streams, cuts must not matter; other streams of course do.
    ``fill_after``: after how many repetitions of ``rows`` all memories are full. Outputs that have names are compared each by
    itself; ``compare`` and ``ignore`` hold for all that have a column of that name.
    """
    case = Case(
        make=make,
        rows=rows,
        make_aligned=make_aligned,
        control=control,
        bad_rows=bad_rows,
        compare=compare or {},
        ignore=frozenset(ignore),
        atol=atol,
        rtol=rtol,
        seed=seed,
    )
    keyed = is_keyed(make())
    if keyed:
        check_interleaving(case)
    else:
        check_cuts(case)
    if causal:
        check_causal(case)
    check_snapshot(case)
    if reshard if reshard is not None else keyed:
        check_resharding(case)
    if bad_rows is not None:
        check_bad_rows(case)
        check_admission(case)
    check_advance(case)
    if keyed:
        check_close_stream(case)
    check_close(case)
    check_bounded(case, fill_after=fill_after)


# The promises


def check_interleaving(case: Case, *, tries: int = 3) -> None:
    """A stream's output is that of the stream alone, however streams are interleaved and batches cut."""
    rng = case.rng()
    for attempt in range(tries):
        steps = cut(interleave(case, rng), rng, 1 if attempt == 0 else len(case.streams) * 2)
        expect(case, "interleaving", case.alone, run_steps(case.make(), case, steps))


def check_cuts(case: Case, *, tries: int = 4) -> None:
    """Where one memory serves all streams the output depends on the one order of all rows, not on where batches are cut."""
    rng = case.rng()
    events = interleave(case, rng)
    wanted = as_tables(run_steps(case.make(), case, [[event] for event in events]))
    for attempt in range(tries):
        steps = cut(events, rng, 2 * 4**attempt)
        expect_equal(
            case,
            f"cuts: one row at a time against {len(steps)} batches",
            wanted,
            as_tables(run_steps(case.make(), case, steps)),
        )


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
        earlier, *others = (as_tables(process_rows(case.make(), batch)) for batch in (mine.slice(0, cut), mine, changed))
        for tables in others:
            got = {output: _as_of(output, table, last, earlier.get(output)) for output, table in tables.items()}
            expect_equal(case, f"causal: stream {stream!r} up to sequence {last}", earlier, got)


def _as_of(output: str, table: pa.Table, last: int, earlier: pa.Table | None) -> pa.Table:
    """Return the rows that were there before anything behind ``last`` came.

    Rows of a named output may count something of their own by ``sequence``: there it is as many as ``earlier`` has.
    """
    if output:
        return table.slice(0, 0 if earlier is None else earlier.num_rows)
    return table.filter(pc.less_equal(table.column("sequence"), last))


def check_snapshot(case: Case) -> None:
    """``restore(snapshot())`` is bit for bit at any point, full or as a chain of increments, and snapshots own their memory."""
    rng = case.rng()
    steps = cut(interleave(case, rng), rng, 2)
    plain = case.make()
    undisturbed = [plain_out for step in steps for plain_out in do_step(plain, case, step)]
    final = plain.snapshot()

    points = sorted({0, len(steps) // 2, len(steps)})
    first = case.make()
    taken: dict[int, State] = {}
    kept: dict[int, State] = {}
    for number in range(len(steps) + 1):
        if number in points:
            taken[number] = first.snapshot()
            kept[number] = clone_state(taken[number])
        if number < len(steps):
            do_step(first, case, steps[number])
    expect_state("snapshot: final state of a run that was looked at on its way", final, first.snapshot())
    for point, state in taken.items():
        expect_state("snapshot: a snapshot changed while its operator went on", kept[point], state)
        second = case.make()
        second.restore(state)
        again = second.snapshot()
        expect_state(f"snapshot: restored after {point} of {len(steps)} batches", kept[point], again)
        if not point and len(points) > 1:  # an empty state: the points behind it tell how a run goes on
            continue
        rest = [out for step in steps[point:] for out in do_step(second, case, step)]
        skipped = len(undisturbed) - len(rest)
        expect_equal(
            case, f"snapshot: output after a restore at batch {point}", as_tables(undisturbed[skipped:]), as_tables(rest)
        )
        expect_state(f"snapshot: final state after a restore at batch {point}", final, second.snapshot())
        expect_state("snapshot: a snapshot changed while the operator that was given it went on", kept[point], state)

    chained = case.make()
    state = clone_state(chained.snapshot())
    for number, step in enumerate(steps):
        do_step(chained, case, step)
        if number % 2:
            state = state.apply(chained.snapshot(incremental=True))
    state = state.apply(chained.snapshot(incremental=True))
    expect_state("snapshot: full and increments against one full snapshot", final, state)
    resumed = case.make()
    resumed.restore(state)
    expect_state("snapshot: restored from full and increments", final, resumed.snapshot())


def check_resharding(case: Case) -> None:
    """Streams may move between shards: a state cut by stream, and states merged, go on as if nothing had happened."""
    rng = case.rng()
    events = interleave(case, rng)
    half = len(events) // 2
    whole = case.make()
    outputs = [out for step in cut(events[:half], rng, 2) for out in do_step(whole, case, step)]
    state = whole.snapshot()
    parts: list[State] = []
    third = half + (len(events) - half) // 2
    for parity in (0, 1):
        mine = set(case.streams[parity::2])
        shard = case.make()
        part = state.select([stream in mine for stream in state.streams])
        shard.restore(part if parity == 0 else part.without_additive())
        for step in cut([event for event in events[half:third] if event.stream in mine], rng, 2):
            outputs += do_step(shard, case, step)
        parts.append(shard.snapshot())
    merged = case.make()
    merged.restore(State.merge(parts))
    outputs += [out for step in cut(events[third:], rng, 2) for out in do_step(merged, case, step)]
    expect(case, "resharding", case.alone, outputs)


def check_bad_rows(case: Case) -> None:
    """A bad row gives a row with status and error; it raises nothing, changes no state and no other row."""
    assert case.bad_rows is not None
    bad = case.bad_rows.select(case.rows.schema.names)
    rows = case.rows
    operator = case.make()
    half = rows.num_rows // 2
    process_rows(operator, rows.slice(0, half))
    before = uncounted(operator.snapshot())
    # Each bad row stands directly before a good one and bears its keys: if it left a trace, the good one would be late.
    places = half + np.arange(bad.num_rows) % (rows.num_rows - half)
    keys = rows.take(pa.array(places))
    named = pa.RecordBatch.from_arrays([*keys.columns[:3], *bad.columns[3:]], schema=rows.schema)
    for i in range(named.num_rows):
        try:
            answers = [table for table in as_tables(process_rows(operator, named.slice(i, 1))).values() if table.num_rows]
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(f"bad rows: row {i} raised {type(error).__name__}: {error}") from error
        if (rows_out := sum(table.num_rows for table in answers)) != 1:
            raise ConformanceError(f"bad rows: row {i} gave {rows_out} output rows instead of 1")
        answer = answers[0].to_pylist()[0]
        status, reason = answer.get("status"), answer.get("error")
        if status in (None, "ok") or not reason:
            raise ConformanceError(f"bad rows: row {i} came back with status {status!r} and error {reason!r}")
        expect_state(f"bad rows: state after row {i}", before, uncounted(operator.snapshot()))

    order = np.argsort(np.concatenate([np.arange(rows.num_rows), places - 0.5]), kind="stable")
    together = pa.Table.from_batches([rows, named]).take(pa.array(order)).combine_chunks().to_batches()[0]
    found = as_tables(process_rows(case.make(), together))
    inputs = np.array(together.column("stream_id").to_pylist())
    whole = {} if is_keyed(operator) else by_stream(case, process_rows(case.make(), rows))
    for stream, wanted in (whole or case.alone_data).items():
        is_bad = (order >= rows.num_rows)[inputs == stream]
        mine = of_stream(found, stream)
        for output, table in mine.items():
            good = wanted[output].num_rows if output in wanted else 0
            if good == len(is_bad) - is_bad.sum() and table.num_rows == len(is_bad):  # one row out per row in
                mine[output] = table.filter(pa.array(~is_bad))
            elif "error" in table.column_names:
                mine[output] = table.filter(pc.is_null(table.column("error")))
        expect_equal(case, f"bad rows: good rows of {stream!r} beside bad ones", wanted, mine)


def check_admission(case: Case) -> None:
    """Rows are refused in one order: an error of the source, then late or duplicate, then what is wrong with the content.

    Only for operators that tell late rows by their keys; what they say of keys that come twice, with fresh content, shows it.
    """
    assert case.bad_rows is not None
    operator = case.make()
    half = case.rows.slice(0, case.rows.num_rows // 2)
    process_rows(operator, half)
    last, fresh = half.slice(half.num_rows - 1, 1), case.rows.slice(half.num_rows, 1)
    again = pa.RecordBatch.from_arrays([*last.columns[:3], *fresh.columns[3:]], schema=case.rows.schema)
    told = statuses_of(process_rows(operator, again))
    if told.isdisjoint(("late", "duplicate")):
        return
    bad = case.bad_rows.select(case.rows.schema.names)
    for i in range(bad.num_rows):
        row = pa.RecordBatch.from_arrays([*again.columns[:3], *bad.slice(i, 1).columns[3:]], schema=case.rows.schema)
        has_error = "error" in row.schema.names and row.column("error")[0].is_valid
        wanted = {"rejected_corrupt"} if has_error else told
        found = statuses_of(process_rows(operator, row))
        if found != wanted:
            raise ConformanceError(
                f"admission: bad row {i} with the keys of an earlier row {'and an error of its source ' if has_error else ''}"
                f"came back as {sorted(found)} instead of {sorted(wanted)}"
            )


def check_advance(case: Case) -> None:
    """Answers do not depend on the steps in which ``advance`` comes, as long as each says the truth."""
    make = case.make_aligned or case.make
    rows = by_time(case.rows)
    control = None if case.control is None else by_time(case.control)
    times = rows.column("event_time").cast(pa.int64()).to_numpy()
    edges = [int(times[len(times) * part // 4]) for part in (1, 2, 3)]
    end = int(times[-1]) + 1
    wanted: dict[str, Tables] = {}
    for steps in ("spans", "rows", "end"):
        operator, outputs, start = make(), [], -(2**63)
        for edge in (*edges, end):
            questions = None if control is None else rows_between(control, start, edge)
            first_question = edge if questions is None or not questions.num_rows else int(times_of(questions)[0])
            data = rows_between(rows, start, edge)
            cuts = [int(t) for t in np.unique(times_of(data)) if t <= first_question] if steps == "rows" else []
            for low, high in pairwise([start, *cuts, edge]):
                part = rows_between(data, low, high)
                outputs += process_rows(operator, part) if part.num_rows else []
                if high != edge:
                    outputs += checked(operator, "advance", operator.advance(high))
            outputs += control_rows(operator, questions) if questions is not None and questions.num_rows else []
            if steps != "end":
                outputs += checked(operator, "advance", operator.advance(edge))
            start = edge
        outputs += checked(operator, "advance", operator.advance(2**63 - 1))
        outputs += checked(operator, "flush", operator.flush())
        got = as_tables(outputs)
        tables = {stream: of_stream(got, stream) for stream in streams_of(got)}
        if steps == "spans":
            wanted = tables
        for stream in wanted.keys() | tables.keys():
            expect_equal(
                case,
                f"advance: stream {stream!r} in steps of {steps} instead of spans",
                wanted.get(stream, {}),
                tables.get(stream, {}),
            )


def check_close(case: Case, *, patience_s: float = 10.0) -> None:
    """After ``close`` no thread, process or file descriptor of the operator is left; closing twice is no error."""
    before: set[str] = set()
    for number in range(2):  # the first one warms up what libraries keep
        operator = case.make()
        process_rows(operator, case.rows)
        if case.control is not None:
            control_rows(operator, case.control)
        checked(operator, "flush", operator.flush())
        operator.close()
        operator.close()
        del operator
        gc.collect()
        if number == 0:
            before = resources()
    deadline = time.monotonic() + patience_s
    while (left := resources() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        raise ConformanceError(f"close: {', '.join(sorted(left))} left after close")


def check_close_stream(case: Case) -> None:
    """A closed stream is forgotten and may start over; other streams do not notice; closing an unknown one is no error."""
    operator = case.make()
    operator.close_stream("a stream that never was")
    first, other = case.streams[:2]
    mine = case.rows.filter(pc.equal(case.rows.column("stream_id"), first))
    theirs = case.rows.filter(pc.equal(case.rows.column("stream_id"), other))
    half = theirs.num_rows // 2
    outputs = process_rows(operator, theirs.slice(0, half))
    process_rows(operator, mine)
    base = clone_state(operator.snapshot())
    operator.close_stream(first)
    if first in operator.snapshot(incremental=True).streams:
        raise ConformanceError(f"close_stream: an increment still holds {first!r} after close_stream")
    if first in operator.snapshot().streams:
        raise ConformanceError(f"close_stream: the snapshot still holds {first!r} after close_stream")
    expect(case, "close_stream: after re-opening", {first: case.alone_data[first]}, process_rows(operator, mine))
    outputs += process_rows(operator, theirs.slice(half))
    expect(case, "close_stream: another stream", {other: case.alone_data[other]}, outputs)

    closing = case.make()
    closing.restore(base)
    closing.close_stream(first)
    closed = closing.snapshot(incremental=True)
    reopened = base.apply(closed)
    if first in reopened.streams:
        raise ConformanceError(f"close_stream: the increment does not say that {first!r} was closed")
    process_rows(closing, mine)
    reopened = reopened.apply(closing.snapshot(incremental=True))
    expect_state("close_stream: increments over close and re-open", closing.snapshot(), reopened)
    for stream in case.streams:
        closing.close_stream(stream)
    if closing.snapshot().streams:
        raise ConformanceError(f"close_stream: all streams were closed, the snapshot holds {closing.snapshot().streams}")


def check_bounded(case: Case, *, fill_after: int = 1, slack: int = 24 * 1024) -> None:
    """Nothing grows with the length of a stream: after 4 times what fills all memories, no byte more than after filling.

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
        for repetition in range(4 * fill_after):
            process_rows(operator, shifted(case.rows, repetition * span, repetition * span_us))
            if repetition + 1 in (fill_after, 4 * fill_after):
                banks.append(operator.metrics().get("bank_bytes", 0.0))
                snapshots.append(operator.snapshot().bytes())
            # From half way on: until then caches of Python and torch may fill.
            if repetition + 1 in (2 * fill_after, 4 * fill_after):
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
