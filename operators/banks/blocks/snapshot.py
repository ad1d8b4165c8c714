"""Blocks in an operator's state: names of files where there is a disk tier, rows of new blocks where there is none.

With a disk tier a snapshot holds a few numbers per stream and the blocks stay where they are, so that no block is ever written
twice. Without, an incremental snapshot holds the blocks since the last one, a full one all of them. Bit for bit either way.
"""

# N streams, L layers, R blocks over all streams

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import RecoveryError
from operators.banks.blocks.budget import stored_fields
from operators.banks.blocks.segments import SegmentLayout, StreamFiles
from operators.banks.blocks.spec import REPRESENTATIVES
from operators.banks.slot_bank import RowSpec
from operators.state import Rows, State

if TYPE_CHECKING:
    from operators.banks.block_bank import BankStream, BlockBank

__all__ = ["Held", "describe", "export_rows", "folder_name", "import_means", "import_rows", "layout_of", "open_files"]

_CHUNK = 4096  # blocks whose representatives are in memory besides the bank's


class Held:
    """What a snapshot says of the streams: one row of numbers each."""

    COLUMNS = ("key", "first", "written", "period", "incarnation", "segment_blocks")

    def __init__(self, state: State, name: str) -> None:
        missing = [column for column in self.COLUMNS if f"{name}.{column}" not in state.dense]
        if missing:
            raise RecoveryError(f"the snapshot has no blocks {name!r}; it has {sorted(state.dense)}")
        self.streams = [
            dict(zip(self.COLUMNS, row, strict=True))
            for row in zip(*(state.dense[f"{name}.{column}"].tolist() for column in self.COLUMNS), strict=True)
        ]


def describe(streams: Sequence[BankStream], period: int, state: State, name: str) -> None:
    """Add the numbers of these streams to ``state``."""
    rows = [
        (
            stream.key,
            stream.table.first,
            stream.table.written,
            period,
            stream.files.incarnation if stream.files is not None else 0,
            stream.files.layout.blocks if stream.files is not None else 0,
        )
        for stream in streams
    ]
    table_NC = torch.tensor(rows, dtype=torch.int64).reshape(-1, len(Held.COLUMNS))
    state.dense |= {f"{name}.{column}": table_NC[:, i].clone() for i, column in enumerate(Held.COLUMNS)}


def export_rows(bank: BlockBank, streams: Sequence[BankStream], period: int, state: State, *, incremental: bool) -> None:
    """Add copies of blocks to ``state``, rows [R, L, *field]; block b stands at position b modulo ``period`` of its stream."""
    lengths: list[int] = []
    counts: list[int] = []
    positions, pages, places = [], [], []
    for stream in streams:
        table = stream.table
        length = min(table.written, period)
        if incremental:
            block_R = np.arange(max(table.first, stream.clean), table.written)
            position_R, place_R = block_R % period, np.arange(len(block_R))
        else:  # a full snapshot has every position; those of dropped blocks hold zeros
            position_R = np.arange(length)
            newest_R = position_R + period * ((table.written - 1 - position_R) // period)
            place_R = np.flatnonzero(newest_R >= table.first)
            block_R = newest_R[place_R]
        pages.append(table.pages(block_R))
        places.append(place_R + sum(counts))
        lengths.append(length)
        counts.append(len(position_R))
        positions.append(position_R)
    page_R, place_R = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in (pages, places))
    index_R = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *positions]))
    for field, values_R in bank.tiers.blocks(page_R).items():
        if len(place_R) < len(index_R):
            spread_R = values_R.new_zeros((len(index_R), *values_R.shape[1:]))
            spread_R[torch.from_numpy(place_R)] = values_R
            values_R = spread_R
        state.rows[f"{bank.name}.{field}"] = Rows(
            torch.tensor(lengths, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64), index_R.clone(), values_R
        )


def import_rows(bank: BlockBank, streams: Sequence[BankStream], held: Held, state: State) -> None:
    """Copy the blocks of a full ``state`` into the pages that their streams were given."""
    values = {field: _checked(state, bank, field, spec) for field, spec in stored_fields(bank.spec, bank.fields).items()}
    start = 0
    for stream, numbers in zip(streams, held.streams, strict=True):
        table, period = stream.table, numbers["period"]
        at_R = torch.from_numpy(start + np.arange(table.first, table.written) % period)
        rows_R = {field: values_R[at_R] for field, values_R in values.items()}
        for layer in range(bank.spec.layers):
            bank.tiers.put(layer, table.held(), {field: rows[:, layer] for field, rows in rows_R.items()})
        start += min(table.written, period)


def import_means(bank: BlockBank, stream: BankStream) -> None:
    """Read the representatives of a stream from its files."""
    if stream.files is None:
        return
    first, written = stream.table.first, stream.table.written
    for start in range(first, written, _CHUNK):
        block_R: NDArray[np.int64] = np.arange(start, min(start + _CHUNK, written))
        page_R = stream.table.pages(block_R)
        for layer in range(bank.spec.layers):
            bank.tiers.means.write(layer, page_R, stream.files.read(layer, block_R, [REPRESENTATIVES]))


def layout_of(bank: BlockBank, segment_blocks: int) -> SegmentLayout:
    """Return the layout of files with so many blocks."""
    return SegmentLayout(bank.spec.layers, segment_blocks, stored_fields(bank.spec, bank.fields))


def open_files(bank: BlockBank, numbers: dict[str, int]) -> StreamFiles:
    """Open the files that a snapshot names. Raise ``RecoveryError`` where one is missing or of another layout."""
    assert bank.folder is not None and bank.tiers.maps is not None
    files = StreamFiles(
        bank.folder / folder_name(numbers["key"]),
        numbers["incarnation"],
        layout_of(bank, numbers["segment_blocks"]),
        bank.tiers.maps,
        numbers["first"],
        numbers["written"],
    )
    files.check(numbers["written"])
    return files


def folder_name(key: int) -> str:
    """Return the name of a stream's folder."""
    return f"{key & (2**64 - 1):016x}"


def _checked(state: State, bank: BlockBank, field: str, spec: RowSpec) -> Tensor:
    name, wanted = f"{bank.name}.{field}", (bank.spec.layers, *spec.shape)
    rows = state.rows.get(name)
    if rows is None:
        raise RecoveryError(
            f"the snapshot has no rows {name}; it has {sorted(state.rows)}; resume with the options of the first run (a bank "
            "with a disk tier keeps its blocks in files)"
        )
    if rows.values_R.dtype != spec.dtype or tuple(rows.values_R.shape[1:]) != wanted:
        raise RecoveryError(
            f"rows {name} of the snapshot are {tuple(rows.values_R.shape[1:])} {rows.values_R.dtype}, the bank's are {wanted} "
            f"{spec.dtype}; resume with the options of the first run"
        )
    return rows.values_R
