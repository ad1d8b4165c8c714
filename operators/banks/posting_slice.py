"""One time slice of posting lists: its centers in memory, its lists in immutable files, appending and splitting.

It knows how rows are assigned to lists; which lists a query reads, and when a slice begins or is dropped, is decided by
:mod:`operators.banks.posting_lists`. Invariants: a file is written once; a list that splits is replaced by new ones with new
numbers; no list holds more than ``most`` records after an append.
"""

# N rows, L lists, D dim, P pairs of row and list, m nearest lists of a row

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.banks.balanced_kmeans import cluster, representatives
from operators.banks.posting_files import PostingFile, Records, keys_of, sequences_of, write_posting_file
from operators.banks.row_search import KeyScan

__all__ = ["AssignmentRules", "PostingSlice", "closure"]

_FILES = 8  # more files of a slice than this are merged into one, so that a list is read in few pieces
_NEAR = 4  # lists around a split that are looked through for rows that now have a nearer center
_FILLED = 2 / 3  # how full the lists are at most that a split makes
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class AssignmentRules:
    """Which lists a row goes to (SPANN, arXiv 2111.08566, §3.2.2)."""

    most: int
    """Records per list."""
    rows_per_center: int
    """Rows per cluster when a slice begins; 6 to 10 give the paper's 10-16 % of rows as centers."""
    replicas: int
    eps1: float
    seed: int


def closure(x_ND: Tensor, centers_LD: Tensor, *, replicas: int, eps1: float) -> tuple[Tensor, Tensor]:
    """Assign rows to several near lists; return pairs (row, list), both int64 [P], by row.

    A row goes to list j if dist(x, c_j) <= (1 + eps1) dist(x, c_1), to at most ``replicas`` lists, nearest first, and not where
    a list i that it goes to already is nearer to c_j than it is itself: dist(x, c_j) > dist(c_i, c_j) (the rule of relative
    neighborhood graphs). All rows are of unit length.
    """
    rows, lists = [], []
    for start in range(0, len(x_ND), _CHUNK):
        x_nD = x_ND[start : start + _CHUNK]
        nearest = (x_nD @ centers_LD.T).topk(min(2 * replicas, len(centers_LD)), dim=1)
        distance_nm = _distance(nearest.values)
        center_nmD = centers_LD[nearest.indices]
        between_nmm = _distance(center_nmD @ center_nmD.transpose(1, 2))
        near_nm = distance_nm <= (1 + eps1) * distance_nm[:, :1]
        keep_nm = torch.zeros_like(near_nm)
        for j in range(keep_nm.shape[1]):
            covered_n = (keep_nm & (distance_nm[:, j : j + 1] > between_nmm[:, :, j])).any(1)
            keep_nm[:, j] = near_nm[:, j] & ~covered_n & (keep_nm.sum(1) < replicas)
        row_P, place_P = keep_nm.nonzero(as_tuple=True)
        rows.append(row_P + start)
        lists.append(nearest.indices[row_P, place_P])
    return torch.cat(rows), torch.cat(lists)


