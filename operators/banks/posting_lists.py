"""PostingLists: nearest neighbors of more rows than memory holds. Centers in memory, rows in lists on disk (SPANN).

It knows no labels and no models. Rows gather in a tail in memory; a full tail goes to the lists of the current time slice; the
oldest slice is dropped as whole files. Invariants: rows written once never change; a file is complete or does not count; memory
is the centers and the tail; with pruning off a search equals the exact one. What is written depends on the order of the rows,
not on how they were cut into calls.
"""

# B rows or queries, b queries of a block, D dim, V value columns, k neighbors, P lists read per query, M candidates,
# U lists of a block, R records, N pairs of query and list

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks.posting_files import SUFFIX, PostingFile, keys_of, pack, remove_leftovers, sequences_of, values_of
from operators.banks.posting_slice import AssignmentRules, PostingSlice
from operators.banks.row_ring import Neighbors
from operators.banks.row_search import NOTHING, KeyScan, age_of, best, order_keys, similarities, similarity_of, unit_rows
from operators.state import State

__all__ = ["PostingLists", "PostingRules"]

_BLOCK = 64  # queries that share the lists they read
_READ = 1 << 16  # records in memory at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class PostingRules:
    """How rows are laid out and how much of them a search reads. Defaults: SPANN, arXiv 2111.08566, §3 and §4."""

    list_bytes: int = 48 * 1024
    """Limit of a list on disk; a list that passes it splits."""
    rows_per_center: int = 8
    """Rows per cluster when a slice begins; 6 to 10 give the paper's 10-16 % of rows as centers in memory."""
    replicas: int = 8
    """Lists that a row is written to, at most."""
    eps1: float = 10.0
    """A row goes to lists up to 1 + eps1 times as far as its nearest one."""
    eps2: float = 7.0
    """A query reads lists up to 1 + eps2 times as far as its nearest one: 0.6 for 1 neighbor, 7 for 10; inf: all."""
    lists_per_query: int | None = 64
    """Lists that a query reads, at most; None: all that eps2 allows."""
    tail_rows: int = 2048
    """Rows that wait in memory, and stand in every snapshot, until they go to the lists together."""
    slice_rows: int = 131_072
    """Rows of a time slice: what is dropped at once; a multiple of tail_rows."""
    slices: int = 8
    """Full slices that are kept; the rows kept are between slices * slice_rows and one slice more."""
    seed: int = 0
    """Of the clustering."""
    snapshots_kept: int = 3
    """Files that one of so many last snapshots names are not deleted."""

    def __post_init__(self) -> None:
        """Check each rule and how they fit together."""
        for name in ("rows_per_center", "replicas", "tail_rows", "slice_rows", "slices", "snapshots_kept"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if not (self.eps1 >= 0 and self.eps2 >= 0):
            raise ConfigError(f"eps1={self.eps1}, eps2={self.eps2}: must not be negative")
        if self.lists_per_query is not None and self.lists_per_query < 1:
            raise ConfigError(f"lists_per_query={self.lists_per_query}: must be at least 1, or None for no limit")
        if self.slice_rows % self.tail_rows:
            raise ConfigError(f"slice_rows={self.slice_rows} must be a multiple of tail_rows={self.tail_rows}")


class PostingLists:
    """Rows on disk with cosine neighbors. One object per folder; used by one thread at a time."""

    def __init__(
        self,
        folder: Path | str,
        dim: int,
        columns: Sequence[str] = ("label", "base"),
        *,
        name: str = "lists",
        rules: PostingRules | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Use ``folder``, which is made if it is not there; what it holds counts only after ``load``.

        ``name`` is that of the lists in snapshots. Raise ``ConfigError`` where a list could not hold two rows.
        """
        self.name, self.folder, self.dim, self.columns = name, Path(folder), dim, tuple(columns)
        self.rules, self.device = rules or PostingRules(), torch.device(device)
        record = 4 * (dim + len(self.columns) + 2)
        most = self.rules.list_bytes // record
        if dim < 1 or most < 2:
            raise ConfigError(
                f"list_bytes={self.rules.list_bytes} with dim={dim}: a row takes {record} bytes, and a list must hold two; "
                f"set list_bytes to at least {2 * record}"
            )
        self._assignment = AssignmentRules(
            most, self.rules.rows_per_center, self.rules.replicas, self.rules.eps1, self.rules.seed
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tail = KeyScan(self.rules.tail_rows, dim, device=self.device, coarse="float32")
        self._tail_values = torch.zeros((self.rules.tail_rows, len(self.columns)), device=self.device)
        self._slices: list[PostingSlice] = []
        self._written = self._tail_first = self._next_file = self._exports = 0
        self._born: dict[str, int] = {}
        self._retired: list[tuple[int, Path]] = []

    def __len__(self) -> int:
        return self._written - self._tail_first + sum(part.rows for part in self._slices)

    @property
    def written(self) -> int:
        """How many rows were ever written; the next row's sequence number."""
        return self._written

    @property
    def oldest(self) -> int:
        """The sequence number of the oldest row still there; ``written`` if there is none."""
        return self._slices[0].first if self._slices else self._tail_first

    def bytes(self) -> dict[str, int]:
        """Return bytes per tier: ``device`` (centers and tail) and ``disk`` (all files, those kept for snapshots included)."""
        parts = [part.bytes() for part in self._slices]
        tail = self._tail.bytes() + self._tail_values.numel() * 4
        retired = sum(path.stat().st_size for _, path in self._retired)
        return {"device": tail + sum(p[0] for p in parts), "disk": retired + sum(p[1] for p in parts)}

    @torch.no_grad()
    def write(self, h_BD: Tensor, values_BV: Tensor) -> Tensor:
        """Append rows and return their sequence numbers, int64 [B]. Full tails are on disk when this returns.

        A row of zeros, or with NaN or infinity, is stored as one that is similar to nothing (similarity 0).
        """
        unit_BD, values_BV = unit_rows(h_BD.to(self.device)), values_BV.to(self._tail_values)
        sequence_B = torch.arange(self._written, self._written + len(unit_BD), device=self.device)
        start = 0
        while start < len(unit_BD):
            used = self._written - self._tail_first
            stop = min(len(unit_BD), start + self.rules.tail_rows - used)
            position = torch.arange(used, used + stop - start, device=self.device)
            self._tail.put(position, unit_BD[start:stop])
            self._tail_values[position] = values_BV[start:stop]
            self._written += stop - start
            if self._written - self._tail_first == self.rules.tail_rows:
                self._flush()
            start = stop
        return sequence_B

    @torch.no_grad()
    def search(self, q_BD: Tensor, k: int) -> Neighbors:
        """Return the ``k`` best rows among the tail and the lists read for each query, best first, equal ones newest first.

        A query reads the lists that ``eps2`` and ``lists_per_query`` allow, and always as many as hold ``k`` records.
        """
        if k < 1:
            raise ConfigError(f"k={k}: the number of neighbors must be at least 1")
        unit_BD = unit_rows(q_BD.to(self.device))
        parts = [self._search_block(unit_BD[i : i + _BLOCK], k) for i in range(0, max(1, len(unit_BD)), _BLOCK)]
        key_Bk, values_BkV = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        valid_Bk = key_Bk != NOTHING
        sequence_Bk = torch.where(valid_Bk, age_of(key_Bk) + self.oldest, -1)
        return Neighbors(similarity_of(key_Bk), sequence_Bk, values_BkV.masked_fill_(~valid_Bk[:, :, None], 0.0), valid_Bk)

    def drop_before(self, sequence: int) -> None:
        """Drop the slices whose rows are all older than ``sequence``: for eviction by event time."""
        while self._slices and self._slices[0].first + self._slices[0].rows <= sequence:
            self._retire(self._slices.pop(0).files)

    def clear(self) -> None:
        """Forget all rows. Sequence numbers go on."""
        for part in self._slices:
            self._retire(part.files)
        self._slices = []
        self._tail_first = self._written

    def close(self) -> None:
        """Unmap all files; they stay on disk. Nothing else may be called afterwards."""
        self._slices = []

    # Snapshots: names of files, and the tail

    def export(self, state: State, *, incremental: bool = False) -> None:
        """Add names of files (``meta[name]``) and copies of the tail to ``state``: full and incremental are the same."""
        used = self._written - self._tail_first
        state.shared[f"{self.name}.tail_keys"] = self._tail.keys_RD[:used].cpu().clone()
        state.shared[f"{self.name}.tail_values"] = self._tail_values[:used].cpu().clone()
        state.meta[self.name] = {
            "dim": self.dim,
            "columns": list(self.columns),
            "written": self._written,
            "next_file": self._next_file,
            "slices": [
                {"first": part.first, "rows": part.rows, "files": [file.name for file in part.files]} for part in self._slices
            ],
        }
        self._exports += 1
        self._delete_retired()

    def mark_clean(self) -> None:
        """Do nothing: what is exported does not depend on it."""

    def load(self, state: State, /) -> None:
        """Take the content from a ``state`` and from the files it names; other files of lists in the folder are deleted.

        Raise ``RecoveryError`` where a file is missing or damaged, or the sizes differ.
        """
        held = state.meta.get(self.name)
        if held is None:
            raise RecoveryError(f"the snapshot has no posting lists {self.name!r}; it has {sorted(state.meta)}")
        if (held["dim"], tuple(held["columns"])) != (self.dim, self.columns):
            raise RecoveryError(
                f"posting lists {self.name!r} of the snapshot have rows of {held['dim']} numbers with {held['columns']}, these "
                f"have {self.dim} with {list(self.columns)}; resume with the options of the first run"
            )
        keys_ND = state.shared[f"{self.name}.tail_keys"]
        if len(keys_ND) >= self.rules.tail_rows:
            raise RecoveryError(
                f"the tail of the snapshot holds {len(keys_ND)} rows, tail_rows is {self.rules.tail_rows}; resume with the "
                "options of the first run"
            )
        self._slices = [
            PostingSlice.open(
                part["first"],
                part["rows"],
                [PostingFile(self.folder / name) for name in part["files"]],
                len(self.columns),
                self._assignment,
                self.device,
            )
            for part in held["slices"]
        ]
        position = torch.arange(len(keys_ND), device=self.device)
        self._tail.put(position, keys_ND.to(self.device))
        self._tail_values[position] = state.shared[f"{self.name}.tail_values"].to(self.device)
        self._written, self._next_file = held["written"], held["next_file"]
        self._tail_first = self._written - len(keys_ND)
        self._exports, self._retired = 1, []
        self._born = {file.name: 0 for part in self._slices for file in part.files}
        remove_leftovers(self.folder, set(self._born))

    # Writing

    def _flush(self) -> None:
        """Move the full tail to the current slice; begin a new slice and drop the oldest one where it is time."""
        if not self._slices or self._slices[-1].rows == self.rules.slice_rows:
            if self._slices and len(self._slices[-1].files) > 1:
                self._retire(self._slices[-1].merge_files(self._new_path()))
            part = PostingSlice(self._tail_first, self.dim, len(self.columns), self._assignment, self.device)
            self._slices.append(part)
        current = self._slices[-1]
        sequence = np.arange(self._tail_first, self._written)
        keys = self._tail.keys_RD[: len(sequence)].cpu().numpy()
        current.append(pack(keys, self._tail_values.cpu().numpy(), sequence), self._new_path())
        self._tail_first = self._written
        if current.scattered:
            self._retire(current.merge_files(self._new_path()))
        if len(self._slices) > self.rules.slices + 1:
            self._retire(self._slices.pop(0).files)

    def _new_path(self) -> Path:
        path = self.folder / f"{self._next_file:010d}{SUFFIX}"
        self._born[path.name] = self._exports
        self._next_file += 1
        return path

    def _retire(self, files: list[PostingFile]) -> None:
        """Delete files as soon as no snapshot that may still be resumed from names them."""
        for file in files:
            if self._born.pop(file.name) == self._exports:
                file.path.unlink()
            else:
                self._retired.append((self._exports, file.path))

    def _delete_retired(self) -> None:
        last = self._exports - self.rules.snapshots_kept
        for exports, path in self._retired:
            if exports <= last:
                path.unlink(missing_ok=True)
        self._retired = [(exports, path) for exports, path in self._retired if exports > last]

    # Reading

    def _search_block(self, q_bD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return order keys (age: rows since the oldest) and values of the k best."""
        used = self._written - self._tail_first
        tail_bk = self._tail.nearest(q_bD, k, rows=used)
        found_bk = tail_bk != NOTHING
        tail_age_bk = torch.where(found_bk, age_of(tail_bk), 0)
        key_bk = order_keys(similarity_of(tail_bk), tail_age_bk + (self._tail_first - self.oldest))
        key_bk = key_bk.masked_fill_(~found_bk, NOTHING)
        values_bkV = self._tail_values[tail_age_bk]
        list_bP, wanted_bP = self._choose_lists(q_bD, k)
        query_N, place_N = wanted_bP.nonzero(as_tuple=True)
        list_U, read_N = torch.unique(list_bP[query_N, place_N], return_inverse=True)
        first_list = 0
        for part in self._slices:
            here_U = ((list_U >= first_list) & (list_U < first_list + part.lists)).nonzero()[:, 0]
            numbers = (list_U[here_U] - first_list).cpu().numpy()
            lengths = part.lengths[numbers]
            cuts = np.searchsorted(np.cumsum(lengths), np.arange(_READ, int(lengths.sum()) + _READ, _READ), side="left") + 1
            start = 0
            for stop in np.minimum(cuts, len(numbers)).tolist():
                if stop <= start:
                    continue
                records = part.read(numbers[start:stop])
                low = int(here_U[0]) + start
                needed_N = (read_N >= low) & (read_N < low + stop - start)
                index_bM, valid_bM = _members(
                    query_N[needed_N],
                    read_N[needed_N] - low,
                    torch.from_numpy(lengths[start:stop]).to(self.device),
                    len(q_bD),
                )
                keys_RD = torch.from_numpy(keys_of(records, self.dim)).to(self.device)
                age_R = torch.from_numpy(sequences_of(records)).to(self.device) - self.oldest
                key_bM = order_keys(similarities(q_bD, keys_RD, index_bM), age_R[index_bM]).masked_fill_(~valid_bM, NOTHING)
                values_RV = torch.from_numpy(values_of(records, self.dim)).to(self.device)
                key_bk, values_bkV = _merge(key_bk, values_bkV, key_bM, index_bM, values_RV, k)
                start = stop
            first_list += part.lists
        return key_bk, values_bkV

    def _choose_lists(self, q_bD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the nearest lists of each query over all slices, numbered through, and which of them it reads."""
        total = sum(part.lists for part in self._slices)
        most = total if self.rules.lists_per_query is None else min(total, self.rules.lists_per_query)
        if total == 0:
            none_bP = torch.zeros((len(q_bD), 0), dtype=torch.int64, device=self.device)
            return none_bP, none_bP.bool()
        keys, first_list = [], 0
        for part in self._slices:
            key_bP = part.scan.nearest(q_bD, min(most, part.lists), rows=part.lists)
            keys.append(order_keys(similarity_of(key_bP), age_of(key_bP) + first_list))
            first_list += part.lists
        key_bP = best(torch.cat(keys, dim=1), most)
        list_bP = age_of(key_bP)
        distance_bP = (2 - 2 * similarity_of(key_bP)).clamp_min(0).sqrt()
        wanted_bP = distance_bP / (1 + self.rules.eps2) <= distance_bP[:, :1]
        length_U = torch.from_numpy(np.concatenate([part.lengths for part in self._slices])).to(self.device)
        length_bP = length_U[list_bP]
        # A query that is a center itself would read that list only.
        return list_bP, wanted_bP | (length_bP.cumsum(1) - length_bP < k)


def _members(query_N: Tensor, list_N: Tensor, length_U: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Return for each query the records of its lists, [b, M], padded, and which count. Pairs are sorted by query."""
    count_N = length_U[list_N]
    start_N = (length_U.cumsum(0) - length_U)[list_N]
    pair_R = torch.repeat_interleave(torch.arange(len(count_N), device=count_N.device), count_N)
    running_R = torch.arange(len(pair_R), device=count_N.device)
    record_R = start_N[pair_R] + running_R - (count_N.cumsum(0) - count_N)[pair_R]
    query_R = query_N[pair_R]
    per_query_b = torch.bincount(query_R, minlength=queries)
    column_R = running_R - (per_query_b.cumsum(0) - per_query_b)[query_R]
    index_bM = torch.full((queries, int(per_query_b.max())), -1, device=count_N.device)
    index_bM[query_R, column_R] = record_R
    return index_bM.clamp_min(0), index_bM >= 0


def _merge(
    key_bk: Tensor, values_bkV: Tensor, key_bM: Tensor, index_bM: Tensor, values_RV: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k best of what was found so far and of new candidates, each row once.

    The same row in two lists has the same order key: similarities do not depend on where a row stands.
    """
    all_bM = torch.cat([key_bk, key_bM], dim=1)
    # numpy sorts with vector instructions. Upside down: it has no descending order.
    order_bM = (
        all_bM.argsort(dim=1, descending=True) if all_bM.is_cuda else torch.from_numpy(np.argsort(~all_bM.numpy(), axis=1))
    )
    sorted_bM = all_bM.gather(1, order_bM)
    rank_bM = torch.ones_like(sorted_bM)
    rank_bM[:, 1:] = sorted_bM[:, 1:] != sorted_bM[:, :-1]
    rank_bM = rank_bM.cumsum(1)
    wanted_bk = torch.arange(1, k + 1, device=key_bk.device).repeat(len(key_bk), 1)
    place_bk = torch.searchsorted(rank_bM, wanted_bk)  # the first of each rank
    found_bk = place_bk < sorted_bM.shape[1]
    place_bk = place_bk.clamp_max(sorted_bM.shape[1] - 1)
    key_bk, from_bk = sorted_bM.gather(1, place_bk).masked_fill(~found_bk, NOTHING), order_bM.gather(1, place_bk)
    old_bk = from_bk < k
    old_values_bkV = values_bkV.gather(1, from_bk.clamp_max(k - 1)[:, :, None].expand(-1, -1, values_bkV.shape[2]))
    new_values_bkV = values_RV[index_bM.gather(1, (from_bk - k).clamp_min(0))]
    return key_bk, torch.where(old_bk[:, :, None], old_values_bkV, new_values_bkV)
