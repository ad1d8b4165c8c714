"""Complete windows of many streams through the network together, prompts first; and the last window of a stream that ends.

All is queued on the device. No prompt, bank or window depends on what another window says, so that the host asks for it all at
once when a call ends, and settles by it in order.
"""

# B streams of a round, W windows, V windows that can be run, T samples of a window, N samples, P patches, D width, K states

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.uploads import download, upload_values
from operators.counters import Counters
from operators.memprompttss.applying import Applier
from operators.memprompttss.config import Geometry
from operators.memprompttss.jobs import Job, Tick
from operators.memprompttss.memory import PromptBank
from operators.memprompttss.quality import MISSING
from operators.memprompttss.revising import Reviser, Revision
from operators.memprompttss.rows import Rows
from operators.memprompttss.settling import Settler
from operators.memprompttss.timeline import Timeline
from operators.memprompttss.weights import Network

__all__ = ["WindowRunner"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_MOST_BYTES = 1 << 28
"""Of probabilities that wait on the device; more are brought to the host in between."""


class _Waiting(NamedTuple):
    """What windows say, on the device, and what is to be done with it on the host."""

    said: Sequence[Tensor]
    then: Callable[[Sequence[Floats]], None]


class WindowRunner:
    """Runs windows at their ticks and settles what they say."""

    def __init__(
        self,
        network: Network,
        timeline: Timeline,
        banks: Sequence[PromptBank],
        applier: Applier,
        reviser: Reviser,
        settler: Settler,
        geometry: Geometry,
        counters: Counters,
        *,
        pad_short: bool,
    ) -> None:
        """``pad_short``: a stream that ends with less than a window is padded."""
        self._network, self._timeline, self._banks, self._applier = network, timeline, banks, applier
        self._reviser, self._settler, self._geometry, self._counters = reviser, settler, geometry, counters
        self._pad_short = pad_short
        self._waiting: list[_Waiting] = []
        self._slots: set[int] = set()
        """Of the streams whose windows wait."""
        self._bytes = 0

    def make_room(self, jobs: Sequence[Job], sizes: Sequence[int]) -> None:
        """See to it that what waiting windows are about stays known when so many more samples of streams come."""
        here = [(job.slot, size) for job, size in zip(jobs, sizes, strict=True) if job.slot in self._slots]
        self._timeline.retain([slot for slot, _ in here])
        if any(size > self._timeline.room(slot) for slot, size in here):
            self.settle()

    def settle(self) -> None:
        """Bring what waiting windows say to the host, all at once, and settle by it."""
        on_host = iter(download(*(said for one in self._waiting for said in one.said)))
        for one in self._waiting:
            one.then([next(on_host).numpy() for _ in one.said])
        self.forget()

    def forget(self) -> None:
        """Let no window wait."""
        self._waiting.clear()
        self._slots.clear()
        self._bytes = 0
        self._timeline.let_go()

    def _wait(self, jobs: Sequence[Job], said: Sequence[Tensor], then: Callable[[Sequence[Floats]], None]) -> None:
        self._waiting.append(_Waiting(said, then))
        self._slots.update(job.slot for job in jobs)
        self._bytes += sum(each.numel() * each.element_size() for each in said)
        if self._bytes > _MOST_BYTES:
            self.settle()

    def run(self, out: Rows, ticks: Sequence[Tick]) -> None:
        """Run complete windows: prompts first, where the stream has any that wait; it then has one tick only."""
        slots_W, start_W = self._places(ticks)
        tokens_WPD, valid_W = self._encode(ticks, slots_W, start_W)
        waiting = [tick for tick in ticks if self._applier.waits(tick.job.stream_id, tick.job.slot)]
        causes = self._applier.apply(out, waiting) if waiting else {}
        touched = {(waiting[number].job.slot, level) for number, level in causes}
        revisions = [
            self._reviser.run(level, tick := waiting[number], tick.window + 1, tick.window * self._geometry.stride, names)
            for (number, level), names in causes.items()
        ]
        self._counters.add("windows", len(ticks))
        rank_W = np.array([tick.window - tick.job.stream.windows for tick in ticks])
        made = [self._decode(level, tokens_WPD, valid_W, slots_W, touched) for level in range(len(self._banks))]
        for tick in ticks:
            tick.job.stream.windows = tick.window + 1
        said = [*(one.probability_WTK for one in revisions), *(probability_VTK for _, probability_VTK in made)]
        then = partial(self._settle, out, ticks, rank_W, revisions, [row_W for row_W, _ in made])
        self._wait([tick.job for tick in ticks], said, then)

    def _settle(
        self,
        out: Rows,
        ticks: Sequence[Tick],
        rank_W: Ints,
        revisions: Sequence[Revision],
        rows: Sequence[Ints],
        on_host: Sequence[Floats],
    ) -> None:
        said = self._revise(out, revisions, on_host)
        for rank in range(int(rank_W.max()) + 1):
            members = np.flatnonzero(rank_W == rank)
            some = [ticks[w] for w in members.tolist()]
            for level, (row_W, probability_VTK) in enumerate(zip(rows, said, strict=True)):
                row_B = row_W[members]
                voting_B = row_B >= 0
                whole = np.array_equal(row_B, np.arange(len(probability_VTK)))
                votes = probability_VTK if whole else probability_VTK[row_B[voting_B]]
                self._settler.settle(out, level, some, votes if len(votes) else None, voting_B)

    def _revise(self, out: Rows, revisions: Sequence[Revision], on_host: Sequence[Floats]) -> Sequence[Floats]:
        """Revise by what windows say, which comes first; return the rest."""
        for one, probability_WTK in zip(revisions, on_host, strict=False):
            self._counters.add("revisions", self._reviser.revise(out, one, probability_WTK))
        return on_host[len(revisions) :]

    def _run_again(self, out: Rows, tick: Tick) -> list[Revision]:
        """Apply the prompts that wait, between two ticks, and run again what they change."""
        windows = tick.job.stream.windows
        causes, settled = self._applier.apply(out, [tick]), windows * self._geometry.stride
        return [self._reviser.run(level, tick, windows, settled, names) for (_, level), names in causes.items()]

    def apply_late(self, out: Rows, job: Job) -> None:
        """Apply the prompts that wait, between two ticks; what is not final waits to be told again."""
        tick = Tick(job, job.stream.windows, 0, job.stream.received)
        revisions = self._run_again(out, tick)

        def tell(on_host: Sequence[Floats]) -> None:
            self._revise(out, revisions, on_host)
            for one in revisions:
                self._settler.tell_open(out, one.level, tick, one.settled, one.causes)

        self._wait([job], [one.probability_WTK for one in revisions], tell)

    def finish(self, out: Rows, job: Job, key: int) -> None:
        """Settle all samples of a stream that goes on no more, with a window that ends with the last one."""
        window, stride, stream = self._geometry.window, self._geometry.stride, job.stream
        length = stream.received
        padded = 0 < length < window and self._pad_short
        if not padded and length < window:
            return
        tick = Tick(job, stream.windows, key, length)
        revisions = [] if padded else self._run_again(out, tick)
        first = stream.windows * stride if stream.windows else 0
        covered = 0 if not stream.windows else (stream.windows - 1) * stride + window
        said = self._say_last(job.slot, length) if length > covered else []

        def settle(on_host: Sequence[Floats]) -> None:
            last = self._revise(out, revisions, on_host)
            for level in range(len(self._banks)):
                if last:
                    self._vote_last(level, job.slot, first, length, last[level][0])
                if length > first:
                    status = "padded" if padded else None
                    self._settler.finish(out, level, [tick], np.array([first]), length - first, status=status)
                self._settler.close_segments(out, level, tick, length)

        self._wait([job], [*(one.probability_WTK for one in revisions), *said], settle)
        self.settle()

    def _say_last(self, slot: int, length: int) -> list[Tensor]:
        """Run the window that ends with the last sample; return its probabilities for each level, none if it cannot be run."""
        slots_W, window = np.array([slot]), self._geometry.window
        x_WTC, valid_W = self._windows(slots_W, np.array([max(0, length - window)]))
        if length < window:
            at_T = np.maximum(np.arange(length - window, length), 0)
            x_WTC = self._timeline.get("values", slots_W[:, None], at_T[None]).astype(np.float32)
            valid_W = (self._timeline.get("quality", slots_W[:, None], at_T[None]) != MISSING).all(1)
        if not valid_W.all():
            return []
        tokens_WPD = self._network.encode(x_WTC)
        return [self._network.states(tokens_WPD, *bank.read(slots_W), np.zeros(1, np.int64)) for bank in self._banks]

    def _vote_last(self, level: int, slot: int, first: int, length: int, said_TK: Floats) -> None:
        """Add the votes of the window that ends with the last sample, for samples from ``first`` on, which are not final."""
        window = self._geometry.window
        at_T = np.arange(length - window, length)
        open_T = at_T >= first
        place_N = at_T[open_T] % window
        self._timeline.votes_SGTK[slot, level, place_N] += said_TK[open_T]
        self._timeline.count_SGT[slot, level, place_N] += 1

    def _encode(self, ticks: Sequence[Tick], slots_W: Ints, start_W: Ints) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Encode the windows of ticks, which are in order of streams, and remember them."""
        x_WTC, valid_W = self._windows(slots_W, start_W)
        if valid_W.all():
            tokens_WPD = self._network.encode(x_WTC)
        else:
            config = self._network.model.config
            tokens_WPD = torch.zeros(len(ticks), config.patches, config.width, device=self._network.device)
            if valid_W.any():
                rows = upload_values(np.flatnonzero(valid_W), self._network.device)
                tokens_WPD[rows] = self._network.encode(x_WTC[valid_W])
        first = np.concatenate([[True], slots_W[1:] != slots_W[:-1]])
        sizes_B = np.diff(np.concatenate([np.flatnonzero(first), [len(slots_W)]]))
        number_W = np.array([tick.window for tick in ticks])
        self._timeline.keep_windows(slots_W[first], tokens_WPD, valid_W, sizes_B, number_W)
        return tokens_WPD, valid_W

    def _decode(
        self,
        level: int,
        tokens_WPD: Tensor,
        valid_W: npt.NDArray[np.bool_],
        slots_W: Ints,
        touched: set[tuple[int, int]],
    ) -> tuple[Ints, Tensor]:
        """Return the probabilities of windows that can be run and were not run with the past; and the row of each, else -1.

        The probabilities stay on the device.
        """
        there_W = valid_W.copy()
        if touched:
            there_W &= np.array([(slot, level) not in touched for slot in slots_W.tolist()])
        row_W = np.where(there_W, there_W.cumsum() - 1, -1)
        if not there_W.any():
            return row_W, torch.zeros(0, 1, 1)
        slots_B, of_V = np.unique(slots_W[there_W], return_inverse=True)
        tokens_BND, valid_BN = self._banks[level].read(slots_B)
        chosen = tokens_WPD if there_W.all() else tokens_WPD[upload_values(np.flatnonzero(there_W), self._network.device)]
        return row_W, self._network.states(chosen, tokens_BND, valid_BN, of_V)

    def _windows(self, slots_W: Ints, start_W: Ints) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the samples of windows, and which of them can be run."""
        at_WT = start_W[:, None] + np.arange(self._geometry.window)
        valid_W = (self._timeline.get("quality", slots_W[:, None], at_WT) != MISSING).all(1)
        return self._timeline.get("values", slots_W[:, None], at_WT).astype(np.float32, copy=False), valid_W

    def _places(self, ticks: Sequence[Tick]) -> tuple[Ints, Ints]:
        slots_W = np.array([tick.job.slot for tick in ticks])
        return slots_W, np.array([tick.window for tick in ticks]) * self._geometry.stride
