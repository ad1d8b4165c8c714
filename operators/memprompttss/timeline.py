"""What is remembered of each stream: samples, encoded windows, votes, states and segments, all in rings of fixed size.

Positions count samples from a stream's origin; sample i lies in row i % kept of its slot. Encoded windows lie on the device.
While windows wait to be settled, more samples may come: what is known of those that they overwrite is then retained besides.
"""

# S slots, B slots of a call, R rows over all slots, N samples, T samples of a window, G granularities, K states, C channels

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.uploads import download, upload, upload_values
from operators.banks import RowSpec, SlotBank, ring
from operators.memprompttss.config import Geometry
from operators.memprompttss.segments import MACHINE, NONE
from operators.state import State

__all__ = ["Timeline"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_SAMPLES = {
    "sequence": RowSpec((), torch.int64),
    "time_us": RowSpec((), torch.int64),
    "quality": RowSpec((), torch.uint8),
}
_STATES = {
    "state": RowSpec((), torch.int32),
    "confidence": RowSpec(()),
    "votes": RowSpec((), torch.int16),
    "revision": RowSpec((), torch.int32),
    "sum": RowSpec((), torch.float64),  # of the confidences up to and with the sample
    "segment_start": RowSpec((), torch.int64),
    "segment_state": RowSpec((), torch.int32),
    "segment_revision": RowSpec((), torch.int32),
    "segment_base": RowSpec((), torch.float64),  # the sum before the segment
    "segment_sequence": RowSpec((), torch.int64),  # of its first sample
    "segment_time_us": RowSpec((), torch.int64),
}


class Timeline:
    """Samples of all streams of a shard."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        slots: int,
        channels: int,
        classes: int,
        tokens: tuple[int, int],
        granularities: Sequence[int],
        device: torch.device,
    ) -> None:
        self.geometry = geometry
        levels, window = len(granularities), geometry.window
        self.samples = SlotBank("samples", _samples(channels), slots=slots, capacity=geometry.kept)
        self.windows = SlotBank("windows", _windows(tokens), slots=slots, capacity=geometry.cached, device=device)
        self._valid_SC = np.zeros((slots, geometry.cached), np.bool_)
        """Which windows can be run: what the bank holds of it, for the host."""
        self.states = [SlotBank(f"states{level}", _STATES, slots=slots, capacity=geometry.kept) for level in granularities]
        self.votes_SGTK = np.zeros((slots, levels, window, classes), np.float32)
        """Sum of the probabilities of samples that are not final, sample i in row i % T."""
        self.count_SGT = np.zeros((slots, levels, window), np.int64)
        self.machine_SG4 = np.full((slots, levels, len(MACHINE)), NONE, np.int64)
        self.last_SC = np.full((slots, channels), np.nan, np.float32)
        self.held_SC = np.zeros((slots, channels), np.int64)
        self.first_S2 = np.zeros((slots, 2), np.int64)
        """``sequence`` and time of each slot's first sample, which a segment may begin with long after it has left the ring."""
        self._retained: dict[str, npt.NDArray[np.generic]] = {}
        self._place_S, self._most_S = np.full(slots, -1), np.zeros(slots, np.int64)
        """Where a slot is retained, and how many samples of it may have come before it is let go."""
        self.let_go()

    def bytes(self) -> int:
        """Return the bytes of everything."""
        banks = [self.samples, self.windows, *self.states]
        return sum(bank.bytes()["device"] for bank in banks) + self.votes_SGTK.nbytes + self.count_SGT.nbytes

    # Samples

    def append(self, slots_B: Ints, rows: Mapping[str, npt.NDArray[np.generic]], sizes_B: Ints) -> None:
        """Append samples, those of each slot together and in order."""
        begins_B = self._received(slots_B) == 0
        start_B = (np.cumsum(sizes_B) - sizes_B)[begins_B]
        self.first_S2[slots_B[begins_B]] = np.stack([rows["sequence"][start_B], rows["time_us"][start_B]], axis=1)
        _append(self.samples, slots_B, {name: torch.from_numpy(values) for name, values in rows.items()}, sizes_B)

    def get(self, name: str, slot_R: Ints, position_R: Ints) -> npt.NDArray[np.generic]:
        """Return what is known of samples that are remembered."""
        kept = self.geometry.kept
        found: npt.NDArray[np.generic] = self.samples.rows[name].numpy()[slot_R, position_R % kept]
        if len(self._retained.get(name, ())):
            place_R = self._place_S[slot_R]
            gone_R = (place_R >= 0) & (position_R < self._received(slot_R) - kept)
            if gone_R.any():
                found = np.where(gone_R, self._retained[name][place_R, position_R % kept], found)
        return found

    def retain(self, slots: Sequence[int]) -> None:
        """Have :meth:`get` know the samples of these slots that are remembered now also when more have come, values excepted.

        Until :meth:`let_go`, which must be before more than :meth:`room` have come.
        """
        new = [slot for slot in slots if self._place_S[slot] < 0]
        if new:
            self._place_S[new] = len(self._retained["quality"]) + np.arange(len(new))
            self._retained = {
                name: np.concatenate([rows, self.samples.rows[name].numpy()[new]]) for name, rows in self._retained.items()
            }
            # Samples behind the last window may be replaced yet, so that those are never read here.
            self._most_S[new] = self._received(np.array(new)) + self.geometry.kept - self.geometry.stride

    def room(self, slot: int) -> int:
        """Return how many samples of a slot that is retained may come."""
        return int(self._most_S[slot] - self._received(np.array([slot]))[0])

    def let_go(self) -> None:
        """Forget what was retained."""
        self._retained = {name: self.samples.rows[name].numpy()[:0] for name in _SAMPLES}
        self._place_S[:] = -1

    def _received(self, slot_R: Ints) -> Ints:
        received_R: Ints = self.samples.written(torch.from_numpy(slot_R)).numpy()
        return received_R

    def insert(self, slot: int, position: int, row: Mapping[str, npt.NDArray[np.generic]], received: int) -> None:
        """Put one sample [1, ...] before ``position`` of a slot of which so many samples have come; those behind move."""
        at_N = np.arange(position, received)
        slot_N = np.full(len(at_N), slot)
        moved = {name: np.concatenate([row[name], self.get(name, slot_N, at_N)]) for name in row}
        self.append(np.array([slot]), {name: values[-1:] for name, values in moved.items()}, np.ones(1, np.int64))
        self.replace(slot, position, {name: values[:-1] for name, values in moved.items()})

    def replace(self, slot: int, position: int, rows: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Replace the samples from ``position`` on, [N, ...]."""
        at_N = np.arange(position, position + len(next(iter(rows.values()))))
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}
        self.samples.put(torch.full((len(at_N),), slot), torch.from_numpy(at_N % self.geometry.kept), tensors)
        if position == 0 and len(at_N):
            self.first_S2[slot] = rows["sequence"][0], rows["time_us"][0]

    def begin(self, slot_E: Ints, start_E: Ints) -> tuple[Ints, Ints]:
        """Return ``sequence`` and time of the samples that segments begin with: remembered ones, or the first of all."""
        sequence_E, time_us_E = self.get("sequence", slot_E, start_E), self.get("time_us", slot_E, start_E)
        first_E2, is_first_E = self.first_S2[slot_E], start_E == 0
        return np.where(is_first_E, first_E2[:, 0], sequence_E), np.where(is_first_E, first_E2[:, 1], time_us_E)

    def oldest(self, received: int) -> int:
        """Return the first sample that is remembered of so many."""
        return max(0, received - self.geometry.kept)

    # Windows

    def keep_windows(
        self, slots_B: Ints, tokens_WPD: Tensor, valid_W: npt.NDArray[np.bool_], sizes_B: Ints, number_W: Ints
    ) -> None:
        """Remember encoded windows and their numbers in their streams, those of each slot together and in order."""
        _append(self.windows, slots_B, {"tokens": tokens_WPD, "valid": torch.from_numpy(valid_W)}, sizes_B)
        # Of equal places the last one counts.
        self._valid_SC[np.repeat(slots_B, sizes_B), number_W % self.geometry.cached] = valid_W

    def cached(self, slot: int, windows: int) -> tuple[int, Ints, Tensor]:
        """Return of the windows of a slot that are remembered: the first one's number, those that are valid, their tokens."""
        first = max(0, windows - self.geometry.cached)
        number_W = np.arange(first, windows)
        at_W = number_W % self.geometry.cached
        valid_W = self._valid_SC[slot, at_W]
        return first, number_W[valid_W], self.windows.rows["tokens"][slot][upload_values(at_W[valid_W], self.windows.device)]

    # States

    def append_states(self, level: int, slots_B: Ints, rows: Mapping[str, npt.NDArray[np.generic]], size: int) -> None:
        """Append as many final states to each slot, [B, N]."""
        flat = {name: torch.from_numpy(np.ascontiguousarray(values).reshape(-1)) for name, values in rows.items()}
        _append(self.states[level], slots_B, flat, np.full(len(slots_B), size))

    def state(self, level: int, name: str, slot_R: Ints, at_R: Ints) -> npt.NDArray[np.generic]:
        """Return what is known of the states of some samples of some slots."""
        found: npt.NDArray[np.generic] = self.states[level].rows[name].numpy()[slot_R, at_R % self.geometry.kept]
        return found

    def states_of(self, level: int, slot: int, name: str, start: int, end: int) -> npt.NDArray[np.generic]:
        """Return a copy of what is known of the states of samples ``start`` to ``end`` - 1."""
        at_N = np.arange(start, end)
        return self.state(level, name, np.full(len(at_N), slot), at_N)

    def set_states(self, level: int, slot: int, start: int, values: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Replace what is known of the states of samples ``start``, ``start + 1``, .. that are remembered."""
        at_N = np.arange(start, start + len(next(iter(values.values()))))
        self.put_states(level, np.full(len(at_N), slot), at_N, values)

    def put_states(self, level: int, slot_R: Ints, at_R: Ints, values: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Replace what is known of the states of some samples of some slots, none of them twice."""
        rows = {name: torch.from_numpy(np.ascontiguousarray(values_R)) for name, values_R in values.items()}
        self.states[level].put(torch.from_numpy(slot_R), torch.from_numpy(at_R % self.geometry.kept), rows)

    # Slots

    def open(self, slot: int) -> None:
        """Make a slot ready for a new stream."""
        one = torch.tensor([slot])
        for bank in (self.samples, self.windows, *self.states):
            bank.open(upload(one, bank.device), torch.zeros(1, dtype=torch.int64))
        self._blank(slot)

    def release(self, slot: int) -> None:
        """Forget a stream."""
        self.restart(slot)

    def restart(self, slot: int) -> None:
        """Forget all samples of a slot: the next one is the first."""
        one = torch.tensor([slot])
        for bank in (self.samples, self.windows, *self.states):
            bank.release(upload(one, bank.device))
        self._blank(slot)

    def _blank(self, slot: int) -> None:
        for array, value in (
            (self.votes_SGTK, 0),
            (self.count_SGT, 0),
            (self.machine_SG4, NONE),
            (self.last_SC, np.nan),
            (self.held_SC, 0),
            (self.first_S2, 0),
            (self._valid_SC, False),
        ):
            array[slot] = value

    # Snapshots

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        """Add slots to a state; all is clean then."""
        chosen = torch.from_numpy(slots_N)
        for bank in (self.samples, self.windows, *self.states):
            bank.export(chosen.to(bank.device), state, incremental=incremental)
            bank.mark_clean()
        for name, array in self._arrays().items():
            state.dense[name] = torch.from_numpy(array[slots_N])

    def load(self, slots_N: Ints, state: State) -> None:
        """Take slots from a full state."""
        chosen = torch.from_numpy(slots_N)
        for bank in (self.samples, self.windows, *self.states):
            bank.load(chosen.to(bank.device), state)
            bank.mark_clean()
        for name, array in self._arrays().items():
            array[slots_N] = state.dense[name].numpy()
        (valid_SC,) = download(self.windows.rows["valid"])
        self._valid_SC[slots_N] = valid_SC.numpy()[slots_N]

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {
            "votes": self.votes_SGTK,
            "count": self.count_SGT,
            "machine": self.machine_SG4,
            "last": self.last_SC,
            "held": self.held_SC,
            "first": self.first_S2,
        }


def _samples(channels: int) -> dict[str, RowSpec]:
    return {"values": RowSpec((channels,)), **_SAMPLES}


def _windows(tokens: tuple[int, int]) -> dict[str, RowSpec]:
    return {"tokens": RowSpec(tokens), "valid": RowSpec((), torch.bool)}


def _append(bank: SlotBank, slots_B: Ints, rows: Mapping[str, Tensor], sizes_B: Ints) -> None:
    """Write rows, those of each slot together, into a ring."""
    most = int(sizes_B.max())
    count_B = upload_values(sizes_B, bank.device)
    if (sizes_B == most).all():
        padded = {
            name: upload(values, bank.device).view(len(sizes_B), most, *values.shape[1:]) for name, values in rows.items()
        }
    else:
        start_B = np.cumsum(sizes_B) - sizes_B
        index = np.minimum(start_B[:, None] + np.arange(most), (start_B + sizes_B - 1)[:, None])
        at_BN = upload_values(index, bank.device)
        padded = {name: upload(values, bank.device)[at_BN] for name, values in rows.items()}
    bank.write(upload_values(slots_B, bank.device), padded, count_B, ring)
