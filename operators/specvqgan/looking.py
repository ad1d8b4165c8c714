"""From frames to the features that windows see: which rows of the clock are looked at, and the ring that keeps them.

Only rows that some window picks go through the frame network. Where a window needs another one (a stream that ends, a live
window that cannot wait), it takes the nearest row that was looked at.
"""

# S slots, B streams, R rows, E feature width, F features of a window, H W height and width of pixels

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.compiled import per_frame
from models.specvqgan.vision import FrameNetwork, picked_rows
from models.uploads import upload, upload_values
from operators.banks import RowSpec, SlotBank, TailBank, ring
from operators.frames import Frame, as_tensors, stack_frames
from operators.specvqgan.config import ROWS_PER_COLUMN, Geometry
from operators.specvqgan.streams import FrameStream
from operators.state import State

__all__ = ["LARGEST", "FeatureRing", "Look"]

LARGEST = 1e6
"""Of a feature of the frame network: what is larger is as wrong as infinity, and is cut."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Rows of a stream that became final, all with the same frame. ``pixels`` None: no window picks any of them."""

    stream: FrameStream
    rows: range
    pixels: Tensor | None


class FeatureRing:
    """The newest frame of each stream, and features of the last windows."""

    def __init__(
        self,
        network: FrameNetwork | None,
        width: int,
        geometry: Geometry,
        slots: int,
        batch_frames: int,
        device: torch.device,
        *,
        compiled: bool = False,
    ) -> None:
        self._network, self.width, self._geometry, self._batch = network, width, geometry, batch_frames
        self._device = device
        self._picked = frozenset(picked_rows(geometry.rows, geometry.features))
        self._newest = TailBank("newest", self.newest_spec(network, width), slots=slots, capacity=1)
        self._kept: dict[int, Tensor] = {}
        """Slot → its newest frame, in the place of what the bank holds, where frames stay on a device."""
        self._rows = SlotBank("features", self.row_specs(width), slots=slots, capacity=geometry.ring, device=device)
        self._there_SC = np.zeros((slots, geometry.ring), np.bool_)
        """Which rows were looked at: what the bank holds of it, for the host."""
        self._run = None if network is None else per_frame(network, device, compiled=compiled)

    @staticmethod
    def newest_spec(network: FrameNetwork | None, width: int) -> RowSpec:
        """Return what is kept of the newest frame: its pixels, or its feature."""
        if network is None:
            return RowSpec((width,))
        return RowSpec(tuple(network.pixels(torch.zeros(8, 8, 3, dtype=torch.uint8)).shape))

    @staticmethod
    def row_specs(width: int) -> dict[str, RowSpec]:
        """Return what is kept of a row."""
        return {"feature": RowSpec((width,)), "there": RowSpec((), torch.bool)}

    def open(self, slot: int, seed: int) -> None:
        """Make a slot ready for a new stream."""
        self._release([slot])
        self._rows.open(self._slots([slot]), torch.tensor([seed]))

    def release(self, slot: int) -> None:
        """Forget a slot's frame and features."""
        self._release([slot])
        self._rows.release(self._slots([slot]))

    def restart(self, slot: int) -> None:
        """Forget them; the stream goes on."""
        self._release([slot])
        self._rows.clear(self._slots([slot]))

    def _release(self, slots: Sequence[int]) -> None:
        self._newest.release(slots)
        for slot in slots:
            self._kept.pop(slot, None)

    def export(self, slots: Sequence[int], state: State, *, incremental: bool) -> None:
        """Add these streams to ``state``."""
        for slot in slots:
            if slot in self._kept:
                self._newest.write(slot, self._kept[slot][None].cpu())
        self._newest.export(slots, state, incremental=incremental)
        self._rows.export(self._slots(slots), state, incremental=incremental)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._rows.mark_clean()

    def load(self, slots: Sequence[int], state: State) -> None:
        """Take these streams from a full ``state``; forget all others."""
        self._kept.clear()
        self._newest.load(slots, state)
        self._rows.release(self._slots(range(self._rows.slots)))
        if slots:
            self._rows.load(self._slots(slots), state)
        self._there_SC = self._rows.rows["there"].cpu().numpy().copy()

    def bytes(self) -> int:
        """Return the bytes of both banks."""
        return self._newest.bytes()["device"] + self._rows.bytes()["device"]

    def hold(self, slot: int, pixels: Tensor) -> None:
        """Keep the newest frame, where it is."""
        if pixels.device.type == "cpu":
            self._kept.pop(slot, None)
            self._newest.write(slot, pixels[None])
        else:
            self._kept[slot] = pixels

    def prepare(self, frame: Frame) -> Tensor:
        """Return what is kept of a frame."""
        assert self._network is not None
        return self._network.pixels(stack_frames([frame])[0])

    def look(self, stream: FrameStream, rows: range) -> Look:
        """Return what is to be done for rows that are final now; the newest frame is that of all of them."""
        if self._geometry.exact:  # no later row is ever seen
            rows = range(rows.start, min(rows.stop, self._geometry.rows + 3))
        wanted = any(self._wanted(row) for row in rows)
        if not wanted:
            return Look(stream, rows, None)
        kept = self._kept.get(stream.slot)
        return Look(stream, rows, self._newest.read(stream.slot)[0].clone() if kept is None else kept)

    def _wanted(self, row: int) -> bool:
        if self._geometry.exact or row == 0:
            return True
        step = self._geometry.window if self._geometry.clip else self._geometry.hop
        step *= ROWS_PER_COLUMN
        newest = row // step
        oldest = max(0, -(-(row - self._geometry.rows + 1) // step))
        return any(row - window * step in self._picked for window in range(oldest, newest + 1))

    def write(self, looks: Sequence[Look]) -> list[tuple[FrameStream, Tensor]]:
        """Look at frames, those of all streams together, and keep their features.

        Return for each that went through the network its stream, and whether its feature was good as it was: a bool that
        stays on the device. What was not good is repaired there.
        """
        seen = [look for look in looks if look.pixels is not None]
        features = self._encode([look.pixels for look in seen if look.pixels is not None])
        good = [self._is_good(feature_E) for feature_E in features]
        found = {id(look): self._repaired(feature_E) for look, feature_E in zip(seen, features, strict=True)}
        by_slot: dict[int, list[Look]] = {}
        for look in looks:
            by_slot.setdefault(look.stream.slot, []).append(look)
        longest = max((sum(len(look.rows) for look in mine) for mine in by_slot.values()), default=0)
        if not longest:
            return []
        feature_BRE = torch.zeros(len(by_slot), longest, self.width, device=self._device)
        there_BR = torch.zeros(len(by_slot), longest, dtype=torch.bool, device=self._device)
        counts = []
        for i, mine in enumerate(by_slot.values()):
            at, first = 0, mine[0].stream.encoded
            for look in mine:
                rows = np.arange(first + at, first + at + len(look.rows))
                self._there_SC[look.stream.slot, rows % self._geometry.ring] = id(look) in found
                if id(look) in found:
                    feature_BRE[i, at : at + len(look.rows)] = found[id(look)]
                    there_BR[i, at : at + len(look.rows)] = True
                at += len(look.rows)
            counts.append(at)
            mine[0].stream.encoded += at
        slots = self._slots(list(by_slot))
        counts_B = upload_values(counts, self._device)
        self._rows.write(slots, {"feature": feature_BRE, "there": there_BR}, counts_B, ring)
        return list(zip([look.stream for look in seen], good, strict=True))

    @property
    def largest(self) -> float:
        """What no feature in the ring exceeds; those that somebody else has made may be any number."""
        return math.inf if self._network is None else LARGEST

    def _is_good(self, feature_E: Tensor) -> Tensor:
        return feature_E.isfinite().all() if self._network is None else (feature_E.abs() <= LARGEST).all()

    def _repaired(self, feature_E: Tensor) -> Tensor:
        feature_E = feature_E.nan_to_num(0.0, 0.0, 0.0)
        return feature_E if self._network is None else feature_E.clamp(-LARGEST, LARGEST)

    @torch.inference_mode()
    def _encode(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        if self._run is None:
            return list(pixels)
        out: list[Tensor] = []
        for start in range(0, len(pixels), self._batch):
            part = upload(torch.stack(as_tensors(pixels[start : start + self._batch])), self._device)
            out += self._run(part).float().unbind()
        return out

    def window(self, stream: FrameStream, start: int, *, rows: int, ended: bool) -> Tensor:
        """Return the features [E, F] of the window that begins at column ``start``, of a stream known up to ``rows``.

        What lies behind them is the last one, or, of a stream that has ended and is shorter than a window, its begin again.
        """
        geometry = self._geometry
        picked = picked_rows(geometry.rows, geometry.features)
        if geometry.exact:
            length = min(rows, geometry.rows + 3)
            wanted = [(row + 1) % length for row in picked]
        else:
            column = start // geometry.window * geometry.window if geometry.clip else start
            wanted = [ROWS_PER_COLUMN * column + row for row in picked]
            if ended and rows < geometry.rows:
                wanted = [row % rows for row in wanted]
        numbers = np.arange(max(0, rows - geometry.ring, stream.encoded - geometry.ring), min(rows, stream.encoded))
        known = numbers[self._there_SC[stream.slot, numbers % geometry.ring]]
        nearest = np.abs(known[None] - np.minimum(np.array(wanted), rows - 1)[:, None]).argmin(1)
        at_1F = upload_values(known[nearest] % geometry.ring, self._device)[None]
        readout = self._rows.gather(self._slots([stream.slot]), at_1F, torch.ones_like(at_1F, dtype=torch.bool))
        return readout.rows["feature"][0].T

    def _slots(self, slots: Sequence[int]) -> Tensor:
        return upload_values(list(slots), self._device, torch.int64)
