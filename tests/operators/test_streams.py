"""Streams get slots, make room, come back and survive snapshots; by the column exactly as row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import RecoveryError
from operators.counters import STREAM_COUNTERS, Counters
from operators.state import State
from operators.streams import Stream, StreamOptions, StreamTable


@dataclass(slots=True)
class Counted(Stream):
    rows: int = 0
    mean: float = 0.0
    started: bool = False
    names: tuple[str, ...] = ()


def table(slots: int = 2, full: str = "evict", ended=None) -> StreamTable[Counted]:
    return StreamTable(
        "node",
        lambda stream_id, slot: Counted(slot),
        StreamOptions(max_streams=slots, on_streams_full=full),
        kind=Counted,
        counters=Counters(*STREAM_COUNTERS),
        ended=ended or (lambda stream_id, stream: None),
    )


def test_stream_idle_longest_makes_room_and_is_told_when_it_returns():
    streams = table()
    for sequence, name in enumerate("aba"):
        streams.get(name) or streams.open(name)
        streams.accept(name, sequence)
    gone: list[int] = []
    opened = streams.open("c", lambda stream: gone.append(stream.slot))
    assert gone == [opened.stream.slot] and not opened.was_evicted
    assert streams.get("b") is None and streams.get("a") is not None
    assert streams.open("b").was_evicted and not streams.open("d").was_evicted


def test_rejecting_table_refuses_new_streams_and_keeps_the_old_ones():
    streams = table(full="reject")
    for name in "ab":
        assert streams.no_room(name) is None
        streams.open(name)
    refused = streams.no_room("c")
    assert refused is not None and refused.status == "rejected_full" and "raise max_streams" in refused.error
    assert streams.no_room("a") is None


@pytest.mark.parametrize(
    ("sequence", "time_us", "status"), [(5, 60, "duplicate"), (4, 60, "late"), (6, 50, "late"), (6, 60, None), (6, None, None)]
)
def test_row_that_does_not_follow_is_refused(sequence: int, time_us: int | None, status: str | None):
    stream = Stream(0, last_sequence=5, last_time_us=50)
    refused = stream.refusal(sequence, time_us)
    assert (refused and refused.status) == status


def test_restored_table_goes_on_with_the_same_order_of_eviction():
    streams = table(3)
    for sequence, name in enumerate("abca"):
        streams.get(name) or streams.open(name)
        streams.accept(name, sequence, sequence * 10)
    one = streams.get("a")
    one.rows, one.mean, one.started = 7, 0.5, True
    with streams.snapshot(incremental=False, weights="w") as (state, _):
        pass
    again = table(3)
    live, restored = again.restore(state, weights="w", hint="")
    assert live.streams == state.streams
    assert {name: (s.rows, s.mean, s.started, s.last_time_us) for name, s in zip(live.streams, restored, strict=True)} == {
        "a": (7, 0.5, True, 30),
        "b": (0, 0.0, False, 10),
        "c": (0, 0.0, False, 20),
    }
    for one in (streams, again):
        one.open("d")
    assert streams.get("b") is None and again.get("b") is None


def test_increments_hold_what_changed_and_apply_to_the_full_state():
    streams = table(2)
    for sequence, name in enumerate("ab"):
        streams.open(name)
        streams.accept(name, sequence)
    with streams.snapshot(incremental=False) as (full, _):
        pass
    streams.accept("b", 5)
    streams.open("c")  # evicts a
    streams.close("b")
    with streams.snapshot(incremental=True) as (change, _):
        pass
    assert change.closed == ["b"] and set(change.streams) == {"a", "c"}
    state = full.apply(change)
    again = table(2)
    live, _ = again.restore(state, hint="")
    assert live.streams == ["c"] and again.was_evicted("a") and not again.was_evicted("b")


def test_state_that_does_not_fit_is_refused_with_the_reason():
    streams = table(3)
    for name in "abc":
        streams.open(name)
    with streams.snapshot(incremental=False, weights="w1") as (state, _):
        pass
    with pytest.raises(RecoveryError, match="holds 3 streams, max_streams is 2; raise it"):
        table(2).restore(state, weights="w1", hint="")
    with pytest.raises(RecoveryError, match="weights w1, this is w2; use the same file"):
        table(3).restore(state, weights="w2", hint="use the same file")
    with pytest.raises(RecoveryError, match="apply it to a full one first"):
        table(3).restore(State(incremental=True), hint="")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), st.integers(1, 4), st.lists(st.integers(1, 9), max_size=9))
def test_columns_get_the_slots_that_rows_get_one_by_one(names: list[str], slots: int, cuts: list[int]):
    log: list[tuple[str, int]] = []
    plain = table(slots, ended=lambda stream_id, stream: log.append((stream_id, stream.slot)))
    wanted = []
    for sequence, name in enumerate(names):
        plain.get(name) or plain.open(name)
        plain.accept(name, sequence)
        wanted.append(plain.get(name).slot)
    wanted_log, log = log, []
    fast = table(slots, ended=lambda stream_id, stream: log.append((stream_id, stream.slot)))
    got, start = [], 0
    for size in [*cuts, len(names)]:
        part = names[start : start + size]
        start += size
        for _, slots_B, _ in fast.assign(pa.array(part, pa.string()), np.arange(len(part))) if part else ():
            got += slots_B.tolist()
    assert got == wanted and log == wanted_log
    assert {s.slot: s.used for s in plain.values()} == {s.slot: s.used for s in fast.values()}


def test_finding_slots_lets_nobody_make_room():
    streams = table(2)
    slots_B, _ = streams.find(pa.array(["a", "b", "c", "a"]))
    assert slots_B.tolist() == [0, 1, -1, 0] and streams.get("c") is None


def test_stream_that_was_evicted_and_came_back_between_snapshots_is_told_to_have_ended():
    streams = table(1)
    streams.open("a")
    with streams.snapshot(incremental=False):
        pass
    streams.open("b")
    streams.open("a")
    with streams.snapshot(incremental=True) as (change, _):
        pass
    assert "a" in change.closed and "a" in change.streams


def test_streams_beyond_the_slots_are_refused_row_by_row():
    streams = table(2, "reject")
    streams.open("a")
    names = pa.array(["a", "b", "c", "b", "d", "c", "a"])
    good = np.array([True, False, True, True, True, True, True])
    refused = streams.no_room_rows(names, good)
    assert refused.tolist() == [False, False, False, True, True, False, False]  # the bad row of b comes while there is room
    assert table(2).no_room_rows(names, good).tolist() == [False] * 7
    assert streams.no_slot == ("rejected_full", streams.no_slot.error) and "raise max_streams" in streams.no_slot.error


def test_found_stream_that_had_been_evicted_is_named():
    streams = table(1)
    streams.open("a")
    streams.open("b")
    streams.close("b")
    assert streams.find(pa.array(["a", "a"]))[1] == ["a"]
