"""What memory bank sampling writes, compares and keeps, over a SlotBank of the last frames (spec sections 4 and 6).

A frame is compared once with the frames in the bank, when it comes: its row holds those cosines, and every selection reads them
from there. Nothing is encoded or compared again.
"""

# B streams of a call, C capacity, N frames held (0 the newest), K frames kept at most, D width of a feature

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.fourd_vla.sampling import coverage, drop_redundant, last_k, uniform, window
from models.uploads import upload_values
from operators.banks import RowSpec, SlotBank, fifo_pinned, ring
from operators.state import State

__all__ = ["HistoryBank", "Selected"]

Sampling = Literal["window", "incremental", "uniform", "last_k", "single"]


class Selected(NamedTuple):
    """Frames to see now, oldest first; the first ``count_B`` of each stream."""

    count_B: Tensor
    position_BK: Tensor
    """In the bank."""
    sequence_BK: Tensor
    time_us_BK: Tensor
    offset_BK: Tensor
    """How many frames ago; 0 is the newest."""
    similarity_BK: Tensor
    """Cosine of each and the next one; the last of a stream means nothing."""
    coverage_B: Tensor
    worst_B: Tensor


class HistoryBank:
    """The last ``window`` frames of each stream, and with ``unbounded`` the frames kept besides."""

    def __init__(
        self,
        *,
        slots: int,
        window: int,
        keep: int,
        sampling: Sampling,
        unbounded: bool,
        rows: Mapping[str, RowSpec],
        device: torch.device,
    ) -> None:
        """``rows``: ``feature`` and whatever else is to be remembered of a frame."""
        capacity = self.capacity(window, keep, unbounded)
        self.window, self.sampling, self.unbounded = window, sampling, unbounded
        self.keep = 1 if sampling == "single" else min(keep, capacity)
        specs = self.specs(rows, window, keep, unbounded)
        self.bank = SlotBank("history", specs, slots=slots, capacity=capacity, device=device)
        # Beyond the window only frames that are kept count: with room for both, the oldest of all others has left the window.
        self._policy = fifo_pinned("order", "kept") if unbounded else ring
        self._given_S = np.zeros(slots, np.int64)
        """Frames that came since a slot was last empty."""

    @staticmethod
    def capacity(window: int, keep: int, unbounded: bool) -> int:
        """Return the frames that a stream may hold."""
        return window + keep if unbounded else window

    @classmethod
    def specs(cls, rows: Mapping[str, RowSpec], window: int, keep: int, unbounded: bool) -> dict[str, RowSpec]:
        """Return the rows of the bank: those given, and what the rules need."""
        return {
            **rows,
            "norm": RowSpec((), torch.float64),
            "cosines": RowSpec((cls.capacity(window, keep, unbounded),), torch.float64),
            "order": RowSpec((), torch.int64),
            "sequence": RowSpec((), torch.int64),
            "time_us": RowSpec((), torch.int64),
            "kept": RowSpec((), torch.bool),
        }

    def open(self, slot: int) -> None:
        """Make a slot ready for a new stream."""
        self.bank.open(self._slots([slot]), torch.zeros(1, dtype=torch.int64))
        self._given_S[slot] = 0

    def release(self, slot: int) -> None:
        """Forget a stream."""
        self.bank.release(self._slots([slot]))
        self._given_S[slot] = 0

    def clear(self, slots: Sequence[int]) -> None:
        """Forget the frames of these streams."""
        self.bank.clear(self._slots(slots))
        self._given_S[list(slots)] = 0

    def load(self, slots: Sequence[int], state: State) -> None:
        """Take these slots from a full state."""
        self.bank.load(self._slots(slots), state)
        self._given_S[list(slots)] = state.dense[f"{self.bank.name}.written"].numpy()

    def admit(self, slots: Sequence[int]) -> list[int]:
        """Note that each of these streams gets one more frame; return how many frames at most will be chosen of each, [B].

        That is what the host knows without a look at the device: frames that turn out to be not finite count here.
        """
        self._given_S[list(slots)] += 1
        most: list[int] = self._given_S[list(slots)].clip(max=self.keep).tolist()
        return most

    def write(self, slots_B: Tensor, rows: Mapping[str, Tensor], sequence_B: Tensor, time_us_B: Tensor, good_B: Tensor) -> None:
        """Remember one frame of each stream, where ``good_B``. ``rows``: name → [B, ...] of what the constructor was given."""
        feature_BD = rows["feature"].double()
        norm_B = torch.linalg.vector_norm(feature_BD, dim=1)
        bank = self.bank
        # Row by row and in float64, so that neither batching nor the order of frames changes a bit.
        dot_BC = (bank.rows["feature"][slots_B].double() * feature_BD[:, None]).sum(2)
        length_BC = bank.rows["norm"][slots_B] * norm_B[:, None]
        made = {
            **rows,
            "norm": norm_B,
            "cosines": torch.where(length_BC > 0, dot_BC / length_BC, 0.0),
            "order": bank.written(slots_B),
            "sequence": sequence_B,
            "time_us": time_us_B,
            "kept": torch.ones_like(sequence_B, dtype=torch.bool),
        }
        bank.write(slots_B, {name: values.unsqueeze(1) for name, values in made.items()}, good_B.long(), self._policy)

    def select(self, slots_B: Tensor, good_B: Tensor) -> Selected:
        """Choose among the frames of streams that hold at least one. Where not ``good_B`` it is void and changes nothing."""
        bank = self.bank
        newest_B = bank.written(slots_B) - 1
        length_B = (newest_B + 1).clamp_max(self.window)
        order_BC, kept_BC = bank.rows["order"][slots_B], bank.rows["kept"][slots_B]
        there_BC = torch.arange(bank.capacity, device=bank.device) < bank.fill(slots_B)[:, None]
        in_window_BC = there_BC & (order_BC > (newest_B - self.window)[:, None])
        held_BC = in_window_BC | (there_BC & kept_BC) if self.unbounded else in_window_BC
        rank_BC = torch.where(held_BC, order_BC, -1)
        position_BN = rank_BC.argsort(dim=1, descending=True)
        held_BN, order_BN = held_BC.gather(1, position_BN), order_BC.gather(1, position_BN)
        likeness_BNN = self._likeness(slots_B, position_BN)

        if self.sampling == "incremental":
            before_BN = held_BN & kept_BC.gather(1, position_BN)
            chosen_BN = drop_redundant(likeness_BNN, before_BN, self.keep)
            now_BC = torch.zeros_like(kept_BC).scatter(1, position_BN, chosen_BN)
            bank.assign(slots_B, "kept", torch.where(good_B[:, None], now_BC, kept_BC))
        elif self.sampling == "window":
            chosen_BN = window(likeness_BNN, length_B, self.keep)
        elif self.sampling == "uniform":
            chosen_BN = uniform(length_B, newest_B, likeness_BNN.shape[1], self.keep)
        else:
            chosen_BN = last_k(length_B, likeness_BNN.shape[1], self.keep)
        covered = coverage(likeness_BNN, chosen_BN, length_B)
        count_B = chosen_BN.sum(1)
        # The frames chosen, oldest first: of the places in the order of age the last ones, turned round.
        N = likeness_BNN.shape[1]
        place_BN = torch.where(chosen_BN, torch.arange(N, device=bank.device), -1).sort(dim=1, descending=True).values
        place_BK = place_BN[:, : self.keep].clamp_min(0)
        chosen_BK = position_BN.gather(1, place_BK)
        next_BK = torch.cat([place_BK[:, 1:], place_BK[:, -1:]], dim=1)
        similarity_BK = likeness_BNN.flatten(1).gather(1, place_BK * N + next_BK)
        return Selected(
            count_B,
            chosen_BK,
            bank.rows["sequence"][slots_B].gather(1, chosen_BK),
            bank.rows["time_us"][slots_B].gather(1, chosen_BK),
            newest_B[:, None] - order_BN.gather(1, place_BK),
            similarity_BK,
            covered.mean_B,
            covered.worst_B,
        )

    def _likeness(self, slots_B: Tensor, position_BN: Tensor) -> Tensor:
        """Return the cosines of all frames held, by age. The newer one of a pair has seen the older one."""
        rows_BNC = self.bank.rows["cosines"][slots_B[:, None], position_BN]
        seen_BNN = rows_BNC.gather(2, position_BN[:, None, :].expand(-1, position_BN.shape[1], -1)).triu(1)
        own_BN = (self.bank.rows["norm"][slots_B].gather(1, position_BN) > 0).double()
        return seen_BNN + seen_BNN.transpose(1, 2) + torch.diag_embed(own_BN)

    def _slots(self, slots: Sequence[int]) -> Tensor:
        return upload_values(list(slots), self.bank.device, torch.int64)
