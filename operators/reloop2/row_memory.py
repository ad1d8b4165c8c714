"""The latest rows themselves (ReLoop2 §3.2.2): a ring, searched by cosine, exactly or by buckets; or lists on disk.

Knows keys, labels and base predictions. Which rows are worth writing is decided here: the published filter and down-sampling.
"""

# B rows of a call, D hidden width, W width of a key, V value columns, k neighbors

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from models.reloop2.base import CtrModel
from models.uploads import download, upload
from operators.banks import LshTable, Neighbors, PostingLists, PostingRules, RowRing, SignHash, random_numbers
from operators.reloop2.budget import SLICES, TAIL_ROWS, slice_rows
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.ids import Bools, Floats, Ints
from operators.reloop2.rules import Recollection, softmax_weights
from operators.state import State

__all__ = ["DiskRows", "RowMemory"]


class RowMemory:
    """The latest rows, searched by cosine: exactly, in mode ``lsh_table`` among the rows that share a bucket, in mode
    ``posting_lists`` among those of the nearest lists.

    A key is the hidden vector, in mode ``lsh_table`` followed by its buckets (whole numbers below 2^24: exact in float32), so
    that a row is hashed once only.
    """

    key_dtype = torch.float32

    def __init__(self, options: ReLoop2Options, model: CtrModel, device: torch.device) -> None:
        self._options = options
        self.needs_base = options.sigma > 0
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
        """Center by this model's training mean."""
        self._mean_D = model.hidden_mean.detach().clone().to(self._device) if self._options.center == "train_mean" else 0.0

    def keys(self, hidden_BD: Tensor) -> Tensor:
        """Return hidden vectors, with their buckets where there is a table."""
        if self._hash is None:
            return hidden_BD.float()
        return torch.cat([hidden_BD.float(), self._hash.hash(hidden_BD - self._mean_D).float()], dim=1)

    def read(self, keys_BW: Tensor, slots_B: Ints) -> Recollection:
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

    def write(self, keys_BW: Tensor, label_B: Tensor, base_B: Tensor, slots_B: Ints, known_B: Floats | None = None) -> Ints:
        """Take the rows that ``sigma`` and ``keep_rate`` leave; a row over the capacity takes the place of the oldest."""
        number_B = torch.arange(self._offered, self._offered + len(label_B))
        self._offered += len(label_B)
        keep_B = torch.ones_like(number_B, dtype=torch.bool)
        if self._options.sigma > 0:
            if known_B is None or np.isnan(known_B).any():  # of this very call: the label was there before the impression
                known_B = download(base_B)[0].numpy()
            keep_B &= (label_B - torch.from_numpy(known_B)).abs() > self._options.sigma
        if self._options.keep_rate < 1:
            drawn_B = random_numbers(torch.full_like(number_B, self._options.seed), number_B, 0, 1)[:, 0]
            keep_B &= drawn_B.double() < self._options.keep_rate * 2.0**63
        values_BV = torch.stack([upload(label_B, self._device), base_B], dim=1)
        if not keep_B.all():
            kept_R = upload(keep_B.nonzero()[:, 0], self._device)
            keys_BW, values_BV = keys_BW[kept_R], values_BV[kept_R]
        hidden_BD = keys_BW[:, : self._dim]
        if self._table is None:
            self._ring.write(hidden_BD, values_BV)
        else:
            self._table.write(hidden_BD, values_BV, buckets_BK=keys_BW[:, self._dim :].long())
        return np.zeros(len(keep_B), np.int64)

    def holds(self, written_B: Ints, slots_B: Ints) -> Bools:
        """Return that no row can be corrected: the options allow none."""
        return np.zeros(len(written_B), np.bool_)

    def correct(self, keys_BW: Tensor, label_B: Tensor, slots_B: Ints) -> None:
        """Refuse: see ``holds``."""
        raise NotImplementedError("rows of a ring are not corrected")

    def written(self) -> npt.NDArray[np.float64]:
        """Return how many rows the ring holds."""
        return np.array([float(len(self._ring))])

    def folded(self) -> Bools:
        """Return that nothing was: there are no sums."""
        return np.zeros(1, np.bool_)

    def clear(self, slots_L: Ints) -> None:
        """Forget all rows."""
        (self._ring if self._table is None else self._table).clear()

    def release(self, slots_N: Ints) -> None:
        """Make it as new, but for sequence numbers, which only rise."""
        self.clear(slots_N)
        self._offered = 0

    def close(self) -> None:
        """Unmap the files of lists."""
        if isinstance(self._ring, DiskRows):
            self._ring.close()

    def bytes(self) -> dict[str, int]:
        """Return the bytes of ring and table."""
        used = self._ring.bytes()
        return used if self._table is None else {"device": used["device"] + self._table.bytes()["device"]}

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
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

    def load(self, slots_N: Ints, state: State) -> None:
        """Take ring and table from a full ``state``."""
        self._offered = int(state.shared["memory.offered"][0])
        self._ring.load(state)
        if self._table is not None:
            self._table.load(state)


