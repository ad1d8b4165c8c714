import json
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read_all

from connectors.errors import ConfigError
from connectors.sources.jsonl import JsonlSource
from connectors.sources.paced import PacedReader, ReplayOptions, open_paced, rows_within
from connectors.sources.tables import TableOptions


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write(path, times):
    path.write_text("".join(json.dumps({"t": t, "i": i}) + "\n" for i, t in enumerate(times)))
    return path


def source(path, **options):
    return JsonlSource(TableOptions(path=str(path), event_time="t", event_time_unit="s", **options))


def drain(reader):
    """Everything that is due now."""
    rows = []
    while (batch := reader.read(1000, 1 << 20)) is not None:
        rows += batch.column("i").to_pylist()
    return rows


def opened(path, clock, **options):
    table = source(path, **options)
    return open_paced(table, table.splits()[0], None, clock)


@pytest.fixture
def clock():
    return Clock()


def test_rows_come_when_their_event_time_is_due(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", [100, 100.5, 100.5, 102]), clock, pace="realtime")
    assert drain(reader) == [0]
    clock.now += 0.49
    assert drain(reader) == []
    clock.now += 0.01
    assert drain(reader) == [1, 2]
    assert reader.next_due() == pytest.approx(1.5)
    clock.now += 1.5
    assert drain(reader) == [3]
    assert reader.exhausted
    assert reader.closes == ("a",)


def test_sleeping_for_next_due_is_always_enough(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", [0.1 * i for i in range(50)]), clock, pace=3)
    got = drain(reader)
    while not reader.exhausted:
        due = reader.next_due()
        assert 0 < due <= 0.1 / 3 + 1e-6
        clock.now += due
        got += drain(reader)
    assert got == list(range(50))
    assert clock.now == pytest.approx(1000 + 4.9 / 3)


def test_a_factor_stretches_time(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", [0, 1, 2]), clock, pace=0.5)
    drain(reader)
    assert reader.next_due() == pytest.approx(2.0)


def test_after_a_stall_the_replay_goes_on_at_its_pace_and_does_not_burst(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", range(100)), clock, pace="realtime")
    assert drain(reader) == [0]
    clock.now += 30
    assert drain(reader) == [1]
    clock.now += 1
    assert drain(reader) == [2]


def test_after_a_stall_catch_up_releases_all_that_is_due(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", range(100)), clock, pace="realtime", catch_up=True)
    assert drain(reader) == [0]
    clock.now += 30
    assert drain(reader) == list(range(1, 31))


def test_small_lags_do_not_add_up(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", [i / 10 for i in range(100)]), clock, pace="realtime")
    got = drain(reader)
    for _ in range(30):
        clock.now += 0.33
        got += drain(reader)
    assert got == list(range(100))


def test_late_and_duplicate_times_pass_in_order_with_their_predecessor(tmp_path, clock):
    reader = opened(write(tmp_path / "a.jsonl", [5, 7, 6, 7, 8]), clock, pace="realtime")
    assert drain(reader) == [0]
    clock.now += 2
    assert drain(reader) == [1, 2, 3]
    clock.now += 1
    assert drain(reader) == [4]


def test_rows_with_errors_do_not_set_the_clock(tmp_path, clock):
    path = tmp_path / "a.jsonl"
    path.write_text('broken\n{"t": 1767222000, "i": 1}\nbroken\n{"t": 1767222001, "i": 3}\n')
    reader = opened(path, clock, pace="realtime")
    assert drain(reader) == [None, 1, None]
    assert reader.next_due() == pytest.approx(1.0)


@pytest.mark.parametrize("pace", ["max", 1e9])
def test_a_restart_after_part_of_a_chunk_is_exact_at_any_pace(tmp_path, clock, pace):
    path = write(tmp_path / "a.jsonl", [i / 2 for i in range(40)])
    reader = opened(path, clock, pace="realtime")
    whole, seen = read_all(source(path)), 0
    while not reader.exhausted:
        position = json.loads(json.dumps(reader.position()))
        again = open_paced(source(path, pace=pace), "a", position, clock)
        rest = []
        while not again.exhausted:
            piece = again.read(7, 1 << 20)
            rest += [piece] if piece is not None else []
            clock.now += (again.next_due() or 0.0) if piece is None else 0.0
        assert pa.Table.from_batches(rest, schema=whole.schema).equals(whole.slice(seen))
        clock.now += 0.4
        batch = reader.read(3, 1 << 20)
        seen += batch.num_rows if batch is not None else 0
    assert seen == 40


def test_max_pace_is_the_plain_reader(tmp_path):
    path = write(tmp_path / "a.jsonl", range(3))
    assert not isinstance(opened(path, time.monotonic, pace="max"), PacedReader)


@given(times=st.lists(st.floats(-50, 50).map(lambda t: round(t, 3)), min_size=1, max_size=40), cuts=st.lists(st.integers(1, 5)))
@settings(max_examples=40, deadline=None)
def test_any_pacing_releases_all_rows_once_and_in_order(tmp_path_factory, times, cuts):
    clock = Clock()
    reader = opened(write(tmp_path_factory.mktemp("p") / "a.jsonl", times), clock, pace=1.0)
    got = []
    cuts = [*cuts, 3]
    while not reader.exhausted:
        batch = reader.read(cuts[len(got) % len(cuts)], 1 << 20)
        if batch is None:
            clock.now += (reader.next_due() or 0.0) * 0.7 + 1e-3
        else:
            got += batch.column("i").to_pylist()
    assert got == list(range(len(times)))


def test_rows_within_keeps_both_limits_and_at_least_one_row():
    batch = pa.record_batch({"x": pa.array(range(100), pa.int64())})
    assert rows_within(batch, 0, 10, 1 << 20) == 10
    assert rows_within(batch, 95, 10, 1 << 20) == 5
    assert 1 <= rows_within(batch, 0, 100, 80) <= 10
    assert rows_within(batch, 0, 100, 1) == 1


@pytest.mark.parametrize("pace", ["slow", -1, float("nan"), float("inf"), True])
def test_a_pace_that_is_none_is_refused(pace):
    with pytest.raises(ConfigError, match=r"pace: .* is not a pace; allowed: 'max', 'realtime', or a factor above 0"):
        ReplayOptions(pace=pace)
