"""Rates, time left and the lines that a user sees while a run goes on."""

from __future__ import annotations

import logging

import pytest

from models.training.progress import Progress as Trained
from pipelines.commands.progress import RateMeter, live_line, run_progress, training_progress
from pipelines.runners.report import Progress


def progress(seconds: float, rows: int, left: int | None = None, attempt: int = 1) -> Progress:
    return Progress(
        seconds=seconds,
        attempt=attempt,
        epoch=3,
        rows_read=rows,
        rows_written=rows - 10,
        rows_left=left,
        rows_committed={},
        tasks=(),
    )


def test_the_rate_is_that_of_the_last_seconds() -> None:
    meter = RateMeter(window_s=10.0)
    for second in range(100):
        meter.add(float(second), 100 * second if second < 50 else 5000 + 10 * (second - 50))
    assert meter.rate == pytest.approx(10.0)
    assert meter.eta_s(200) == pytest.approx(20.0)


def test_a_new_attempt_begins_the_rate_anew() -> None:
    meter = RateMeter()
    meter.add(0.0, 0)
    meter.add(1.0, 1000)
    meter.add(2.0, 10)
    assert meter.rate == 0.0
    meter.add(3.0, 20)
    assert meter.rate == pytest.approx(10.0)


def test_nothing_is_known_before_the_first_rows() -> None:
    meter = RateMeter()
    assert (meter.rate, meter.eta_s(10), meter.eta_s(None)) == (0.0, None, None)


def test_the_live_line_shows_rows_rate_lag_and_time_left() -> None:
    meter = RateMeter()
    meter.add(0.0, 0)
    meter.add(10.0, 5000)
    line = live_line(progress(10.0, 5000, left=60_000, attempt=2), meter)
    assert line == "10.0 s · 5,000 rows · 500 rows/s · lag 60,000 · ETA 2:00 · 4,990 written · epoch 3 · attempt 2"


def test_a_slow_run_does_not_look_as_if_it_stood_still() -> None:
    meter = RateMeter()
    meter.add(0.0, 0)
    meter.add(10.0, 4)
    assert " · 0.4 rows/s · " in live_line(progress(10.0, 4, left=60), meter)


def test_without_a_terminal_progress_is_logged_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("pipelines.commands.progress.time.monotonic", lambda: now_s)
    with caplog.at_level(logging.INFO), run_progress(live=False) as show:
        for second in range(61):
            now_s = float(second)
            show(progress(now_s, 100 * second, left=10_000))
    assert caplog.messages == [
        "rows_read=3000 rows_per_s=100.0 lag_rows=10000 eta_s=100 rows_written=2990 epoch=3 attempt=1",
        "rows_read=6000 rows_per_s=100.0 lag_rows=10000 eta_s=100 rows_written=5990 epoch=3 attempt=1",
    ]


def test_in_a_pipe_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    monkeypatch.setattr("pipelines.commands.progress.time.monotonic", lambda: now_s)
    with run_progress(live=False, quiet=False) as show, training_progress(live=False, quiet=False) as told:
        assert told is not None
        for second in range(31):
            now_s = float(second)
            show(progress(now_s, 100 * second, left=10_000))
            told(Trained("finetune", second, 120, 0.5, eta_s=75.0))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == [
        "30.0 s · 3,000 rows · 100 rows/s · lag 10,000 · ETA 1:40 · 2,990 written · epoch 3",
        "finetune 30/120 loss 0.500 ETA 1:15",
    ]
    with training_progress(live=False) as told:
        assert told is None
