"""At a tick: votes of the new window, states that are final now, segments that ended or began, and their rows."""

# B streams, W windows, T samples of a window, N samples, K states

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.memprompttss.config import Geometry
from operators.memprompttss.jobs import Tick
from operators.memprompttss.rows import Rows, StateBlock
from operators.memprompttss.samples import HELD, OFF_RATE
from operators.memprompttss.schemas import STATUSES
from operators.memprompttss.segments import NONE, Segment, advance
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.voting import Decided, decide

__all__ = ["Settler", "state_block"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_STATUS = {name: np.int8(code) for code, name in enumerate(STATUSES)}


class Settler:
    """Adds votes and settles what no later window sees."""

    def __init__(self, timeline: Timeline, geometry: Geometry, granularities: Sequence[int], *, provisional: bool) -> None:
        self.timeline, self.geometry, self.granularities = timeline, geometry, granularities
        self._provisional = provisional

    def vote(self, level: int, slots_B: Ints, start_B: Ints, probability_BTK: Floats) -> None:
        """Add the votes of one window of each slot."""
        window = self.geometry.window
        at_BT = (start_B[:, None] + np.arange(window)) % window
        self.timeline.votes_SGTK[slots_B[:, None], level, at_BT] += probability_BTK
        self.timeline.count_SGT[slots_B[:, None], level, at_BT] += 1

    def settle(self, out: Rows, level: int, ticks: Sequence[Tick]) -> None:
        """Settle the samples that the windows of these ticks see last, and tell the new ones that later windows see, too."""
        window, stride = self.geometry.window, self.geometry.stride
        start_B = np.array([tick.window * stride for tick in ticks])
        self.finish(out, level, ticks, start_B, stride)
        if not self._provisional:
            return
        first_B = np.maximum(start_B + stride, np.where(start_B == 0, 0, start_B + window - stride))
        length_B = start_B + window - first_B
        for length in np.unique(length_B[length_B > 0]).tolist():
            chosen = np.flatnonzero(length_B == length)
            some = [ticks[b] for b in chosen.tolist()]
            at_BN = first_B[chosen, None] + np.arange(length)
            decided = self._decide(level, some, at_BN)
            self._tell(out, level, some, at_BN, decided, final=False)

    def finish(
        self, out: Rows, level: int, ticks: Sequence[Tick], start_B: Ints, size: int, *, status: str | None = None
    ) -> None:
        """Make the states of ``size`` samples of each stream final, from ``start_B`` on; their segments follow."""
        at_BN = start_B[:, None] + np.arange(size)
        decided = self._decide(level, ticks, at_BN)
        slots_B = np.array([tick.job.slot for tick in ticks])
        at_BT = at_BN % self.geometry.window
        self.timeline.votes_SGTK[slots_B[:, None], level, at_BT] = 0
        self.timeline.count_SGT[slots_B[:, None], level, at_BT] = 0
        self._tell(out, level, ticks, at_BN, decided, final=True, status=status)
        self._segment(out, level, ticks, slots_B, start_B, decided)

    def tell_open(self, out: Rows, level: int, tick: Tick, settled: int, cause: Sequence[str]) -> None:
        """Tell the samples of windows so far that are not final."""
        end = settled - self.geometry.stride + self.geometry.window
        if self._provisional and end > settled:
            at_1N = np.arange(settled, end)[None]
            self._tell(out, level, [tick], at_1N, self._decide(level, [tick], at_1N), final=False, cause=cause)

    def close_segments(self, out: Rows, level: int, tick: Tick, end: int) -> None:
        """End the segment that goes on with sample ``end`` - 1."""
        machine = self.timeline.machine(tick.job.slot, level)
        if end == 0:
            return
        if machine.start == NONE:  # no run was ever long enough: the whole is one segment of its commonest state
            states = self.timeline.states_of(level, tick.job.slot, "state", self.timeline.oldest(end), end)
            values, number = np.unique(states, return_counts=True)
            machine.start, machine.state = 0, int(values[number.argmax()])
            self._begin(level, tick, Segment(0, NONE, machine.state), end)
        self.tell_segment(out, level, tick, Segment(machine.start, end, machine.state), end, revision=None)

    def tell_segment(
        self,
        out: Rows,
        level: int,
        tick: Tick,
        segment: Segment,
        settled: int,
        *,
        revision: int | None,
        supersedes: int | None = None,
        cause: Sequence[str] | None = None,
    ) -> None:
        """Add the row of a segment; ``settled``: how many samples are final. ``revision`` None: as it was when it began."""
        timeline, job = self.timeline, tick.job
        last = (settled if segment.end == NONE else segment.end) - 1
        at = last % self.geometry.kept
        held, samples = timeline.states[level].rows, timeline.samples.rows
        row = {name: held[f"segment_{name}"][job.slot, at].item() for name in ("revision", "base", "sequence", "time_us")}
        total, number = held["sum"][job.slot, at].item(), last + 1 - segment.start
        out.segment(
            tick.key,
            stream_id=job.stream_id,
            sequence=row["sequence"],
            event_time=row["time_us"],
            granularity=self.granularities[level],
            segment_id=job.stream.origin + segment.start,
            end_sequence=samples["sequence"][job.slot, at].item(),
            end_time=samples["time_us"][job.slot, at].item(),
            state=segment.state,
            mean_confidence=(total - row["base"]) / number,
            n_samples=number,
            final=segment.end != NONE,
            revision=row["revision"] if revision is None else revision,
            supersedes=supersedes,
            caused_by=cause,
        )

    # Inside

    def _decide(self, level: int, ticks: Sequence[Tick], at_BN: Ints) -> Decided:
        slots_B1 = np.array([tick.job.slot for tick in ticks])[:, None]
        at_BT = at_BN % self.geometry.window
        return decide(self.timeline.votes_SGTK[slots_B1, level, at_BT], self.timeline.count_SGT[slots_B1, level, at_BT])

    def _tell(
        self,
        out: Rows,
        level: int,
        ticks: Sequence[Tick],
        at_BN: Ints,
        decided: Decided,
        *,
        final: bool,
        status: str | None = None,
        cause: Sequence[str] | None = None,
    ) -> None:
        slot_R = np.repeat([tick.job.slot for tick in ticks], at_BN.shape[1])
        out.states(
            state_block(
                self.timeline,
                np.repeat([tick.key for tick in ticks], at_BN.shape[1]),
                np.repeat([out.stream(tick.job.stream_id) for tick in ticks], at_BN.shape[1]),
                slot_R,
                at_BN.ravel(),
                Decided(decided.state.ravel(), decided.confidence.ravel(), decided.votes.ravel()),
                self.granularities[level],
                final=final,
                status=status,
                cause=cause,
            )
        )

    def _segment(self, out: Rows, level: int, ticks: Sequence[Tick], slots_B: Ints, start_B: Ints, decided: Decided) -> None:
        """Append final states with the segments that they are in; where a run begins or grows, ask the machine."""
        timeline, size = self.timeline, decided.state.shape[1]
        bank = timeline.states[level]
        before_B = (start_B - 1) % self.geometry.kept
        is_first_B = start_B == 0
        rows: dict[str, npt.NDArray[np.generic]] = {
            "state": decided.state,
            "confidence": decided.confidence,
            "votes": decided.votes,
            "revision": np.zeros_like(decided.state),
        }
        total_B = np.where(is_first_B, 0.0, bank.rows["sum"].numpy()[slots_B, before_B])
        rows["sum"] = total_B[:, None] + decided.confidence.astype(np.float64).cumsum(1)
        for name, none in (("start", NONE), ("state", NONE), ("revision", 0), ("base", 0), ("sequence", 0), ("time_us", 0)):
            held_B = bank.rows[f"segment_{name}"].numpy()[slots_B, before_B]
            rows[f"segment_{name}"] = np.repeat(np.where(is_first_B, none, held_B).astype(held_B.dtype)[:, None], size, axis=1)
        timeline.append_states(level, slots_B, rows, size)
        machine_B4 = timeline.machine_SG4[slots_B, level]
        goes_on_B = (machine_B4[:, 0] != NONE) & (machine_B4[:, 1] == machine_B4[:, 3])
        goes_on_B &= (decided.state == machine_B4[:, 3:4]).all(1)
        for b in np.flatnonzero(~goes_on_B).tolist():
            tick, first = ticks[b], int(start_B[b])
            machine = timeline.machine(tick.job.slot, level)
            found = advance(machine, first, decided.state[b], self.geometry.min_segment)
            timeline.set_machine(tick.job.slot, level, machine)
            for segment in found:
                if segment.end == NONE:
                    self._begin(level, tick, segment, first + size)
                self.tell_segment(out, level, tick, segment, first + size, revision=None)

    def _begin(self, level: int, tick: Tick, segment: Segment, settled: int) -> None:
        """Note for the samples of a segment that begins where it began."""
        timeline, slot = self.timeline, tick.job.slot
        first = max(segment.start, timeline.oldest(settled))
        # The oldest sample that is remembered stands in for a start before it: only a stream without any long run has that.
        base = 0.0 if segment.start == 0 else float(timeline.states_of(level, slot, "sum", segment.start - 1, segment.start)[0])
        one = np.array([slot]), np.array([max(segment.start, timeline.oldest(tick.job.stream.received))])
        size = settled - first
        values: dict[str, npt.NDArray[np.generic]] = {
            "segment_start": np.full(size, segment.start, np.int64),
            "segment_state": np.full(size, segment.state, np.int32),
            "segment_revision": np.zeros(size, np.int32),
            "segment_base": np.full(size, base),
            "segment_sequence": np.full(size, timeline.get("sequence", *one)[0], np.int64),
            "segment_time_us": np.full(size, timeline.get("time_us", *one)[0], np.int64),
        }
        timeline.set_states(level, slot, first, values)


def state_block(
    timeline: Timeline,
    key_R: Ints,
    stream_R: Ints,
    slot_R: Ints,
    at_R: Ints,
    decided: Decided,
    granularity: int,
    *,
    final: bool,
    status: str | None = None,
    revision_R: npt.NDArray[np.int32] | None = None,
    cause: Sequence[str] | None = None,
) -> StateBlock:
    """Return rows about samples, with their keys and the word for their quality."""
    quality_R = timeline.get("quality", slot_R, at_R)
    usual = _STATUS["ok"] if status is None else _STATUS[status]
    status_R = np.where(quality_R == HELD, _STATUS["held"], usual)
    status_R = np.where(quality_R == OFF_RATE, _STATUS["wrong_rate"], status_R)
    status_R = np.where(decided.state < 0, _STATUS["no_state"], status_R).astype(np.int8)
    size = len(at_R)
    columns = {
        "sequence": timeline.get("sequence", slot_R, at_R),
        "event_time": timeline.get("time_us", slot_R, at_R),
        "granularity": np.full(size, granularity, np.int8),
        "state": decided.state,
        "confidence": decided.confidence,
        "votes": decided.votes,
        "final": np.full(size, final),
        "revision": np.zeros(size, np.int32) if revision_R is None else revision_R,
    }
    return StateBlock(key_R, stream_R, status_R, columns, cause)
