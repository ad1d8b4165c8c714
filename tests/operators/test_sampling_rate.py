"""The measured rate of streams, against a loop over single samples."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.sampling_rate import (
    BLOCK,
    PAUSE,
    RateOptions,
    SampledStream,
    forget_rate,
    measure_rate,
    rate_error,
)
from operators.streams import NEVER_US

AT_100_HZ = RateOptions(rate_hz=100.0)


def times(hz: float, count: int, *, jitter: float = 0.0, start_us: int = 1_000_000) -> np.ndarray:
    """Samples on a grid, each off by up to ``jitter`` of a step."""
    grid = np.arange(1, count + 1) + jitter * np.random.default_rng(0).uniform(-1, 1, count)
    return start_us + np.rint(grid * 1e6 / hz).astype(np.int64)


def by_hand(all_times: list[int], options: RateOptions) -> list[float]:
    """One sample at a time: the last whole block of intervals decides."""
    verdict, block, told = math.nan, [], []
    for before, now in zip([None, *all_times[:-1]], all_times, strict=True):
        if before is not None:
            block.append(now - before)
        if len(block) == BLOCK:
            short = [step for step in block if step <= PAUSE * 1e6 / options.rate_hz]
            steps = block if 2 * (BLOCK - len(short)) > BLOCK else short
            hz = len(steps) * 1e6 / sum(steps) if sum(steps) else math.inf
            wrong = abs(hz - options.rate_hz) > options.rate_tolerance * options.rate_hz
            verdict, block = hz if wrong else math.nan, []
        told.append(verdict)
    return told


def in_pieces(all_times: np.ndarray, cuts: list[int], options: RateOptions = AT_100_HZ) -> list[float]:
    stream, last, told = SampledStream(0), NEVER_US, []
    for piece in np.split(all_times, sorted({cut % (len(all_times) + 1) for cut in cuts})):
        told += measure_rate(stream, last, piece, options).tolist()
        last = int(piece[-1]) if len(piece) else last
    return told


@given(
    steps=st.lists(st.sampled_from([0, 1, 9_000, 10_000, 11_000, 20_000, 40_001, 10**7]), min_size=1, max_size=400),
    cuts=st.lists(st.integers(0, 400), max_size=5),
)
def test_any_cut_gives_what_a_loop_over_samples_gives(steps: list[int], cuts: list[int]) -> None:
    all_times = np.cumsum(np.array(steps, np.int64))
    np.testing.assert_array_equal(in_pieces(all_times, cuts), by_hand(all_times.tolist(), AT_100_HZ))


@pytest.mark.parametrize(("hz", "wrong"), [(100, False), (96, False), (94, True), (50, True), (10, True), (200, True)])
def test_a_rate_out_of_bounds_is_told_from_the_end_of_a_block_on(hz: float, wrong: bool) -> None:
    told = in_pieces(times(hz, 3 * BLOCK), [])
    assert np.isnan(told[:BLOCK]).all()
    assert np.isnan(told[BLOCK:]).all() != wrong
    if wrong:
        assert told[BLOCK:] == pytest.approx([hz] * (2 * BLOCK), rel=1e-3)


def test_jitter_and_samples_that_are_lost_now_and_then_are_no_fault() -> None:
    assert np.isnan(in_pieces(times(100, 10 * BLOCK, jitter=0.45), [])).all()
    kept = np.delete(times(100, 10 * BLOCK), [70, 300, 301])
    assert np.isnan(in_pieces(kept, [])).all()
    paused = times(100, 10 * BLOCK)
    paused[200:] += 60_000_000
    assert np.isnan(in_pieces(paused, [])).all()


def test_a_stream_that_comes_back_to_its_rate_is_fine_again() -> None:
    slow = times(50, 2 * BLOCK)
    told = in_pieces(np.concatenate([slow, times(100, 3 * BLOCK, start_us=int(slow[-1]))]), [])
    assert not np.isnan(told[2 * BLOCK - 1])
    assert np.isnan(told[-BLOCK:]).all()


def test_after_a_gap_it_begins_anew_and_without_a_rate_nothing_is_measured() -> None:
    stream = SampledStream(0)
    measure_rate(stream, NEVER_US, times(50, 100), AT_100_HZ)
    assert stream.rate_wrong_hz == pytest.approx(50)
    forget_rate(stream)
    assert asdict(stream) == asdict(SampledStream(0))
    assert np.isnan(measure_rate(stream, NEVER_US, times(50, 100), RateOptions())).all()
    assert asdict(stream) == asdict(SampledStream(0))


def test_the_error_says_value_bounds_and_remedy() -> None:
    assert rate_error(49.987, AT_100_HZ) == (
        "sampled at 49.99 Hz, measured over 64 samples; rate_hz is 100, give or take 5%: put the operator resample before it, "
        "or use a model of this rate"
    )