class DiskRows:
    """Rows in posting lists, in a folder of their own below ``lists_path`` that is named in snapshots; in the place of a ring.

    ``capacity`` rows are kept at least, up to an eighth more until the oldest eighth goes.
    """

    def __init__(self, options: ReLoop2Options, dim: int, device: torch.device, *, name: str) -> None:
        self._name = name
        self._path, self._dim, self._device = Path(options.lists_path or ""), dim, device
        self._rules = _rules(options)
        self._lists: PostingLists | None = None  # made with the first row: a restart brings a folder of its own
        self._folder = ""

    def write(self, h_BD: Tensor, values_BV: Tensor) -> Tensor:
        """Append rows. Raise ``ConfigError`` where the folder cannot be written to."""
        if self._lists is None:
            self._folder = uuid4().hex
            self._lists = self._open()
        return self._lists.write(h_BD, values_BV)

    def search(self, q_BD: Tensor, k: int) -> Neighbors:
        """Return the best rows of the lists read for each query."""
        if self._lists is not None:
            return self._lists.search(q_BD, k)
        empty_Bk = torch.zeros((len(q_BD), k), device=self._device)
        return Neighbors(empty_Bk, empty_Bk.long() - 1, empty_Bk[:, :, None].expand(-1, -1, 2), empty_Bk.bool())

    def clear(self) -> None:
        """Forget all rows."""
        if self._lists is not None:
            self._lists.clear()

    def __len__(self) -> int:
        return 0 if self._lists is None else len(self._lists)

    def bytes(self) -> dict[str, int]:
        """Return the bytes in memory and in files."""
        return {"device": 0, "disk": 0} if self._lists is None else self._lists.bytes()

    def close(self) -> None:
        """Unmap the files; they stay on disk."""
        if self._lists is not None:
            self._lists.close()

    def export(self, state: State, *, incremental: bool = False) -> None:
        """Add the folder's name, the names of its files and the rows that are not in files yet: always everything."""
        state.meta[f"{self._name}.folder"] = self._folder
        if self._lists is not None:
            self._lists.export(state)

    def mark_clean(self) -> None:
        """Do nothing: what is exported does not depend on it."""

    def load(self, state: State) -> None:
        """Take up the files that a snapshot names. Raise ``RecoveryError`` where one is missing."""
        self._lists, self._folder = None, state.meta[f"{self._name}.folder"]
        if self._folder:
            if not (self._path / self._folder).is_dir():
                raise RecoveryError(
                    f"lists_path: {self._path / self._folder} is not there, and the snapshot needs its files; put the folder "
                    "back, or start without --resume"
                )
            self._lists = self._open()
            self._lists.load(state)

    def _open(self) -> PostingLists:
        try:
            return PostingLists(self._path / self._folder, self._dim, name=self._name, rules=self._rules, device=self._device)
        except OSError as error:
            raise ConfigError(f"lists_path: cannot make {self._path / self._folder}: {error.strerror}") from error


def _rules(options: ReLoop2Options) -> PostingRules:
    return PostingRules(
        slices=SLICES, slice_rows=slice_rows(options), tail_rows=TAIL_ROWS, lists_per_query=options.lists_per_query
    )
