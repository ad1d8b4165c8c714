"""The sketch of all past impressions (ReLoop2 §3.2.3): hashed buckets with exact sums of labels and base predictions.

A key is the row's bucket in every array; hidden vectors are not kept. One SketchBank holds the sketches of all lanes.
"""

# B rows of a call, D hidden width, K arrays, L lanes of a call, N lanes of a snapshot, S lanes

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from operators.banks import HalfLife, Never, ResetEvery, SignHash, SketchBank, Slices
from operators.reloop2.compensation import Recollection, count_weights, softmax_weights
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.ids import Bools, Ints

__all__ = ["SketchMemory"]

_COLUMNS = ("label", "base")
_SLICES = 8


class SketchMemory:
    """Sketches of ``lanes`` lanes."""

    key_dtype = torch.int32

    def __init__(self, options: ReLoop2Options, model: CtrModel, lanes: int, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._hash = SignHash(model.hidden_dim, options.arrays, options.bits, options.seed, device)
        self._bank = SketchBank(
            options.arrays, options.bits, _COLUMNS, slots=lanes, forgetting=_forgetting(options), device=device
        )
        self.key_width = options.arrays
        self._generation_S = np.zeros(lanes, np.int64)
        self.adopt(model)

    def adopt(self, model: CtrModel) -> None:
        """Centre by this model's training mean."""
        self._mean_D = model.hidden_mean.detach().clone().to(self._device) if self._options.center == "train_mean" else None

    def keys(self, hidden_BD: Tensor) -> Tensor:
        """Return the buckets of hidden vectors, int32 [B, K]."""
        centred_BD = hidden_BD if self._mean_D is None else hidden_BD - self._mean_D
        return self._hash.hash(centred_BD.float()).int()

    def read(self, keys_BW: Tensor, lanes_B: Ints) -> Recollection:
        """Return the means of every array's bucket, weighted as ``similarity`` says."""
        found = self._bank.read(keys_BW.long(), slots_B=self._slots(lanes_B))
        count_BK = found.count_BK.double()
        valid_BK = count_BK > 0
        divisor_BK = count_BK.clamp_min(1.0)
        match self._options.similarity:
            case "density":
                total_B = torch.from_numpy(self.written()[lanes_B].astype(np.float64)).to(self._device)
                weight_BK = softmax_weights(count_BK / total_B.clamp_min(1.0)[:, None], valid_BK, self._options.tau)
            case "count":
                weight_BK = count_weights(count_BK)
            case _:
                weight_BK = count_weights(valid_BK)
        means_BKV = found.sums_BKV.double() / divisor_BK[..., None]
        rows_B = (weight_BK * count_BK).sum(1)  # the arrays hold the same rows, so their counts do not add up
        return Recollection(weight_BK, means_BKV[..., 0], means_BKV[..., 1], valid_BK, rows_B)

    def write(self, keys_BW: Tensor, label_B: Tensor, base_B: Tensor, lanes_B: Ints) -> Ints:
        """Add rows to their buckets."""
        self._bank.add(keys_BW.long(), torch.stack([label_B, base_B], dim=1), slots_B=self._slots(lanes_B))
        return self._generation_S[lanes_B]

    def holds(self, written_B: Ints, lanes_B: Ints) -> Bools:
        """Return which rows were written since the sketch was last cleared."""
        held: Bools = written_B == self._generation_S[lanes_B]
        return held

    def correct(self, keys_BW: Tensor, label_B: Tensor, lanes_B: Ints) -> None:
        """Add to the label sums; the counts hold these rows already."""
        delta_BV = torch.stack([label_B, torch.zeros_like(label_B)], dim=1)
        self._bank.adjust(keys_BW.long(), delta_BV, slots_B=self._slots(lanes_B))

    def written(self) -> Ints:
        """Return how many rows each sketch holds."""
        return self._bank.written.cpu().numpy()

    def clear(self, lanes_L: Ints) -> None:
        """Forget everything in these lanes."""
        self._bank.clear(self._slots(lanes_L))
        self._generation_S[lanes_L] += 1

    def close(self, lane: int) -> None:
        """Make a lane as new."""
        self.clear(np.array([lane]))
        self._generation_S[lane] = 0

    def bytes(self) -> int:
        """Return the bytes of the sketches."""
        return self._bank.bytes()

    def _slots(self, lanes_B: Ints) -> Tensor:
        return torch.from_numpy(lanes_B).to(self._device)

    @staticmethod
    def bytes_needed(options: ReLoop2Options) -> int:
        return (options.arrays << options.bits) * 24

    def mark_clean(self) -> None: ...

    def export(self, lanes_N, state, *, incremental) -> None:
        state.dense["memory.generation"] = torch.from_numpy(self._generation_S[lanes_N])
        state.dense["memory.n"] = self._bank.n[self._slots(lanes_N)].clone()
        state.dense["memory.t"] = self._bank.t.view(self._bank.S, -1, 3)[self._slots(lanes_N)].clone()

    def load(self, lanes_N, state) -> None:
        self._generation_S[lanes_N] = state.dense["memory.generation"].numpy()
        self._bank.n[self._slots(lanes_N)] = state.dense["memory.n"]
        self._bank.t.view(self._bank.S, -1, 3)[self._slots(lanes_N)] = state.dense["memory.t"]


def _forgetting(options: ReLoop2Options) -> object:
    match options.forgetting:
        case "never":
            return Never()
        case "reset":
            return ResetEvery(options.forget_rows)
        case "slices":
            return Slices(options.forget_rows, _SLICES)
        case _:
            return HalfLife(options.forget_rows)
