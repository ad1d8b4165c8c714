"""What a run counts of its rows: against a slow count by hand, over any cuts, attempts and shards."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.records import output_schema
from pipelines.runtime.tally import MAX_NAMES, Tally, shown

SCHEMA = output_schema("counted", 1)
STATUSES = ["ok", "no_detection", "late", "reset", "rejected_corrupt"]
GOOD = frozenset({"ok", "no_detection"})
Rows = list[tuple[str, str | None]]
rows = st.lists(st.tuples(st.sampled_from(STATUSES), st.none() | st.text(max_size=5)), max_size=30)


def batch(part: Rows) -> pa.RecordBatch:
    columns = [
        pa.array(["s"] * len(part), pa.string()),
        pa.array(range(len(part)), pa.int64()),
        pa.array(range(len(part)), pa.int64()).cast(SCHEMA.field("event_time").type),
        pa.array([status for status, _ in part], pa.string()).dictionary_encode().cast(SCHEMA.field("status").type),
        pa.array([error for _, error in part], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def tally_of(parts: list[Rows], cut: int = 0) -> Tally:
    """Count; each part in two slices where a cut is given."""
    tally = Tally()
    for part in parts:
        whole = batch(part)
        for piece in (whole.slice(0, cut), whole.slice(cut)):
            if piece.num_rows:
                tally.count(piece, GOOD)
    return tally


def by_hand(parts: list[Rows]) -> tuple[dict[str, int], int, dict[str, str]]:
    """Statuses, rows that are not ok, and the first error of each such status within a batch in which it first has one."""
    every = [row for part in parts for row in part]
    statuses = Counter(status for status, _ in every)
    reasons: dict[str, str] = {}
    for status, error in every:
        if status not in GOOD and error is not None:
            reasons.setdefault(status, shown(error))
    return dict(statuses), sum(number for status, number in statuses.items() if status not in GOOD), reasons


@given(st.lists(rows, max_size=5), st.integers(0, 10))
def test_statuses_are_counted_and_the_first_error_of_each_is_kept(parts: list[Rows], cut: int) -> None:
    tally = tally_of(parts, cut)
    assert (dict(tally.statuses), tally.not_ok, tally.reasons) == by_hand(parts)
    assert tally.rows == sum(map(len, parts))
    assert tally.all_ok == (tally.not_ok == 0)


@given(st.lists(rows, max_size=4), st.lists(rows, max_size=4), st.lists(rows, max_size=4))
@pytest.mark.heavy
def test_attempts_and_shards_add_up_to_one_run(before: list[Rows], left: list[Rows], right: list[Rows]) -> None:
    earlier = Tally.from_json(json.loads(json.dumps(tally_of(before).to_json())))
    whole = Tally.sum([tally_of(left), tally_of(right)]).after(earlier)
    assert whole == tally_of([*before, *left, *right])


def test_rows_of_a_source_with_an_error_are_counted_and_slices_by_their_own_rows() -> None:
    errors = pa.RecordBatch.from_arrays([pa.array([None, "bad\nline\x1b[31m", None, "worse"])], names=["error"])
    tally = Tally()
    tally.count_errors(errors.slice(0, 3), 0)
    tally.count_errors(errors.slice(2, 1), 0)
    assert (tally.rows, dict(tally.statuses), tally.not_ok) == (4, {"with an error": 1}, 1)
    assert tally.reasons == {"with an error": "bad line?[31m"}
    tally.count_errors(errors, -1)  # rows of a source that has no such column
    assert (tally.rows, tally.not_ok) == (8, 1)


def test_more_files_than_are_named_are_counted_and_one_that_is_told_again_is_not() -> None:
    first, again = Tally(), Tally()
    first.note_unread({f"{n}.jsonl": "damaged" for n in range(3 * MAX_NAMES)})
    again.note_unread({"0.jsonl": "damaged", "new.jsonl": "damaged"})
    whole = again.after(Tally.from_json(first.to_json()))
    assert (whole.unread_files, len(whole.unread)) == (3 * MAX_NAMES + 1, MAX_NAMES)


def test_counters_of_an_operator_are_of_the_whole_run_already() -> None:
    earlier, now = Tally(losses=Counter(evictions=3)), Tally(losses=Counter(evictions=5))
    assert now.after(earlier).losses == {"evictions": 5}
    assert not now.all_ok
