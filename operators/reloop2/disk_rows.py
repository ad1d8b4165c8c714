"""The latest rows on disk, for more of them than memory holds: posting lists in a folder of their own below ``lists_path``.

Stands in for a ring in :mod:`operators.reloop2.row_memory`. Knows folders and names, no search. Invariant: the files lie in a
folder that no other memory writes to; its name is part of the snapshot.
"""

# B rows of a call, D hidden width, V value columns, k neighbours

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks import Neighbours, PostingLists, PostingRules
from operators.reloop2.config import ReLoop2Options
from operators.state import State

__all__ = ["DiskRows"]

_SLICES = 8
_TAIL_ROWS = 2048
_PADDING = 64  # rows by which a scan may be larger than asked for


class DiskRows:
    """Rows in posting lists. ``capacity`` rows are kept at least, up to an eighth more until the oldest eighth goes."""

    def __init__(self, options: ReLoop2Options, dim: int, device: torch.device, *, name: str) -> None:
        self._name = name
        self._path, self._dim, self._device = Path(options.lists_path or ""), dim, device
        self._rules = _rules(options)
        self._lists: PostingLists | None = None  # made with the first row: a restart brings a folder of its own
        self._folder = ""

    @staticmethod
    def bytes_needed(options: ReLoop2Options, dim: int) -> int:
        """Return what centres and tail cost with a centre for every fourth row; an eighth or less is usual."""
        rules = _rules(options)
        centres = (rules.slices + 1) * (rules.slice_rows // 4 + _PADDING)
        return centres * 4 * dim + (rules.tail_rows + _PADDING) * (4 * dim + 8)

    def write(self, h_BD: Tensor, values_BV: Tensor) -> Tensor:
        """Append rows. Raise ``ConfigError`` where the folder cannot be written to."""
        if self._lists is None:
            self._folder = uuid4().hex
            self._lists = self._open()
        return self._lists.write(h_BD, values_BV)

    def search(self, q_BD: Tensor, k: int) -> Neighbours:
        """Return the best rows of the lists read for each query."""
        if self._lists is not None:
            return self._lists.search(q_BD, k)
        empty_Bk = torch.zeros((len(q_BD), k), device=self._device)
        return Neighbours(empty_Bk, empty_Bk.long() - 1, empty_Bk[:, :, None].expand(-1, -1, 2), empty_Bk.bool())

    def clear(self) -> None:
        """Forget all rows."""
        if self._lists is not None:
            self._lists.clear()

    def __len__(self) -> int:
        return 0 if self._lists is None else len(self._lists)

    def bytes(self) -> dict[str, int]:
        """Return the bytes in memory and in files."""
        return {"device": 0, "disk": 0} if self._lists is None else self._lists.bytes()

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
    tails = -(-options.capacity // (_SLICES * _TAIL_ROWS))
    return PostingRules(
        slices=_SLICES, slice_rows=tails * _TAIL_ROWS, tail_rows=_TAIL_ROWS, lists_per_query=options.lists_per_query
    )
