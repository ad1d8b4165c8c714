from __future__ import annotations

import pyarrow as pa
import pytest
from engine_workload import value_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.runtime.batcher import Batcher
from pipelines.testing import FakeClock


def keys(batch: pa.RecordBatch) -> list[str]:
    return batch.column("stream_id").to_pylist()


def add_all(batcher: Batcher, batches: list[list[str]]) -> None:
    start = 0
    for names in batches:
        batcher.add(value_batch(names, start), 0.0)
        start += len(names)


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12), min_size=1, max_size=8),
    st.integers(1, 10),
    st.data(),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.heavy
def test_rows_leave_once_each_in_stream_order_and_never_more_than_max_rows(
    batches: list[list[str]], max_rows: int, data: st.DataObject
) -> None:
    batcher = Batcher(max_rows, 0.0)
    out: list[pa.RecordBatch] = []
    start = 0
    for names in batches:
        batcher.add(value_batch(names, start), 0.0)
        start += len(names)
        for _ in range(data.draw(st.integers(0, 2))):
            if batcher.rows:
                out.append(batcher.take())
    while batcher.rows:
        out.append(batcher.take())
    assert all(0 < batch.num_rows <= max_rows for batch in out)
    left = pa.Table.from_batches(out)
    came = pa.concat_tables(
        pa.Table.from_batches([value_batch(names, sum(map(len, batches[:i])))]) for i, names in enumerate(batches)
    )
    order = [("stream_id", "ascending"), ("sequence", "ascending")]
    assert left.sort_by(order) == came.sort_by(order)
    for name in set(left.column("stream_id").to_pylist()):
        sequence = [r["sequence"] for r in left.to_pylist() if r["stream_id"] == name]
        assert sequence == sorted(sequence)
    assert batcher.bytes == 0


@given(st.lists(st.sampled_from("aaaaabcd"), min_size=1, max_size=60), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_no_stream_gets_two_rows_more_into_a_batch_than_one_that_has_rows_left(names: list[str], max_rows: int) -> None:
    batcher = Batcher(max_rows, 0.0)
    add_all(batcher, [names])
    waiting = list(names)
    while batcher.rows:
        taken = keys(batcher.take())
        for name in taken:
            waiting.remove(name)
        for other in set(waiting):
            assert all(taken.count(name) <= taken.count(other) + 1 for name in set(taken))


def test_a_flood_of_one_stream_does_not_hold_up_the_others() -> None:
    batcher = Batcher(4, 0.0)
    add_all(batcher, [["flood"] * 100, ["a", "b", "c"]])
    assert sorted(keys(batcher.take())) == ["a", "b", "c", "flood"]
    assert keys(batcher.take()) == ["flood"] * 4


def test_a_batch_waits_for_more_rows_but_not_longer_than_max_wait() -> None:
    clock = FakeClock(100.0)
    batcher = Batcher(8, 0.02)
    assert batcher.due_in(clock()) is None
    batcher.add(value_batch(["a"]), clock())
    clock.advance(0.015)
    batcher.add(value_batch(["b"]), clock())
    assert batcher.due_in(clock()) == pytest.approx(0.005)  # counted from the oldest row
    clock.advance(0.006)
    assert batcher.due_in(clock()) == 0.0
    assert keys(batcher.take()) == ["a", "b"]
    assert batcher.due_in(clock()) is None


def test_a_full_batch_does_not_wait() -> None:
    batcher = Batcher(3, 60.0)
    batcher.add(value_batch(["a", "b", "c"]), 0.0)
    assert batcher.due_in(0.0) == 0.0


def test_heavy_rows_count_by_their_bytes() -> None:
    batcher = Batcher(1000, 60.0, max_bytes=1000)
    while batcher.wants_more:
        batcher.add(value_batch(["a"] * 10), 0.0)
    assert batcher.rows < 100
    assert batcher.due_in(0.0) == 0.0


def test_what_may_wait_is_bounded() -> None:
    batcher = Batcher(10, 0.0)
    while batcher.wants_more:
        batcher.add(value_batch(["a"] * 3), 0.0)
    assert batcher.rows < 2 * 10 + 3


def test_one_whole_message_is_passed_on_without_a_copy() -> None:
    batch = value_batch(["a", "b"])
    batcher = Batcher(8, 0.0)
    batcher.add(batch, 0.0)
    assert batcher.take() is batch


def test_large_messages_that_are_not_to_wait_are_passed_on_as_they_came() -> None:
    large, small = value_batch(["a"] * 100_000), value_batch(["a", "b"])
    batcher = Batcher(1_000_000, 0.0)
    for batch in (large, small, large, small):
        batcher.add(batch, 0.0)
    assert batcher.take() is large
    assert batcher.take().num_rows == 2 + 100_000 + 2
    assert (batcher.rows, batcher.bytes) == (0, 0)
    waiting = Batcher(1_000_000, 1.0)
    waiting.add(large, 0.0)
    waiting.add(large, 0.0)
    assert waiting.take().num_rows == 200_000


def test_streams_with_waiting_rows_are_found() -> None:
    batcher = Batcher(2, 0.0)
    add_all(batcher, [["a", "a", "b"]])
    assert batcher.holds(["a", "b", "c"]) == {"a", "b"}
    assert sorted(keys(batcher.take())) == ["a", "b"]
    assert batcher.holds(["a", "b", "c"]) == {"a"}
