"""The sketch of all past impressions (ReLoop2 §3.2.3): hashed buckets with sums of labels and base predictions.

A key is the row's bucket in every array; hidden vectors are not kept. One SketchBank holds the sketches of all slots. Rows are
told apart by the number of times their slot has been emptied, so that only what still counts in full is corrected.
"""

# B rows of a call, D hidden width, K arrays, L slots of a call, N slots of a snapshot, S slots

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from models.uploads import upload, upload_values
from operators.banks import Forgetting, HalfLife, Never, ResetEvery, SignHash, SketchBank, Slices
from operators.reloop2.budget import COLUMNS, SLICES
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.ids import Bools, Floats, Ints
from operators.reloop2.rules import Recollection, count_weights, softmax_weights
from operators.rounds import rank_within
from operators.state import State

__all__ = ["SketchMemory"]

_NAME = "memory"


class SketchMemory:
    """Sketches of ``slots`` slots."""

    key_dtype = torch.int32
    needs_base = False

    def __init__(self, options: ReLoop2Options, model: CtrModel, slots: int, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._hash = SignHash(model.hidden_dim, options.arrays, options.bits, options.seed, device)
        forgetting = _forgetting(options)
        self._bank = SketchBank(
            options.arrays, options.bits, COLUMNS, name=_NAME, slots=slots, forgetting=forgetting, device=device
        )
        self._period = forgetting.rows if isinstance(forgetting, ResetEvery) else 2**62
        self._rows_S = np.zeros(slots, np.int64)  # written since the last ``clear``
        self._clears_S = np.zeros(slots, np.int64)  # times that a slot has been emptied before those rows
        self.key_width = options.arrays
        self.adopt(model)

    def adopt(self, model: CtrModel) -> None:
        """Center by this model's training mean."""
        self._mean_D = model.hidden_mean.detach().clone().to(self._device) if self._options.center == "train_mean" else None

    def keys(self, hidden_BD: Tensor) -> Tensor:
        """Return the buckets of hidden vectors, int32 [B, K]."""
        centered_BD = hidden_BD if self._mean_D is None else hidden_BD - self._mean_D
        return self._hash.hash(centered_BD.float()).int()

    def read(self, keys_BW: Tensor, slots_B: Ints) -> Recollection:
        """Return the means of every array's bucket, weighted as ``similarity`` says."""
        found = self._bank.read(keys_BW.long(), slots_B=self._slots(slots_B))
        count_BK = found.count_BK.double()
        valid_BK = count_BK > 0
        match self._options.similarity:
            case "density":
                total_B = upload_values(self.written()[slots_B], self._device)
                weight_BK = softmax_weights(count_BK / total_B.clamp_min(1.0)[:, None], valid_BK, self._options.tau)
            case "count":
                weight_BK = count_weights(count_BK)
            case _:
                weight_BK = count_weights(valid_BK)
        divisor_BK1 = torch.where(valid_BK, count_BK, 1.0)[:, :, None]
        means_BKV = found.sums_BKV / divisor_BK1
        rows_B = (weight_BK * count_BK).sum(1)  # the arrays hold the same rows, so their counts do not add up
        return Recollection(weight_BK, means_BKV[..., 0], means_BKV[..., 1], valid_BK, rows_B)

    def write(self, keys_BW: Tensor, label_B: Tensor, base_B: Tensor, slots_B: Ints, known_B: Floats | None = None) -> Ints:
        """Add rows to their buckets; return how often their slot had been emptied by then."""
        number_B = self._rows_S[slots_B] + rank_within(slots_B)
        values_BV = torch.stack([upload(label_B, base_B.device), base_B], dim=1)
        self._bank.write(keys_BW.long(), values_BV, slots_B=self._slots(slots_B))
        np.add.at(self._rows_S, slots_B, 1)
        written: Ints = self._clears_S[slots_B] + number_B // self._period
        return written

    def holds(self, written_B: Ints, slots_B: Ints) -> Bools:
        """Return which rows were written since their slot was last emptied."""
        held: Bools = written_B == self._emptied()[slots_B]
        return held

    def correct(self, keys_BW: Tensor, label_B: Tensor, slots_B: Ints) -> None:
        """Add to the label sums; the counts hold these rows already."""
        delta_BV = torch.stack([label_B, torch.zeros_like(label_B)], dim=1)
        self._bank.correct(keys_BW.long(), delta_BV, slots_B=self._slots(slots_B))

    def written(self) -> npt.NDArray[np.float64]:
        """Return how many rows each sketch holds, or with half-life their weight."""
        return self._bank.written.cpu().double().numpy()

    def folded(self) -> Bools:
        """Return which sketches have been halved, since their counters had come near their limit."""
        halved: Bools = (self._bank.halvings > 0).cpu().numpy()
        return halved

    def clear(self, slots_L: Ints) -> None:
        """Forget everything in these slots."""
        self._clears_S[slots_L] = self._emptied()[slots_L] + 1
        self._rows_S[slots_L] = 0
        self._bank.clear(self._slots(slots_L))

    def release(self, slots_N: Ints) -> None:
        """Make slots as new, for other streams."""
        self._bank.release(self._slots(slots_N))
        self._rows_S[slots_N] = self._clears_S[slots_N] = 0

    def close(self) -> None:
        """Do nothing: the memory goes with the last reference."""

    def bytes(self) -> dict[str, int]:
        """Return the bytes of the sketches."""
        return self._bank.bytes()

    # Snapshots

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        """Add these slots to ``state``; where incremental, cells that changed since ``mark_clean``."""
        state.dense["memory.given"] = torch.from_numpy(self._rows_S[slots_N])
        state.dense["memory.clears"] = torch.from_numpy(self._clears_S[slots_N])
        self._bank.export(self._slots(slots_N), state, incremental=incremental)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._bank.mark_clean()

    def load(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``."""
        self._bank.load(self._slots(slots_N), state)
        self._rows_S[slots_N] = state.dense["memory.given"].numpy()
        self._clears_S[slots_N] = state.dense["memory.clears"].numpy()

    def _emptied(self) -> Ints:
        """Return how often each slot has been emptied, by ``clear`` or on its own."""
        emptied: Ints = self._clears_S + (self._rows_S - 1).clip(0) // self._period
        return emptied

    def _slots(self, slots_B: Ints) -> Tensor:
        """Return slots as the bank takes them: on the CPU, since it keeps counts of them there."""
        return torch.from_numpy(slots_B)


def _forgetting(options: ReLoop2Options) -> Forgetting:
    match options.forgetting:
        case "never":
            return Never()
        case "reset":
            return ResetEvery(options.forget_rows)
        case "slices":
            return Slices(options.forget_rows, SLICES)
        case _:
            return HalfLife(options.forget_rows)
