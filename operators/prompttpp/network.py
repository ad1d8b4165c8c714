"""The network over the banks: states of keys read in blocks of one size, stepped, probed and written back.

Kernels may round differently for different shapes, so the network only ever sees blocks of :data:`BLOCK` keys, padded: a key's
numbers are the same bits whatever else is in its batch.
"""

# S slots, B keys of a block (padded), n of them real, W window, G lags, K types

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.prompttpp.process import Heard, KeyState, PointProcess
from models.uploads import upload, upload_values
from operators.banks.policies import ring
from operators.banks.slot_bank import RowSpec, SlotBank
from operators.prompttpp.keys import KeyNumbers
from operators.prompttpp.learning import Windows
from operators.prompttpp.prompts import PromptBank
from operators.state import State

__all__ = ["BLOCK", "KeyNetwork", "blocks"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BLOCK = 64
"""Keys of every pass."""

_US = 1e6


def blocks(number: int) -> Iterator[slice]:
    """Cut a round of keys into blocks."""
    return (slice(start, start + BLOCK) for start in range(0, number, BLOCK))


def padded(values_n: Ints | Floats) -> Tensor:
    """Return an array as a tensor of BLOCK entries, the first one repeated at the end."""
    missing = BLOCK - len(values_n)
    return torch.from_numpy(np.concatenate([values_n, np.repeat(values_n[:1], missing)]) if missing else values_n)


class KeyNetwork:
    """A network, its prompts, and the banks of its keys."""

    def __init__(
        self, model: PointProcess, prompts: PromptBank | None, *, slots: int, window: int, device: torch.device
    ) -> None:
        self.model, self.prompts, self.window = model, prompts, window
        self.scale_us = model.config.time_scale * _US
        self.keys = KeyNumbers(slots)
        self.events = SlotBank("events", event_rows(model), slots=slots, capacity=window, device=device)
        self.state: SlotBank | None = None
        if cells := state_rows(model):
            self.state = SlotBank("state", cells, slots=slots, capacity=1, device=device)
        self.device = device

    def bytes(self) -> int:
        """Return the bytes of all banks."""
        banks = [self.events, *([self.state] if self.state else [])]
        numbers = self.keys.bytes_per_slot() * self.events.slots
        prompts = self.prompts.bytes() if self.prompts is not None else 0
        return sum(sum(bank.bytes().values()) for bank in banks) + numbers + prompts

    # Slots

    def open(self, slots_n: Ints) -> None:
        """Make slots ready for new keys."""
        self.keys.clear(slots_n)
        slots = upload_values(slots_n, self.device)
        for bank in self._banks():
            bank.open(slots, torch.zeros_like(slots))
            if bank is self.state:
                for rows in bank.rows.values():
                    rows[slots] = 0  # a key without events has the state zero

    def release(self, slots_n: Ints) -> None:
        """Forget keys."""
        self.keys.clear(slots_n)
        for bank in self._banks():
            bank.release(upload_values(slots_n, self.device))

    def _banks(self) -> list[SlotBank]:
        return [self.events] if self.state is None else [self.events, self.state]

    # Blocks of keys

    def load(self, slots_n: Ints) -> KeyState:
        """Read the states of a block of distinct keys."""
        slots_B = upload(padded(slots_n), self.device)
        cells = {} if self.state is None else {name: rows[slots_B, 0] for name, rows in self.state.rows.items()}
        cached = self.model.config.row_shapes()
        rows = {name: self.events.rows[name][slots_B] for name in cached}
        width = self.window if cached else 0
        visible_BW = torch.arange(width, device=self.device) < self.events.fill(slots_B)[:, None]
        time_B, events_B = (upload(padded(part_n), self.device) for part_n in self.times(slots_n))
        return KeyState(cells, rows, visible_BW, time_B, events_B)

    def times(self, slots_n: Ints) -> tuple[Floats, Ints]:
        """Return the model time of each key's last event since its first, and how many there are, as the host knows them."""
        numbers = self.keys
        time_n = (numbers.last_us_S[slots_n] - numbers.first_us_S[slots_n]) / self.scale_us
        return np.where(numbers.events_S[slots_n] > 0, time_n, 0.0), numbers.events_S[slots_n]

    def model_time(self, slots_n: Ints, time_us_n: Ints) -> Floats:
        """Return times of events in model units since their key's first event; an event of a new key is the first."""
        numbers = self.keys
        first_us_n = np.where(numbers.events_S[slots_n] > 0, numbers.first_us_S[slots_n], time_us_n)
        time_n: Floats = (time_us_n - first_us_n) / self.scale_us
        return time_n

    def store(self, slots_n: Ints, key: KeyState, time_us_n: Ints, type_n: Ints, made: dict[str, Tensor]) -> None:
        """Write the states of a block back after one event of each key, and the event into the ring."""
        number = len(slots_n)
        slots, one = upload_values(slots_n, self.device), torch.ones(number, dtype=torch.int64, device=self.device)
        rows = {
            "time_us": upload_values(time_us_n, self.device)[:, None],
            "type": upload_values(type_n, self.device)[:, None],
            **{name: values[:number, None] for name, values in made.items()},
        }
        self.events.write(slots, rows, one, ring)
        self._store_cells(slots, key, one)
        numbers = self.keys
        first = numbers.events_S[slots_n] == 0
        numbers.first_us_S[slots_n[first]] = time_us_n[first]
        numbers.last_us_S[slots_n] = time_us_n
        numbers.events_S[slots_n] += 1

    def _store_cells(self, slots: Tensor, key: KeyState, one: Tensor) -> None:
        if self.state is not None:
            self.state.write(slots, {name: cell[: len(slots), None] for name, cell in key.cells.items()}, one, ring)

    # Windows

    def ring(self, slots_n: Ints) -> tuple[Ints, Ints, Ints]:
        """Return times [n, W] and types [n, W] of the events kept, oldest first, and how many there are [n]."""
        count_n = np.minimum(self.keys.events_S[slots_n], self.window)
        place_nW = (self.keys.events_S[slots_n] - count_n)[:, None] + np.arange(self.window)
        index = (torch.from_numpy(part).to(self.device) for part in (slots_n[:, None], place_nW % self.window))
        slots, places = index
        time_nW, type_nW = (self.events.rows[name][slots, places].cpu().numpy() for name in ("time_us", "type"))
        return time_nW, type_nW.astype(np.int64), count_n

    def insert(self, slot: int, time_us: int, kind: int) -> None:
        """Put an event where it belongs among those kept of a key, and make the key's state anew from them."""
        numbers, slots_n = self.keys, np.array([slot])
        time_nW, type_nW, count_n = self.ring(slots_n)
        count = int(count_n[0])
        place = int(np.searchsorted(time_nW[0, :count], time_us, side="right"))
        times, kinds = np.insert(time_nW[0, :count], place, time_us), np.insert(type_nW[0, :count], place, kind)
        times, kinds = times[-self.window :], kinds[-self.window :]
        first = int(numbers.events_S[slot]) + 1 - len(times)
        slots = torch.from_numpy(slots_n).to(self.device)
        one = torch.ones(1, dtype=torch.int64, device=self.device)
        nothing = {name: rows.new_zeros(1, 1, *rows.shape[2:]) for name, rows in self.events.rows.items()}
        self.events.write(slots, nothing, one, ring)  # one event more: fill and place of the next one
        numbers.events_S[slot] += 1
        numbers.first_us_S[slot] = min(time_us, numbers.first_us_S[slot])
        places = (first + np.arange(len(times))) % self.window
        for name, values in (("time_us", times), ("type", kinds)):
            held = self.events.rows[name][slots].clone()
            held[0, places] = torch.from_numpy(values).to(held)
            self.events.assign(slots, name, held)
        self.refresh(slots_n)

    def refresh(self, slots_n: Ints) -> None:
        """Make the states of distinct keys anew from the events kept: as if the key had begun with them."""
        for part in blocks(len(slots_n)):
            self._refresh(slots_n[part])

    @torch.inference_mode()
    def _refresh(self, slots_n: Ints) -> None:
        time_nW, type_nW, count_n = self.ring(slots_n)
        numbers, number = self.keys, len(slots_n)
        key = self.model.start(BLOCK, self.window)
        key.cells = {name: cell.to(self.device) for name, cell in key.cells.items()}
        model_time_nW = (time_nW - numbers.first_us_S[slots_n][:, None]) / self.scale_us
        key.ordinal_B = padded(numbers.events_S[slots_n] - count_n).to(self.device)
        key.time_B = padded(model_time_nW[:, 0]).to(self.device)
        for place in range(int(count_n.max())):
            active_B = padded((place < count_n).astype(np.int64)).to(self.device) > 0
            time_B = padded(model_time_nW[:, place]).to(self.device)
            type_B = padded(type_nW[:, place]).to(self.device)
            # Places behind the last event hold garbage, which must be a type all the same.
            self.model.step_where(key, active_B, time_B, torch.where(active_B, type_B, 0), self.prompts)
        slots = torch.from_numpy(slots_n).to(self.device)
        for name in self.model.config.row_shapes():
            self.events.assign(slots, name, key.rows[name][:number])
        self._store_cells(slots, key, torch.ones(number, dtype=torch.int64, device=self.device))

    def windows(self, slots_n: Ints, history: int) -> tuple[Windows, int]:
        """Return the windows that these keys' pending events are learned from, and how many of those no window holds."""
        time_nW, type_nW, count_n = self.ring(slots_n)
        numbers = self.keys
        pending_n = numbers.pending_S[slots_n]
        learned_n = np.minimum(pending_n, count_n - 1)
        length_n = np.minimum(count_n, learned_n + history)
        longest, most = int(length_n.max()), int(learned_n.max())
        place_nL = np.minimum((count_n - length_n)[:, None] + np.arange(longest), (count_n - 1)[:, None])
        time_nL = np.take_along_axis(time_nW, place_nL, axis=1) - numbers.first_us_S[slots_n][:, None]
        type_nL = np.take_along_axis(type_nW, place_nL, axis=1)
        real_nL = np.arange(longest) < length_n[:, None]
        after_nC = (length_n - learned_n - 1)[:, None] + np.arange(most)
        real_nC = np.arange(most) < learned_n[:, None]
        tensors = (
            time_nL / self.scale_us,
            np.where(real_nL, type_nL, self.model.config.types),
            numbers.events_S[slots_n] - length_n,
            np.where(real_nC, after_nC, 0),
            real_nC,
        )
        time, kind, before, after, real = (torch.from_numpy(np.ascontiguousarray(part)).to(self.device) for part in tensors)
        found = Windows(time, kind, before, after, real, self._heard(slots_n, length_n))
        return found, int((pending_n - learned_n).sum())

    def _heard(self, slots_n: Ints, length_n: Ints) -> Heard | None:
        """Return what the prompts of keys are looked up by, where their last ``length_n`` events end."""
        if self.state is None or self.prompts is None:
            return None
        slots, length = (torch.from_numpy(part).to(self.device) for part in (slots_n, length_n))
        total = self.state.rows["query"][slots, 0]
        return Heard(total if total.dim() == 3 else total[:, None], self.state.rows["weight"][slots, 0], length)

    # Snapshots

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        """Add copies of these slots to ``state``; of events those that changed where incremental."""
        self.keys.export(slots_N, state)
        for bank in self._banks():
            bank.export(torch.from_numpy(slots_N).to(self.device), state, incremental=incremental)
            bank.mark_clean()

    def load_state(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``, in its order."""
        self.keys.load(slots_N, state)
        for bank in self._banks():
            if len(slots_N):
                bank.load(torch.from_numpy(slots_N).to(self.device), state)
            bank.mark_clean()


def event_rows(model: PointProcess) -> dict[str, RowSpec]:
    """Return what is kept of each event: itself, and what the network caches of it."""
    own = {name: RowSpec(shape) for name, shape in model.config.row_shapes().items()}
    return {"time_us": RowSpec((), torch.int64), "type": RowSpec((), torch.int32), **own}


def state_rows(model: PointProcess) -> dict[str, RowSpec]:
    """Return what is kept of each key."""
    return {name: RowSpec(shape) for name, shape in model.config.cell_shapes().items()}
