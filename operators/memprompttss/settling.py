"""At a tick: votes of the new window, states that are final now, segments that ended or began, and their rows."""

# B streams, W windows, T samples of a window, N samples, K states

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.memprompttss.config import Geometry
from operators.memprompttss.jobs import Tick
from operators.memprompttss.quality import HELD, OFF_RATE
from operators.memprompttss.rows import Rows, SegmentBlock, StateBlock
from operators.memprompttss.schemas import STATUSES
from operators.memprompttss.segments import NONE, Begun, Segment, advance
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.voting import Decided, decide

__all__ = ["Settler", "state_block"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_TOLD = ("sequence", "time_us", "base", "revision")
"""What is known of a segment at each of its samples, besides its start and state."""

_STATUS = {name: np.int8(code) for code, name in enumerate(STATUSES)}


class Settler:
    """Adds votes and settles what no later window sees."""

    def __init__(self, timeline: Timeline, geometry: Geometry, granularities: Sequence[int], *, provisional: bool) -> None:
        self.timeline, self.geometry, self.granularities = timeline, geometry, granularities
        self._provisional = provisional

    def _vote(self, level: int, slots_B: Ints, start_B: Ints, probability_BTK: Floats) -> None:
        """Add the votes of one window of each slot."""
        window = self.geometry.window
        at_BT = (start_B[:, None] + np.arange(window)) % window
        self.timeline.votes_SGTK[slots_B[:, None], level, at_BT] += probability_BTK
        self.timeline.count_SGT[slots_B[:, None], level, at_BT] += 1

    def settle(
        self, out: Rows, level: int, ticks: Sequence[Tick], probability_BTK: Floats | None, voting_B: npt.NDArray[np.bool_]
    ) -> None:
        """Take the votes of windows, settle the samples that they see last, and tell the new ones that later windows see, too.

        ``probability_BTK``: of those ticks that are ``voting_B``; of the others what votes there are is there already.
        """
        window, stride = self.geometry.window, self.geometry.stride
        start_B = np.array([tick.window * stride for tick in ticks])
        if stride == window and probability_BTK is not None and voting_B.all():  # the only votes, so none need be kept
            self._finish(out, level, ticks, start_B, decide(probability_BTK, np.ones(probability_BTK.shape[:2], np.int64)))
            return
        if probability_BTK is not None:
            slots_B = np.array([tick.job.slot for tick in ticks])
            self._vote(level, slots_B[voting_B], start_B[voting_B], probability_BTK)
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
        slots_B1, at_BT = np.array([tick.job.slot for tick in ticks])[:, None], at_BN % self.geometry.window
        self.timeline.votes_SGTK[slots_B1, level, at_BT] = 0
        self.timeline.count_SGT[slots_B1, level, at_BT] = 0
        self._finish(out, level, ticks, start_B, decided, status=status)

    def _finish(
        self, out: Rows, level: int, ticks: Sequence[Tick], start_B: Ints, decided: Decided, *, status: str | None = None
    ) -> None:
        at_BN = start_B[:, None] + np.arange(decided.state.shape[1])
        self._tell(out, level, ticks, at_BN, decided, final=True, status=status)
        self._segment(out, level, ticks, np.array([tick.job.slot for tick in ticks]), start_B, decided)

    def tell_open(self, out: Rows, level: int, tick: Tick, settled: int, cause: Sequence[str]) -> None:
        """Tell the samples of windows so far that are not final."""
        end = settled - self.geometry.stride + self.geometry.window
        if self._provisional and end > settled:
            at_1N = np.arange(settled, end)[None]
            self._tell(out, level, [tick], at_1N, self._decide(level, [tick], at_1N), final=False, cause=cause)

    def close_segments(self, out: Rows, level: int, tick: Tick, end: int) -> None:
        """End the segment that goes on with sample ``end`` - 1."""
        if end == 0:
            return
        slot = tick.job.slot
        start, state = self.timeline.machine_SG4[slot, level, :2].tolist()
        if start == NONE:  # no run was ever long enough: the whole is one segment of its commonest state
            states = self.timeline.states_of(level, slot, "state", self.timeline.oldest(end), end)
            values, number = np.unique(states, return_counts=True)
            start, state = 0, int(values[number.argmax()])
            one = np.zeros(1, np.int64)
            self._note(level, one + slot, one, one + state, one + end, one + end)
        self.tell_segment(out, level, tick, Segment(start, end, state), end, revision=None)

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
        one = np.array([job.slot]), np.array([last])
        row = {name: timeline.state(level, f"segment_{name}", *one).item() for name in _TOLD}
        total, number = timeline.state(level, "sum", *one).item(), last + 1 - segment.start
        out.segment(
            tick.key,
            stream_id=job.stream_id,
            sequence=row["sequence"],
            event_time=row["time_us"],
            granularity=self.granularities[level],
            segment_id=job.stream.origin + segment.start,
            end_sequence=timeline.get("sequence", *one).item(),
            end_time=timeline.get("time_us", *one).item(),
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
        """Append final states with the segments that they are in; note and tell segments that end or begin."""
        timeline, size = self.timeline, decided.state.shape[1]
        is_first_B = start_B == 0
        rows: dict[str, npt.NDArray[np.generic]] = {
            "state": decided.state,
            "confidence": decided.confidence,
            "votes": decided.votes,
            "revision": np.zeros_like(decided.state),
        }
        total_B = np.where(is_first_B, 0.0, timeline.state(level, "sum", slots_B, start_B - 1))
        rows["sum"] = total_B[:, None] + decided.confidence.astype(np.float64).cumsum(1)
        for name, none in (("start", NONE), ("state", NONE), ("revision", 0), ("base", 0), ("sequence", 0), ("time_us", 0)):
            held_B = timeline.state(level, f"segment_{name}", slots_B, start_B - 1)
            rows[f"segment_{name}"] = np.repeat(np.where(is_first_B, none, held_B).astype(held_B.dtype)[:, None], size, axis=1)
        timeline.append_states(level, slots_B, rows, size)
        machine_B4, begun = advance(timeline.machine_SG4[slots_B, level], start_B, decided.state, self.geometry.min_segment)
        timeline.machine_SG4[slots_B, level] = machine_B4
        if len(begun.start_E):
            self._begin(out, level, ticks, slots_B, start_B + size, begun)

    def _note(
        self, level: int, slot_E: Ints, start_E: Ints, state_E: Ints, end_E: Ints, settled_E: Ints
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Note for the samples of segments that begin, up to ``end_E``, what is known of the segment; return that."""
        timeline, kept = self.timeline, self.geometry.kept
        sequence_E, time_us_E = timeline.begin(slot_E, start_E)
        first_E = np.maximum(start_E, settled_E - kept)
        known: dict[str, npt.NDArray[np.generic]] = {
            "start": start_E,
            "state": state_E.astype(np.int32),
            "revision": np.zeros(len(start_E), np.int32),
            "base": np.where(start_E == 0, 0.0, timeline.state(level, "sum", slot_E, start_E - 1)),
            "sequence": sequence_E,
            "time_us": time_us_E,
        }
        size_E = np.maximum(end_E - first_E, 0)
        of_R = np.repeat(np.arange(len(size_E)), size_E)
        at_R = first_E[of_R] + np.arange(len(of_R)) - (size_E.cumsum() - size_E)[of_R]
        timeline.put_states(level, slot_E[of_R], at_R, {f"segment_{name}": values_E[of_R] for name, values_E in known.items()})
        return known

    def _begin(self, out: Rows, level: int, ticks: Sequence[Tick], slots_B: Ints, settled_B: Ints, begun: Begun) -> None:
        """Note segments that begin; tell these, and those that end there."""
        timeline = self.timeline
        of_E, start_E = begun.of_E, begun.start_E
        slot_E, settled_E = slots_B[of_E], settled_B[of_E]
        is_last_E = np.append(of_E[1:] != of_E[:-1], True)
        end_E = np.where(is_last_E, settled_E, np.append(start_E[1:], 0))
        origin_B = np.array([tick.job.stream.origin for tick in ticks])
        known = self._note(level, slot_E, start_E, begun.state_E, end_E, settled_E)
        # Two rows for each: of the segment that ends before it, where there is one, and its own.
        last_E2 = np.stack([start_E - 1, settled_E - 1], axis=1)
        both_E2 = (np.repeat(slot_E[:, None], 2, axis=1), np.maximum(last_E2, 0))
        # When it begins, later ones of the same tick are there already: what is known of it comes from here.
        ended = {name: timeline.state(level, f"segment_{name}", slot_E, last_E2[:, 0]) for name in _TOLD}
        told = {name: np.stack([ended[name], known[name]], axis=1) for name in _TOLD}
        start_E2 = np.stack([begun.before_E, start_E], axis=1)
        number_E2 = last_E2 + 1 - start_E2
        there_E2 = np.stack([begun.before_E != NONE, np.ones(len(of_E), np.bool_)], axis=1)
        total_E2 = timeline.state(level, "sum", *both_E2)
        columns = {
            "sequence": told["sequence"],
            "event_time": told["time_us"],
            "granularity": np.full(there_E2.shape, self.granularities[level], np.int8),
            "segment_id": origin_B[of_E][:, None] + start_E2,
            "end_sequence": timeline.get("sequence", *both_E2),
            "end_time": timeline.get("time_us", *both_E2),
            "state": np.stack([begun.before_state_E, begun.state_E], axis=1),
            "mean_confidence": ((total_E2 - told["base"]) / np.maximum(number_E2, 1)).astype(np.float32),
            "n_samples": number_E2,
            "final": np.tile([True, False], (len(of_E), 1)),
            "revision": told["revision"],
        }
        key_B, stream_B = np.array([(tick.key, out.stream(tick.job.stream_id)) for tick in ticks]).T
        key_E2, stream_E2 = (np.repeat(values_B[of_E][:, None], 2, axis=1) for values_B in (key_B, stream_B))
        chosen = {name: values_E2[there_E2] for name, values_E2 in columns.items()}
        out.segments(SegmentBlock(key_E2[there_E2], stream_E2[there_E2], chosen))


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
