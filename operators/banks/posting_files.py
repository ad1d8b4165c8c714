"""Files of posting lists: written once, then only mapped. They know rows and list numbers, no clustering and no search.

A file is a safetensors file: ``records`` [n, D + V + 2] int32 (key, values and sequence number of a row side by side, so that a
list is one contiguous read), ``offsets`` [L + 1] and the ``centers`` [L, D] and ``alive`` [L] of all lists of the slice at that
time. Invariant: a name that ends in ``.lists`` belongs to a complete file, on disk.
"""

# n records, L lists, D dim, V value columns

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from connectors import durable
from connectors.errors import RecoveryError

__all__ = ["SUFFIX", "PostingFile", "keys_of", "pack", "remove_leftovers", "sequences_of", "values_of", "write_posting_file"]

SUFFIX = ".lists"
_TYPES: dict[str, np.dtype[Any]] = {
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "BOOL": np.dtype("?"),
}

Records = NDArray[np.int32]


def pack(keys: NDArray[np.float32], values: NDArray[np.float32], sequence: NDArray[np.int64]) -> Records:
    """Put keys [n, D], values [n, V] and sequence numbers [n] side by side."""
    columns = [np.ascontiguousarray(part).view(np.int32) for part in (keys, values, sequence[:, None])]
    return np.concatenate(columns, axis=1)


def keys_of(records: Records, dim: int) -> NDArray[np.float32]:
    """Return the keys [n, D], copied."""
    return np.ascontiguousarray(records[:, :dim]).view(np.float32)


def values_of(records: Records, dim: int) -> NDArray[np.float32]:
    """Return the values [n, V], copied."""
    return np.ascontiguousarray(records[:, dim:-2]).view(np.float32)


def sequences_of(records: Records) -> NDArray[np.int64]:
    """Return the sequence numbers [n], copied."""
    return np.ascontiguousarray(records[:, -2:]).view(np.int64)[:, 0]


def write_posting_file(
    path: Path,
    records: Records,
    offsets: NDArray[np.int64],
    centers: NDArray[np.float32],
    alive: NDArray[np.bool_],
) -> None:
    """Write a file so that its name appears only when all of it is on disk."""
    with durable.replacing(path) as temporary:
        save_file({"records": records, "offsets": offsets, "centers": centers, "alive": alive}, temporary)


class PostingFile:
    """One file, mapped: pages come from disk when they are read."""

    def __init__(self, path: Path) -> None:
        """Map a file. Raise ``RecoveryError`` where it is missing or damaged."""
        self.path = path
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
            start = 8 + int.from_bytes(data[:8].tobytes(), "little")
            header = json.loads(data[8:start].tobytes())
            arrays: dict[str, NDArray[Any]] = {}
            for name in ("records", "offsets", "centers", "alive"):
                begin, end = header[name]["data_offsets"]
                flat = data[start + begin : start + end].view(_TYPES[header[name]["dtype"]])
                arrays[name] = flat.reshape(header[name]["shape"])
        except (OSError, ValueError, KeyError) as error:
            raise RecoveryError(
                f"{path}: not a complete file of posting lists ({error}); restore the folder, or start without its state"
            ) from error
        self._bytes = len(data)
        self.records: Records = arrays["records"]
        self.offsets: NDArray[np.int64] = np.array(arrays["offsets"])
        self.centers: NDArray[np.float32] = arrays["centers"]
        self.alive: NDArray[np.bool_] = arrays["alive"]

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.path.name

    def bytes(self) -> int:
        """Return the size of the file."""
        return self._bytes

    def spans(self, lists: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each list starts here and how many records it has; 0 for lists younger than the file."""
        known = lists < len(self.offsets) - 1
        at = np.where(known, lists, 0)
        start = self.offsets[at]
        return start, np.where(known, self.offsets[at + 1] - start, 0)


def remove_leftovers(folder: Path, wanted: set[str]) -> None:
    """Delete files of posting lists that nothing refers to, complete or not."""
    for path in folder.iterdir():
        if path.name not in wanted and (path.name.endswith(SUFFIX) or durable.is_leftover(path)):
            path.unlink()
