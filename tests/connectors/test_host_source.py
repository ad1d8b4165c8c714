from __future__ import annotations

import time

import pytest

from connectors.sources.host import HOST, HostOptions, HostReader, HostSource


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_row_per_interval_says_how_the_machine_is() -> None:
    clock = Clock()
    reader = HostReader("here", HostOptions(interval_s=2.0), None, clock)
    assert reader.read(10, 1000) is None
    assert reader.next_due() == pytest.approx(2.0)
    clock.now += 2.0
    before_us = time.time_ns() // 1000
    batch = reader.read(10, 1000)
    assert batch is not None
    assert batch.schema == HOST
    (row,) = batch.to_pylist()
    assert (row["stream_id"], row["sequence"], row["error"]) == ("here", 0, None)
    assert before_us <= round(row["event_time"].timestamp() * 1e6) <= time.time_ns() // 1000
    assert 0 <= row["cpu"] <= 100
    assert 0 < row["memory"] < 100
    assert row["processes"] > 1
    assert row["net_receive"] >= 0
    assert reader.read(10, 1000) is None
    clock.now += 2.0
    assert reader.read(10, 1000) is not None
    assert reader.position()["sequence"] == 2


def test_missed_intervals_are_skipped_not_made_up_for() -> None:
    clock = Clock()
    reader = HostReader("here", HostOptions(interval_s=1.0), None, clock)
    clock.now += 60.0
    assert reader.read(10, 1000) is not None
    assert reader.read(10, 1000) is None
    assert reader.next_due() == pytest.approx(1.0)


def test_counters_go_on_after_a_resume_and_time_never_goes_back() -> None:
    clock = Clock()
    ahead_us = time.time_ns() // 1000 + 10**9
    reader = HostReader("here", HostOptions(), {"sequence": 7, "time_us": ahead_us}, clock)
    clock.now += 1.0
    assert reader.read(1, 1) is not None
    assert reader.position() == {"sequence": 8, "time_us": ahead_us + 1}


def test_a_duration_ends_it() -> None:
    clock = Clock()
    reader = HostReader("here", HostOptions(interval_s=1.0, duration_s=2.5), None, clock)
    clock.now += 1.0
    assert reader.read(1, 1) is not None
    clock.now += 2.0
    assert reader.read(1, 1) is None
    assert reader.exhausted
    assert list(reader.closes) == ["here"]
    assert HostSource(HostOptions(duration_s=1.0)).bounded
    assert not HostSource(HostOptions()).bounded
    assert HostSource(HostOptions()).splits()[0]
