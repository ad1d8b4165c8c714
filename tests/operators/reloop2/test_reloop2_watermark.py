"""Event time: lateness, partitions that are slow or idle, clocks that jump."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.reloop2.watermark import MAX_PARTITIONS, NEVER, Watermarks

ALL = np.array([0])


def watermarks(lanes: int = 1, *, lateness: int = 5, idle: int = 100, jump: int = 1000) -> Watermarks:
    return Watermarks(lanes, lateness_us=lateness, idle_us=idle, jump_us=jump)


def advance(marks: Watermarks, times: list[int], lane: int = 0) -> list[int]:
    return marks.advance(np.full(len(times), lane), np.array(times))[0].tolist()


def test_watermark_follows_the_latest_row_by_the_lateness():
    marks = watermarks()
    assert marks.of(ALL).tolist() == [NEVER]
    advance(marks, [10, 30, 20])
    assert marks.of(ALL).tolist() == [25]
    advance(marks, [7])
    assert marks.of(ALL).tolist() == [25]


def test_lanes_have_times_of_their_own():
    marks = watermarks(2)
    advance(marks, [50], lane=1)
    assert marks.of(np.array([0, 1])).tolist() == [NEVER, 45]
    marks.clear(1)
    assert marks.of(np.array([1])).tolist() == [NEVER]


def test_jump_is_cut_short_and_flagged():
    marks = watermarks(jump=10)
    times, jumped = marks.advance(np.zeros(4, np.int64), np.array([100, 10**15, 105, 120]))
    assert times.tolist() == [100, 110, 105, 120]
    assert jumped.tolist() == [False, True, False, False]


def test_real_gap_is_caught_up_with_in_steps():
    marks = watermarks(jump=10)
    assert advance(marks, [0, 100, 100, 100]) == [0, 10, 20, 30]


def note(marks: Watermarks, rows: list[tuple[str, int]]) -> None:
    names = sorted({name for name, _ in rows})
    codes = np.array([names.index(name) for name, _ in rows])
    times, _ = marks.advance(np.zeros(len(rows), np.int64), np.array([time for _, time in rows]))
    marks.note_partitions(names, codes, times)


def test_slow_partition_holds_the_watermark_back_until_it_is_idle():
    marks = watermarks()
    note(marks, [("fast", 50), ("slow", 10)])
    assert marks.of(ALL).tolist() == [5]
    note(marks, [("fast", 110)])
    assert marks.of(ALL).tolist() == [5]
    note(marks, [("fast", 111)])
    assert marks.of(ALL).tolist() == [106]
    note(marks, [("slow", 60)])
    assert marks.of(ALL).tolist() == [55]


def test_number_of_partitions_is_bounded():
    marks = watermarks()
    note(marks, [(f"p{i}", i % 90) for i in range(MAX_PARTITIONS + 10)])
    assert len(marks.partitions) == MAX_PARTITIONS


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 200)), min_size=1, max_size=30),
    st.integers(1, 5),
    st.sampled_from([3, 40, 1000]),
)
def test_cuts_change_nothing(rows: list[tuple[int, int]], cut: int, jump: int):
    lanes, times = (np.array(part) for part in zip(*rows, strict=True))
    whole, parts = watermarks(2, jump=jump), watermarks(2, jump=jump)
    times_w, jumped_w = whole.advance(lanes, times)
    got = [parts.advance(lanes[i : i + cut], times[i : i + cut]) for i in range(0, len(rows), cut)]
    assert np.concatenate([t for t, _ in got]).tolist() == times_w.tolist()
    assert np.concatenate([j for _, j in got]).tolist() == jumped_w.tolist()
    assert parts.latest_S.tolist() == whole.latest_S.tolist()


@pytest.mark.parametrize("jump", [1, 10**9])
def test_first_row_of_a_lane_is_no_jump(jump: int):
    assert advance(watermarks(jump=jump), [10**15]) == [10**15]
