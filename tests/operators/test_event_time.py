"""Event time per slot: from rows, from the engine, with lateness, and with clocks that jump."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError
from connectors.records import NEVER_US
from operators.event_time import EventTime, earlier

FIRST = np.array([0])


def clock(slots: int = 1, *, aligned: bool = False, lateness_s: float = 5e-6, max_jump_s: float | None = None) -> EventTime:
    return EventTime("op", slots, aligned=aligned, lateness_s=lateness_s, max_jump_s=max_jump_s)


def note(time: EventTime, times: list[int], slot: int = 0) -> list[int]:
    return time.note(np.full(len(times), slot), np.array(times))[0].tolist()


def due(time: EventTime, own_us: int = 0) -> int:
    return int(time.due(time.at_row(FIRST, np.array([own_us])))[0])


def test_without_alignment_event_time_is_that_of_the_latest_row_before():
    time = clock()
    assert due(time, 1000) == NEVER_US
    note(time, [10, 30, 20])
    assert due(time, 1000) == 25
    note(time, [7])
    assert due(time, 1000) == 25


def test_in_an_aligned_run_event_time_has_reached_a_row_when_it_comes():
    time = clock(aligned=True)
    assert due(time, 1000) == 995
    note(time, [1000])
    assert due(time, 400) == 995  # a row that comes late does not turn time back
    time.advance(2000)
    assert due(time, 1500) == 1995
    time.advance(1500)
    assert due(time, 1500) == 1995


def test_slots_have_times_of_their_own():
    time = clock(2)
    note(time, [50], slot=1)
    assert time.latest_S.tolist() == [NEVER_US, 50]
    time.clear(np.array([1]))
    assert time.latest_S.tolist() == [NEVER_US, NEVER_US]


def test_never_has_nothing_before_it():
    assert earlier(np.array([NEVER_US, 7]), 10**9).tolist() == [NEVER_US, 7 - 10**9]


def test_jump_is_cut_short_and_flagged():
    time = clock(max_jump_s=10e-6)
    times, jumped = time.note(np.zeros(4, np.int64), np.array([100, 10**15, 105, 120]))
    assert times.tolist() == [100, 110, 105, 120]
    assert jumped.tolist() == [False, True, False, False]


def test_real_gap_is_caught_up_with_in_steps():
    assert note(clock(max_jump_s=10e-6), [0, 100, 100, 100]) == [0, 10, 20, 30]


@pytest.mark.parametrize("max_jump_s", [None, 1e-6])
def test_first_row_of_a_slot_is_no_jump(max_jump_s: float | None):
    assert note(clock(max_jump_s=max_jump_s), [10**15]) == [10**15]


def test_limit_of_jumps_in_an_aligned_run_is_refused():
    with pytest.raises(ConfigError, match=r"op: max_jump_s=1.0 does nothing with align_s"):
        clock(aligned=True, max_jump_s=1.0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 200)), min_size=1, max_size=30),
    st.integers(1, 5),
    st.sampled_from([3e-6, 40e-6, None]),
)
def test_cuts_change_nothing(rows: list[tuple[int, int]], cut: int, jump: float | None):
    slots, times = (np.array(part) for part in zip(*rows, strict=True))
    whole, parts = clock(2, max_jump_s=jump), clock(2, max_jump_s=jump)
    times_w, jumped_w = whole.note(slots, times)
    got = [parts.note(slots[i : i + cut], times[i : i + cut]) for i in range(0, len(rows), cut)]
    assert np.concatenate([t for t, _ in got]).tolist() == times_w.tolist()
    assert np.concatenate([j for _, j in got]).tolist() == jumped_w.tolist()
    assert parts.latest_S.tolist() == whole.latest_S.tolist()
