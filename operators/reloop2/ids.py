"""Impression ids as 64-bit keys, and an index from keys to rows of a table. Knows no impressions and no labels.

Integers are their own key; a text is hashed over all its bytes (of a million ids that wait at once, the chance that any two
collide is 3e-8). A salt per stream keeps equal ids of different streams apart. Everything is columns, no loop over rows.
"""

# B rows of a call, W words of 8 bytes, N keys in the index

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SchemaError

__all__ = ["BAD_ID", "ID_TYPES", "MAX_ID_BYTES", "Bools", "Floats", "IdIndex", "Ints", "first_of_each", "id_keys", "row_ids"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

ID_TYPES = {"int64": pa.int64(), "string": pa.string()}

MAX_ID_BYTES = 256
"""Longer ids are refused: one huge text would blow up the memory of its whole batch."""

BAD_ID = f"impression_id is null, or longer than {MAX_ID_BYTES} bytes"

# The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
_GOLDEN, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def id_keys(column: pa.Array, salt_B: Ints | None = None) -> tuple[Ints, Bools]:
    """Return int64 keys [B] of a column of integers or texts, and which rows have no usable id (null, or too long).

    ``salt_B`` is a number per row, equal for rows of one stream; without it integers are returned as they are.
    """
    missing_B = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        keys_B = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        if salt_B is None:
            return keys_B, missing_B
        return _mix(keys_B.view(np.uint64) ^ _mix(salt_B.view(np.uint64))).view(np.int64), missing_B
    words_BW, length_B = _words(column, missing_B)
    hash_B = _mix(length_B.astype(np.uint64) if salt_B is None else length_B.astype(np.uint64) ^ _mix(salt_B.view(np.uint64)))
    for w in range(words_BW.shape[1]):
        # Words behind the end of a text must not count: the batch decides how many there are.
        hash_B = np.where(length_B > 8 * w, _mix(hash_B ^ words_BW[:, w]), hash_B)
    return hash_B.view(np.int64), missing_B | (length_B > MAX_ID_BYTES)


def row_ids(batch: pa.RecordBatch, id_type: str, salt_B: Ints | None, where: str) -> tuple[Ints, Bools]:
    """Return the ids of a batch as keys, and which rows have none. Raise ``SchemaError`` for a column of another type."""
    index = batch.schema.get_field_index("impression_id")
    kind = batch.schema.field(index).type if index >= 0 else None
    if kind is None:
        raise SchemaError(f"{where}: column 'impression_id' is missing; got {batch.schema.names}")
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text if ID_TYPES[id_type] == pa.string() else pa.types.is_integer(kind) and kind != pa.uint64()):
        raise SchemaError(
            f"{where}: column 'impression_id' is {kind}, but id_type is {id_type!r}; set id_type to what the column is, int64 "
            "or string"
        )
    return id_keys(batch.column(index), salt_B)


def first_of_each(keys_B: Ints) -> Bools:
    """Return which rows are the first with their key, [B]."""
    first_B = np.zeros(len(keys_B), np.bool_)
    first_B[np.unique(keys_B, return_index=True)[1]] = True
    return first_B


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _words(column: pa.Array, missing_B: Bools) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Return the bytes of texts as zero-padded words [B, W], cut at ``MAX_ID_BYTES``, and the texts' lengths in bytes."""
    rows = len(column)
    texts = column.cast(pa.large_binary())
    _, offsets, data = texts.buffers()
    if rows == 0 or offsets is None:
        return np.zeros((rows, 0), np.uint64), np.zeros(rows, np.int64)
    offset_B = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + rows + 1]
    length_B = np.where(missing_B, 0, np.diff(offset_B))
    width = -(-min(int(length_B.max()), MAX_ID_BYTES) // 8) * 8
    if width == 0 or data is None:
        return np.zeros((rows, 0), np.uint64), length_B
    bytes_ = np.frombuffer(data, np.uint8)
    column_W = np.arange(width)
    place_BW = np.minimum(offset_B[:-1, None] + column_W, len(bytes_) - 1)
    padded_BW = np.where(column_W < length_B[:, None], bytes_[place_BW], np.uint8(0))
    return np.ascontiguousarray(padded_BW).view("<u8"), length_B


class IdIndex:
    """Keys in order, in two levels: a large one, and a small one for what is new until it is merged in.

    Entries are not deleted: the caller tells which (key, row) still hold, and what does not is dropped at the next merge. So
    the index holds at most the rows of the table plus ``slack`` entries. Each key stands in it once.
    """

    def __init__(self, holds: Callable[[Ints, Ints], Bools], *, slack: int = 8192) -> None:
        self._holds = holds
        self._slack = slack
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._levels = [(_EMPTY, _EMPTY), (_EMPTY, _EMPTY)]  # small, large: keys, rows

    def find(self, keys_B: Ints) -> Ints:
        """Return the row of each key, -1 where there is none."""
        row_B = np.full(len(keys_B), -1, np.int64)
        for keys_N, rows_N in self._levels:
            if len(keys_N):
                at_B = np.minimum(np.searchsorted(keys_N, keys_B), len(keys_N) - 1)
                row_B = np.where(keys_N[at_B] == keys_B, rows_N[at_B], row_B)
        found_B = row_B >= 0
        found_B[found_B] = self._holds(keys_B[found_B], row_B[found_B])
        row_B[~found_B] = -1
        return row_B

    def put(self, keys_B: Ints, rows_B: Ints) -> None:
        """Note where keys, all different, now stand. Call it when they hold."""
        for keys_N, rows_N in self._levels:
            if len(keys_N):
                at_B = np.minimum(np.searchsorted(keys_N, keys_B), len(keys_N) - 1)
                known_B = keys_N[at_B] == keys_B
                rows_N[at_B[known_B]] = rows_B[known_B]
                keys_B, rows_B = keys_B[~known_B], rows_B[~known_B]
        order_B = np.argsort(keys_B)
        keys_B, rows_B = keys_B[order_B], rows_B[order_B]
        small_N, small_rows_N = self._levels[0]
        at_B = np.searchsorted(small_N, keys_B)
        self._levels[0] = (np.insert(small_N, at_B, keys_B), np.insert(small_rows_N, at_B, rows_B))
        if len(self._levels[0][0]) > self._slack:
            self._merge()

    def _merge(self) -> None:
        keys_N, rows_N = (np.concatenate(parts) for parts in zip(*self._levels, strict=True))
        kept_N = self._holds(keys_N, rows_N)
        keys_N, rows_N = keys_N[kept_N], rows_N[kept_N]
        order_N = np.argsort(keys_N)
        self._levels = [(_EMPTY, _EMPTY), (keys_N[order_N], rows_N[order_N])]


_EMPTY: Ints = np.empty(0, np.int64)
