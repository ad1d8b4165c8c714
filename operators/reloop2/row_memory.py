"""The latest rows themselves (ReLoop2 §3.2.2): a ring, searched by cosine, exactly or by buckets; or lists on disk.

Knows keys, labels and base predictions. Which rows are worth writing is decided here: the published filter and down-sampling.
"""

# B rows of a call, D hidden width, W width of a key, k neighbours

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from operators.banks import LshTable, RowRing, SignHash, random_numbers
from operators.reloop2.compensation import Recollection, softmax_weights
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.disk_rows import DiskRows
from operators.reloop2.ids import Bools, Ints
from operators.state import State

__all__ = ["RowMemory"]


class RowMemory:
    """The latest rows, searched by cosine: exactly, in mode ``lsh_table`` among the rows that share a bucket, in mode
    ``posting_lists`` among those of the nearest lists.

    A key is the hidden vector, in mode ``lsh_table`` followed by its buckets (whole numbers below 2^24: exact in float32), so
    that a row is hashed once only.
    """

    key_dtype = torch.float32

    def __init__(self, options: ReLoop2Options, model: CtrModel, device: torch.device) -> None:
        self._options = options
        self._device = device
        self._dim = model.hidden_dim
        self._hash = self._table = None
        self._ring: RowRing | DiskRows
        if options.mode == "posting_lists":
            self._ring = DiskRows(options, self._dim, device, name="memory.ring")
        else:
            self._ring = ring = RowRing(options.capacity, self._dim, name="memory.ring", device=device)
        if options.mode == "lsh_table":
            self._hash = SignHash(self._dim, options.arrays, options.bits, options.seed, device)
            sizes = (options.arrays, options.bits, options.slots_per_bucket)
            self._table = LshTable(ring, *sizes, self._hash, name="memory.table", seed=options.seed)
        self.key_width = self._dim + (options.arrays if self._table is not None else 0)
        self._offered = 0  # rows that came to be written, whether or not they were kept
        self.adopt(model)

    def adopt(self, model: CtrModel) -> None:
        """Centre by this model's training mean."""
        self._mean_D = model.hidden_mean.detach().clone().to(self._device) if self._options.center == "train_mean" else 0.0

    def keys(self, hidden_BD: Tensor) -> Tensor:
        """Return hidden vectors, with their buckets where there is a table."""
        if self._hash is None:
            return hidden_BD.float()
        return torch.cat([hidden_BD.float(), self._hash.hash(hidden_BD - self._mean_D).float()], dim=1)

    def read(self, keys_BW: Tensor, lanes_B: Ints) -> Recollection:
        """Return the nearest rows, weighted by softmax(cosine / tau)."""
        hidden_BD, k = keys_BW[:, : self._dim], self._options.top_k
        if self._table is None:
            found = self._ring.search(hidden_BD, k)
        else:
            found = self._table.search(hidden_BD, k, buckets_BK=keys_BW[:, self._dim :].long())
        weight_Bk = softmax_weights(found.similarity_Bk, found.valid_Bk, self._options.tau)
        values_BkV = found.values_BkV.double()
        rows_B = weight_Bk.sum(1) / weight_Bk.square().sum(1).clamp_min(1e-300)  # effective sample size (Kish)
        return Recollection(weight_Bk, values_BkV[..., 0], values_BkV[..., 1], found.valid_Bk, rows_B)

    def write(self, keys_BW: Tensor, label_B: Tensor, base_B: Tensor, lanes_B: Ints) -> Ints:
        """Take the rows that ``sigma`` and ``keep_rate`` leave; a row over the capacity takes the place of the oldest."""
        number_B = torch.arange(self._offered, self._offered + len(label_B), device=self._device)
        self._offered += len(label_B)
        keep_B = torch.ones_like(number_B, dtype=torch.bool)
        if self._options.sigma > 0:
            keep_B &= (label_B - base_B).abs() > self._options.sigma
        if self._options.keep_rate < 1:
            drawn_B = random_numbers(torch.full_like(number_B, self._options.seed), number_B, 0, 1)[:, 0]
            keep_B &= drawn_B.double() < self._options.keep_rate * 2.0**63
        keys_BW, values_BV = keys_BW[keep_B], torch.stack([label_B, base_B], dim=1)[keep_B]
        hidden_BD = keys_BW[:, : self._dim]
        if self._table is None:
            self._ring.write(hidden_BD, values_BV)
        else:
            self._table.write(hidden_BD, values_BV, buckets_BK=keys_BW[:, self._dim :].long())
        return np.zeros(len(keep_B), np.int64)

    def holds(self, written_B: Ints, lanes_B: Ints) -> Bools:
        """Return that no row can be corrected: the options allow none."""
        return np.zeros(len(written_B), np.bool_)

    def correct(self, keys_BW: Tensor, label_B: Tensor, lanes_B: Ints) -> None:
        """Refuse: see ``holds``."""
        raise NotImplementedError("rows of a ring are not corrected")

    def written(self) -> npt.NDArray[np.float64]:
        """Return how many rows the ring holds."""
        return np.array([float(len(self._ring))])

    def folded(self) -> Bools:
        """Return that nothing was: there are no sums."""
        return np.zeros(1, np.bool_)

    def clear(self, lanes_L: Ints) -> None:
        """Forget all rows."""
        (self._ring if self._table is None else self._table).clear()

    def close(self, lane: int) -> None:
        """Make it as new, but for sequence numbers, which only rise."""
        self.clear(np.array([lane]))
        self._offered = 0

    def bytes(self) -> dict[str, int]:
        """Return the bytes of ring and table."""
        used = self._ring.bytes()
        return used if self._table is None else {"device": used["device"] + self._table.bytes()["device"]}

    def export(self, lanes_N: Ints, state: State, *, incremental: bool) -> None:
        """Add ring and table to what is shared."""
        state.shared["memory.offered"] = torch.tensor([self._offered])
        self._ring.export(state, incremental=incremental)
        if self._table is not None:
            self._table.export(state, incremental=incremental)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._ring.mark_clean()
        if self._table is not None:
            self._table.mark_clean()

    def load(self, lanes_N: Ints, state: State) -> None:
        """Take ring and table from a full ``state``."""
        self._offered = int(state.shared["memory.offered"][0])
        self._ring.load(state)
        if self._table is not None:
            self._table.load(state)
