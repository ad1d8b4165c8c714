"""Numbers that belong to each block of a stream, such as the event time of its frame: on the host, in snapshots by increments.

Beside a bank of blocks that are numbered 0, 1, .. and of which the oldest may be gone. Knows no bank.
"""

# N streams of a snapshot, R rows over all streams, K blocks, W numbers of a block

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from operators.state import Rows, State

__all__ = ["BlockRows", "export_block_rows", "load_block_rows"]

Ints = npt.NDArray[np.int64]


class BlockRows:
    """``width`` numbers of each block of a stream, a ring of ``period`` rows. The first number never falls."""

    def __init__(self, period: int, width: int) -> None:
        self.period = period
        self.rows_RW: Ints = np.zeros((0, width), np.int64)
        self.clean = 0
        """Blocks below it stand in a snapshot."""

    def put(self, block: int, rows_KW: Ints) -> None:
        """Note blocks ``block``, ``block + 1``, .."""
        place_K = np.arange(block, block + len(rows_KW)) % self.period
        short = min(block + len(rows_KW), self.period) - len(self.rows_RW)
        if short > 0:
            room = max(short, min(len(self.rows_RW), self.period - len(self.rows_RW)))
            self.rows_RW = np.concatenate([self.rows_RW, np.zeros((room, self.rows_RW.shape[1]), np.int64)])
        self.rows_RW[place_K] = rows_KW

    def at(self, blocks_K: Ints) -> Ints:
        """Return the numbers of blocks, [K, W]."""
        rows_KW: Ints = self.rows_RW[blocks_K % self.period]
        return rows_KW

    def below(self, first: int, written: int, limit: int) -> int:
        """Return the number after the last block whose first number is not above ``limit``."""
        leading_K = self.at(np.arange(first, written))[:, 0]
        return first + int(np.searchsorted(leading_K, limit, side="right"))


def export_block_rows(
    rows: Sequence[BlockRows], written: Sequence[int], state: State, name: str, *, width: int, incremental: bool
) -> None:
    """Add the rows of streams, in the order of ``state.streams`` and with their blocks counted; all are clean then."""
    lengths, counts, places, values = [], [], [], []
    for one, count in zip(rows, written, strict=True):
        first = max(one.clean, count - one.period) if incremental else max(0, count - one.period)
        place_K = np.sort(np.arange(first, count) % one.period)
        lengths.append(min(count, one.period))
        counts.append(len(place_K))
        places.append(place_K)
        values.append(one.rows_RW[place_K])
        one.clean = count
    state.rows[name] = Rows(
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(counts, dtype=torch.int64),
        torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places])),
        torch.from_numpy(np.concatenate([np.zeros((0, width), np.int64), *values])),
    )
    state.dense["period"] = torch.tensor([one.period for one in rows], dtype=torch.int64)


def load_block_rows(rows: Sequence[BlockRows], written: Sequence[int], state: State, name: str) -> None:
    """Fill in the rows of streams (in the order of ``state.streams``, with their blocks counted) from a full ``state``."""
    stored = state.rows[name]
    periods = state.dense["period"].tolist()
    parts = torch.split(stored.values_R, stored.length_N.tolist())
    for one, count, rows_RW, period in zip(rows, written, parts, periods, strict=True):
        first = max(0, count - min(period, one.period))
        one.put(first, rows_RW.numpy()[np.arange(first, count) % period])
        one.clean = count