class PostingSlice:
    """Rows of consecutive sequence numbers, in lists around centers. A center is one of the rows."""

    def __init__(self, first: int, dim: int, columns: int, rules: AssignmentRules, device: torch.device) -> None:
        self.first, self.rows = first, 0
        self.dim, self.rules, self.device = dim, rules, device
        self.files: list[PostingFile] = []
        self._centers_LD = torch.zeros((0, dim))
        self._alive_L = np.zeros(0, dtype=np.bool_)
        self._length_L = np.zeros(0, dtype=np.int64)
        self._replicas_N: NDArray[np.int64] | None = np.zeros(0, dtype=np.int64)  # lists per row; None: count them first
        self._empty: Records = np.zeros((0, dim + columns + 2), dtype=np.int32)
        self._index()

    @classmethod
    def open(
        cls, first: int, rows: int, files: list[PostingFile], columns: int, rules: AssignmentRules, device: torch.device
    ) -> PostingSlice:
        """Take up a slice from its files, oldest first; the newest one knows all its lists."""
        here = cls(first, files[-1].centers.shape[1], columns, rules, device)
        here.rows, here.files, here._replicas_N = rows, files, None
        here._centers_LD = torch.from_numpy(np.array(files[-1].centers))
        here._alive_L = np.array(files[-1].alive)
        numbers = np.arange(len(here._alive_L))
        here._length_L = np.where(here._alive_L, sum(file.spans(numbers)[1] for file in files), 0)
        here._index()
        return here

    @property
    def lists(self) -> int:
        """How many lists there are; ``scan`` and ``read`` number them from 0."""
        return len(self._numbers)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Records per list."""
        return self._length_L[self._numbers]

    def bytes(self) -> tuple[int, int]:
        """Return the bytes of the centers on the device and of the files."""
        return self.scan.bytes(), sum(file.bytes() for file in self.files)

    def read(self, lists: NDArray[np.int64]) -> Records:
        """Read whole lists from disk, one after the other."""
        return self._read(self._numbers[lists])

    def append(self, records: Records, path: Path) -> None:
        """Put rows (the next ones) into their lists, on disk when this returns."""
        with self._all_or_nothing():
            self._append(records, path)

    @property
    def scattered(self) -> bool:
        """True: lists lie in so many files that it is time for ``merge_files``."""
        return len(self.files) > _FILES

    def merge_files(self, path: Path) -> list[PostingFile]:
        """Write all lists into one file, each in one piece. Return the files that are no longer needed."""
        old = self.files
        with self._all_or_nothing():
            records, lengths = self._read(self._numbers), self.lengths
            self.files = []
            self._centers_LD = self._centers_LD[self._numbers]
            self._alive_L = np.ones(len(lengths), dtype=np.bool_)
            self._length_L = np.zeros(len(lengths), dtype=np.int64)
            self._write(records, np.repeat(np.arange(len(lengths)), lengths), path)
        return old

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undo what was done to the slice where the file could not be written (a full disk, say)."""
        kept = self.rows, self.files[:], self._centers_LD, self._alive_L.copy(), self._length_L.copy()
        try:
            yield
        except BaseException:
            self.rows, self.files, self._centers_LD, self._alive_L, self._length_L = kept
            self._replicas_N = None
            self._index()
            raise

    def _append(self, records: Records, path: Path) -> None:
        keys_ND = torch.from_numpy(keys_of(records, self.dim))
        if not self.lists:
            label_N = cluster(keys_ND, self.rules.rows_per_center, seed=self.rules.seed)
            self._add_lists(keys_ND[representatives(keys_ND, label_N)])
        alive = np.flatnonzero(self._alive_L)
        row_P, near_P = closure(keys_ND, self._centers_LD[alive], replicas=self.rules.replicas, eps1=self.rules.eps1)
        row, number = row_P.numpy(), alive[near_P.numpy()]
        if self._replicas_N is None:
            self._replicas_N = self._count(self._read(self._numbers), self.rows)
        self._replicas_N = np.concatenate([self._replicas_N, np.bincount(row, minlength=len(records))])
        crowded = np.flatnonzero(self._length_L + np.bincount(number, minlength=len(self._alive_L)) > self.rules.most)
        parts, numbers = [records[row[~np.isin(number, crowded)]]], [number[~np.isin(number, crowded)]]
        self._alive_L[crowded] = False
        for old in crowded:
            content = np.concatenate([self._read(np.array([old])), records[row[number == old]]])
            moved, places = self._split(int(old), content, self._replicas_N)
            parts.append(moved)
            numbers.append(places)
        self._length_L[crowded] = 0
        self._write(np.concatenate(parts), np.concatenate(numbers), path)
        self.rows += len(records)

    def _split(self, old: int, content: Records, replicas_N: NDArray[np.int64]) -> tuple[Records, NDArray[np.int64]]:
        """Make new lists of a crowded one; return their records and, for each, its list. Count new replicas."""
        keys_ND = torch.from_numpy(keys_of(content, self.dim))
        label_N = cluster(keys_ND, max(1, int(self.rules.most * _FILLED)), seed=self.rules.seed)
        new = self._add_lists(keys_ND[representatives(keys_ND, label_N)])
        parts, numbers = [content], [new[label_N.numpy()]]
        # Rows of lists nearby whose center is now farther than a new one are copied there, as far as there is room and they
        # have fewer replicas than they may (SPFresh, arXiv 2410.14452: only rows around a split can have a new nearest center).
        room = self.rules.most - np.bincount(label_N.numpy(), minlength=len(new))
        near = np.flatnonzero(self._alive_L[: new[0]] & (self._length_L[: new[0]] > 0))
        if len(near):
            likeness = self._centers_LD[near] @ self._centers_LD[old]
            near = np.sort(near[likeness.topk(min(_NEAR, len(near))).indices.numpy()])
            around = self._read(near)
            own_N = torch.from_numpy(np.repeat(near, self._length_L[near]))
            around_ND = torch.from_numpy(keys_of(around, self.dim))
            best_N, place_N = (around_ND @ self._centers_LD[new].T).max(1)
            nearer = (best_N > (around_ND * self._centers_LD[own_N]).sum(1)).numpy()
            nearer &= ~np.isin(sequences_of(around), sequences_of(content))
            nearer &= replicas_N[sequences_of(around) - self.first] < self.rules.replicas
            _, first = np.unique(sequences_of(around), return_index=True)
            chosen = first[nearer[first]]
            place = place_N.numpy()[chosen]
            order = np.argsort(place, kind="stable")
            rank = np.arange(len(order)) - np.searchsorted(place[order], place[order])
            fits = order[rank < room[place[order]]]
            parts.append(around[chosen[fits]])
            replicas_N += self._count(parts[-1], len(replicas_N))
            numbers.append(new[place[fits]])
        return np.concatenate(parts), np.concatenate(numbers)

    def _count(self, records: Records, rows: int) -> NDArray[np.int64]:
        """Return how often each of the slice's first ``rows`` rows is among these records."""
        return np.bincount(sequences_of(records) - self.first, minlength=rows)

    def _add_lists(self, centers_LD: Tensor) -> NDArray[np.int64]:
        start, more = len(self._alive_L), len(centers_LD)
        self._centers_LD = torch.cat([self._centers_LD, centers_LD])
        self._alive_L = np.concatenate([self._alive_L, np.ones(more, dtype=np.bool_)])
        self._length_L = np.concatenate([self._length_L, np.zeros(more, dtype=np.int64)])
        return np.arange(start, start + more)

    def _write(self, records: Records, numbers: NDArray[np.int64], path: Path) -> None:
        order = np.argsort(numbers, kind="stable")
        count = np.bincount(numbers, minlength=len(self._alive_L))
        offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        write_posting_file(path, records[order], offsets, self._centers_LD.numpy(), self._alive_L)
        self.files.append(PostingFile(path))
        self._length_L += count
        self._index()

    def _read(self, numbers: NDArray[np.int64]) -> Records:
        parts, owners = [self._empty], [np.zeros(0, dtype=np.int64)]
        for file in self.files:
            start, count = file.spans(numbers)
            owner = np.repeat(np.arange(len(numbers)), count)
            within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
            parts.append(file.records[start[owner] + within])
            owners.append(owner)
        return np.concatenate(parts)[np.argsort(np.concatenate(owners), kind="stable")]

    def _index(self) -> None:
        self._numbers = np.flatnonzero(self._alive_L)
        self.scan = KeyScan(len(self._numbers), self.dim, device=self.device, coarse="float32")
        self.scan.put(torch.arange(len(self._numbers), device=self.device), self._centers_LD[self._numbers].to(self.device))


def _distance(likeness: Tensor) -> Tensor:
    """Return the distance of unit vectors with this dot product."""
    return (2 - 2 * likeness).clamp_min(0).sqrt()
