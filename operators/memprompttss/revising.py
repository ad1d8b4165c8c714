"""After the bank of a stream has changed: its remembered windows are decoded again, and what differs becomes revisions.

Encoded windows are kept, so that only the decoder runs. Revised are samples all of whose windows are remembered; what is older
stays as it is. Final states that differ get a row with the next revision and the prompts that caused it; segments likewise.
"""

# W windows, N samples, T samples of a window, K states

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from operators.memprompttss.config import Geometry
from operators.memprompttss.jobs import Tick
from operators.memprompttss.memory import PromptBank
from operators.memprompttss.rows import Rows
from operators.memprompttss.segments import NONE, Segment, advance, changes
from operators.memprompttss.settling import Settler, state_block
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.voting import Decided, decide, sum_votes
from operators.memprompttss.weights import Network

__all__ = ["Reviser", "Revision"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """Remembered windows of a stream that are being run again."""

    level: int
    tick: Tick
    settled: int
    """Samples that have final states."""
    causes: Sequence[str]
    first: int
    """Number of the first window."""
    number_W: Ints
    """Of those that can be run."""
    windows: int
    """Number behind the last one."""
    probability_WTK: Tensor
    """What they say, on the device."""


class Reviser:
    """Brings the past of a stream up to its bank."""

    def __init__(
        self,
        network: Network,
        timeline: Timeline,
        banks: Sequence[PromptBank],
        settler: Settler,
        geometry: Geometry,
        granularities: Sequence[int],
    ) -> None:
        self._network, self._timeline, self._banks = network, timeline, banks
        self._settler, self._geometry, self._granularities = settler, geometry, granularities

    def run(self, level: int, tick: Tick, windows: int, settled: int, causes: Sequence[str]) -> Revision:
        """Run the first ``windows`` windows of a stream again, as far as they are remembered; the host waits for nothing.

        The first ``settled`` samples have final states, which ``revise`` changes.
        """
        first, number_W, tokens_WPD = self._timeline.cached(tick.job.slot, windows)
        tokens_BND, valid_BN = self._banks[level].read(np.array([tick.job.slot]))
        of_W = np.zeros(len(number_W), np.int64)
        said_WTK = self._network.states(tokens_WPD, tokens_BND, valid_BN, of_W)
        return Revision(level, tick, settled, causes, first, number_W, windows, said_WTK)

    def revise(self, out: Rows, one: Revision, probability_WTK: npt.NDArray[np.float32]) -> int:
        """Revise final states by what windows say; the votes of all other samples are replaced. Return how many changed."""
        timeline, window, stride = self._timeline, self._geometry.window, self._geometry.stride
        level, tick, settled, first, causes = one.level, one.tick, one.settled, one.first, one.causes
        slot, start, end = tick.job.slot, first * stride, (one.windows - 1) * stride + window
        sum_NK, count_N = sum_votes(one.number_W * stride, probability_WTK, start, end - start)
        # Samples before have windows that are forgotten.
        revised = 0 if first == 0 else start + window - stride
        changed = 0
        if settled > revised:
            part = slice(revised - start, settled - start)
            changed = self._states(out, level, tick, revised, decide(sum_NK[part], count_N[part]), causes)
            if changed:
                self._segments(out, level, tick, revised, settled, causes)
        open_N = np.arange(max(settled, start), end)
        at_N = open_N % window
        timeline.votes_SGTK[slot, level] = 0
        timeline.count_SGT[slot, level] = 0
        timeline.votes_SGTK[slot, level, at_N] = sum_NK[open_N - start]
        timeline.count_SGT[slot, level, at_N] = count_N[open_N - start]
        return changed

    def _states(self, out: Rows, level: int, tick: Tick, first: int, decided: Decided, causes: Sequence[str]) -> int:
        """Replace the final states that differ, and tell."""
        timeline, slot, size = self._timeline, tick.job.slot, len(decided.state)
        before = {name: timeline.states_of(level, slot, name, first, first + size) for name in ("state", "confidence", "votes")}
        revision_N = timeline.states_of(level, slot, "revision", first, first + size).astype(np.int32)
        differs_N = before["state"] != decided.state
        if not differs_N.any():
            return 0
        revision_N = revision_N + differs_N.astype(np.int32)
        confidence_N = np.where(differs_N, decided.confidence, before["confidence"]).astype(np.float32)
        total = 0.0 if first == 0 else float(timeline.states_of(level, slot, "sum", first - 1, first)[0])
        values: dict[str, npt.NDArray[np.generic]] = {
            "state": decided.state,
            "confidence": confidence_N,
            "votes": np.where(differs_N, decided.votes, before["votes"]).astype(np.int16),
            "revision": revision_N,
            "sum": total + confidence_N.astype(np.float64).cumsum(),
        }
        timeline.set_states(level, slot, first, values)
        at_N = np.flatnonzero(differs_N)
        whole = np.ones(len(at_N), np.int64)
        out.states(
            state_block(
                timeline,
                whole * tick.key,
                whole * out.stream(tick.job.stream_id),
                whole * slot,
                first + at_N,
                Decided(decided.state[at_N], decided.confidence[at_N], decided.votes[at_N]),
                self._granularities[level],
                final=True,
                revision_R=revision_N[at_N],
                cause=causes,
            )
        )
        return len(at_N)

    def _segments(self, out: Rows, level: int, tick: Tick, first: int, settled: int, causes: Sequence[str]) -> None:
        """Segment the samples from ``first`` on again; tell what is gone, new or different."""
        timeline, slot = self._timeline, tick.job.slot
        machine_14, low = self._machine_before(level, slot, first)
        low = max(low, timeline.oldest(tick.received))
        parts = {
            name: timeline.states_of(level, slot, f"segment_{name}", low, settled)
            for name in ("start", "state", "revision", "base", "sequence", "time_us")
        }
        old, place = _runs(parts["start"], parts["state"])
        revision_of = {one.start: int(parts["revision"][at]) for one, at in zip(old, place, strict=True)}
        head = {one.start: at for one, at in zip(old, place, strict=True)}
        state_1N = timeline.states_of(level, slot, "state", first, settled).astype(np.int64)[None]
        after_14, begun = advance(machine_14, np.array([first]), state_1N, self._geometry.min_segment)
        starts, states = begun.start_E.tolist(), begun.state_E.tolist()
        if machine_14[0, 0] != NONE:
            starts, states = [int(machine_14[0, 0]), *starts], [int(machine_14[0, 1]), *states]
        new = [Segment(*one) for one in zip(starts, [*starts[1:], NONE][: len(starts)], states, strict=True)]
        gone, changed = changes(old, new)
        timeline.machine_SG4[slot, level] = after_14[0]
        said: dict[int, tuple[int, int | None]] = {}
        for segment, before in changed:
            known = revision_of.get(before, -1)
            said[segment.start] = known + 1, (before if before != NONE else None)
        for segment in gone:
            at = head[segment.start]
            self._withdraw(out, level, tick, segment, {name: values[at] for name, values in parts.items()}, causes)
        self._note(level, slot, low, settled, new, said, parts, head, tick)
        for segment, _ in changed:
            revision, before_id = said[segment.start]
            self._settler.tell_segment(
                out,
                level,
                tick,
                segment,
                settled,
                revision=revision,
                supersedes=None if before_id is None else tick.job.stream.origin + before_id,
                cause=causes,
            )

    def _machine_before(self, level: int, slot: int, first: int) -> tuple[Ints, int]:
        """Return where the segmentation stood before sample ``first``, and a sample from which on segments may change."""
        if first == 0:
            return np.full((1, 4), NONE), 0
        timeline, least = self._timeline, max(self._geometry.min_segment, 1)
        low = max(0, first - least)
        state_N = timeline.states_of(level, slot, "state", low, first)
        run = int((state_N[::-1] != state_N[-1]).argmax()) if (state_N != state_N[-1]).any() else len(state_N)
        run_start, run_state = first - run, int(state_N[-1])
        if run < least and run_start == 0:
            return np.array([[NONE, NONE, run_start, run_state]]), 0
        # A run that is long enough has its segment; a shorter one belongs, so far, to the segment before it.
        at = first - 1 if run >= least else run_start - 1
        start = int(timeline.states_of(level, slot, "segment_start", at, at + 1)[0])
        state = int(timeline.states_of(level, slot, "segment_state", at, at + 1)[0])
        return np.array([[start, state if start != NONE else NONE, run_start, run_state]]), at

    def _withdraw(
        self,
        out: Rows,
        level: int,
        tick: Tick,
        segment: Segment,
        head: dict[str, np.generic],
        causes: Sequence[str],
    ) -> None:
        job = tick.job
        out.segment(
            tick.key,
            stream_id=job.stream_id,
            sequence=int(head["sequence"]),
            event_time=int(head["time_us"]),
            granularity=self._granularities[level],
            segment_id=job.stream.origin + segment.start,
            n_samples=0,
            final=True,
            revision=int(head["revision"]) + 1,
            caused_by=causes,
        )

    def _note(
        self,
        level: int,
        slot: int,
        low: int,
        settled: int,
        new: Sequence[Segment],
        said: dict[int, tuple[int, int | None]],
        parts: dict[str, npt.NDArray[np.generic]],
        head: dict[int, int],
        tick: Tick,
    ) -> None:
        """Write the new segments into the states of their samples."""
        timeline = self._timeline
        values = {f"segment_{name}": array.copy() for name, array in parts.items()}
        for segment in new:
            begin, end = max(segment.start, low), settled if segment.end == NONE else segment.end
            here = slice(begin - low, end - low)
            if segment.start in head:  # known: its start may lie before what is remembered
                at = head[segment.start]
                sequence, time_us = parts["sequence"][at], parts["time_us"][at]
                revision = parts["revision"][at]
            else:
                (sequence,), (time_us,) = timeline.begin(np.array([slot]), np.array([segment.start]))
                revision = np.int32(0)
            if segment.start == 0:
                base: np.generic = np.float64(0)
            elif segment.start > low:
                base = timeline.states_of(level, slot, "sum", segment.start - 1, segment.start)[0]
            else:
                base = parts["base"][head[segment.start]]
            revision = np.int32(said[segment.start][0]) if segment.start in said else revision
            for name, value in (
                ("start", segment.start),
                ("state", segment.state),
                ("revision", revision),
                ("base", base),
                ("sequence", sequence),
                ("time_us", time_us),
            ):
                values[f"segment_{name}"][here] = value
        timeline.set_states(level, slot, low, values)


def _runs(start_N: npt.NDArray[np.generic], state_N: npt.NDArray[np.generic]) -> tuple[list[Segment], list[int]]:
    """Return the segments that samples are in, in order, the last one going on, and where each is first found."""
    at = np.concatenate([[0], np.flatnonzero(start_N[1:] != start_N[:-1]) + 1])
    at = at[start_N[at] != NONE]
    starts = start_N[at].tolist()
    ends = [*starts[1:], NONE][: len(starts)]
    return [Segment(s, e, int(state_N[p])) for s, e, p in zip(starts, ends, at.tolist(), strict=True)], at.tolist()
