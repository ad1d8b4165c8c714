"""Rows of streams that are accepted into the timeline: in order many at a time, and the ones that come late one by one."""

# R rows, B streams of a round, C channels, N samples

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.counters import Counters
from operators.memprompttss.config import Geometry, MemPromptTSSOptions
from operators.memprompttss.jobs import Job
from operators.memprompttss.quality import GOOD, HELD, MISSING, OFF_RATE, fill
from operators.memprompttss.rows import Rows
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.weights import Network
from operators.samples import Samples
from operators.sampling_rate import RateOptions, measure_rate, rate_error
from operators.streams import NEVER_US

__all__ = ["Intake"]

Ints = npt.NDArray[np.int64]


class Intake:
    """Notes samples: held where a number is missing, standardized, and marked where their rate is wrong."""

    def __init__(
        self,
        network: Network,
        timeline: Timeline,
        geometry: Geometry,
        options: MemPromptTSSOptions,
        rate: RateOptions,
        counters: Counters,
    ) -> None:
        """``rate``: what is expected of streams, with the network's rate where the options name none."""
        self._network, self._timeline, self._geometry = network, timeline, geometry
        self._options, self._rate, self._counters = options, rate, counters

    def append(self, out: Rows, samples: Samples, jobs: Sequence[Job], sizes_B: Ints) -> None:
        """Note rows of streams: numbers that are missing are held, all are standardized."""
        rows_R = np.concatenate([job.rows_N[job.taken : job.taken + size] for job, size in zip(jobs, sizes_B, strict=True)])
        slots_B = np.array([job.slot for job in jobs])
        starts_B = np.cumsum(sizes_B) - sizes_B
        timeline = self._timeline
        values_RC, quality_R, last_BC, held_BC = fill(
            samples.values_RC[rows_R], starts_B, timeline.last_SC[slots_B], timeline.held_SC[slots_B], self._options.max_hold
        )
        timeline.last_SC[slots_B], timeline.held_SC[slots_B] = last_BC, held_BC
        sequence_R, time_us_R = samples.sequence_R[rows_R], samples.time_us_R[rows_R]
        rows = {"values": self._network.standardize(values_RC), "sequence": sequence_R, "time_us": time_us_R}
        if self._rate.rate_hz is not None:
            for job, start, size in zip(jobs, starts_B.tolist(), sizes_B.tolist(), strict=True):
                self._measure_rate(out, job, rows_R, quality_R, slice(start, start + size), sequence_R, time_us_R)
        timeline.append(slots_B, {**rows, "quality": quality_R}, sizes_B)
        for job, start, size in zip(jobs, starts_B.tolist(), sizes_B.tolist(), strict=True):
            stream = job.stream
            stream.received += size
            stream.last_sequence, stream.last_time_us = int(sequence_R[start + size - 1]), int(time_us_R[start + size - 1])
            if stream.first_time_us == NEVER_US:
                stream.first_time_us = int(time_us_R[start])

    def _measure_rate(
        self,
        out: Rows,
        job: Job,
        rows_R: Ints,
        quality_R: npt.NDArray[np.uint8],
        part: slice,
        sequence_R: Ints,
        time_us_R: Ints,
    ) -> None:
        """Mark samples of a stream that comes at another rate than the network was trained for; say so once."""
        was_wrong = job.stream.rate_wrong_hz != 0
        wrong_N = measure_rate(job.stream, job.stream.last_time_us, time_us_R[part], self._rate)
        off_N = ~np.isnan(wrong_N)
        quality_R[part][off_N & (quality_R[part] != MISSING)] = MISSING if self._options.wrong_rate == "reject" else OFF_RATE
        begins_N = off_N & ~np.concatenate([[was_wrong], off_N[:-1]])
        for n in np.flatnonzero(begins_N).tolist():
            at = part.start + n
            error = rate_error(float(wrong_N[n]), self._rate)
            out.sample(int(rows_R[at]), job.stream_id, int(sequence_R[at]), int(time_us_R[at]), "wrong_rate", error)

    def insert(self, out: Rows, samples: Samples, job: Job) -> None:
        """Put a late sample where it belongs, or refuse it where a window has seen the place."""
        row, slot, stream, timeline = int(job.rows_N[job.taken]), job.slot, job.stream, self._timeline
        time_us, window, stride = int(samples.time_us_R[row]), self._geometry.window, self._geometry.stride
        seen = window + (stream.windows - 1) * stride if stream.windows else 0
        first = max(seen - 1, 0)
        at_N = np.arange(first, stream.received)
        time_us_N = timeline.get("time_us", np.full(len(at_N), slot), at_N).astype(np.int64)
        place = first + int(np.searchsorted(time_us_N, time_us))
        stream.last_sequence = max(stream.last_sequence, int(samples.sequence_R[row]))
        if place < seen or (place == 0 and stream.origin):
            behind_s = (stream.last_time_us - time_us) / 1e6
            error = f"event_time is {behind_s:.6f} s before the last row's, and a window or a gap is there already"
            out.sample(row, job.stream_id, int(samples.sequence_R[row]), time_us, "late", error)
            self._counters.add("late")
            return
        before = np.array([slot]), np.array([max(place - 1, 0)])
        quality = int(timeline.get("quality", *before)[0]) if place else MISSING
        given_1C = samples.values_RC[row : row + 1]
        there_1C = np.isfinite(given_1C)
        values_1C = np.where(there_1C, self._network.standardize(given_1C), timeline.get("values", *before) if place else 0)
        whole = bool(there_1C.all())
        sample: dict[str, npt.NDArray[np.generic]] = {
            "values": values_1C.astype(np.float32),
            "sequence": samples.sequence_R[row : row + 1],
            "time_us": samples.time_us_R[row : row + 1],
            "quality": np.array([GOOD if whole else MISSING if quality == MISSING else HELD], np.uint8),
        }
        if place < stream.received and time_us == int(time_us_N[place - first]):
            timeline.replace(slot, place, sample)
            if place == stream.received - 1:  # what is held where the next one has no number
                timeline.last_SC[slot] = np.where(there_1C, given_1C, timeline.last_SC[slot])[0]
                timeline.held_SC[slot][there_1C[0]] = 0
        else:
            timeline.insert(slot, place, sample, stream.received)
            stream.received += 1
