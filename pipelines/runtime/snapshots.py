"""Operator state on disk: one safetensors file per shard and epoch, with the structure as JSON in the file's header.

Knows nothing of operators or epochs. A file is complete or absent (temporary name, fsync, rename) and named by its SHA-256 in
the manifest. A chain of files is a full one, then incremental ones; it can be read for some of the streams only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from connectors import durable
from connectors.errors import RecoveryError
from operators.state import Patch, Rows, State
from pipelines.runtime.messages import SnapshotFile

__all__ = ["Keep", "SnapshotWriter", "read_chain", "read_snapshot", "verify", "write_file", "write_snapshot"]

_ROW_PARTS = ("length_N", "count_N", "index_R", "values_R")
_PATCH_PARTS = {"patch_index": "index_C", "patch_values": "values_C"}
"""Prefix in the file → attribute."""

Keep = Callable[[str], bool]


def write_snapshot(state: State, root: Path, path: str) -> SnapshotFile:
    """Write ``state`` to ``root/path``, durable when this returns."""
    structure = {
        "streams": state.streams,
        "rows": list(state.rows),
        "patches": list(state.patches),
        "meta": state.meta,
        "incremental": state.incremental,
        "closed": state.closed,
    }
    metadata = {"streambank.state": json.dumps(structure)}
    size, sha256 = write_file(root / path, lambda temporary: save_file(_tensors(state), temporary, metadata=metadata))
    return SnapshotFile(path, size, sha256, state.incremental)


def write_file(target: Path, write: Callable[[Path], None]) -> tuple[int, str]:
    """Have ``write`` fill a file that becomes ``target`` as a whole, durably; return its size and SHA-256."""
    try:
        durable.make_folders(target.parent)
        with durable.replacing(target) as temporary:
            write(temporary)
            with temporary.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
    except (OSError, SafetensorError) as error:
        raise RecoveryError(
            f"snapshot {target} cannot be written: {error}. The epoch is not committed; free space or set 'state' to another "
            "disk, then run again with --resume"
        ) from error
    return size, sha256


def read_snapshot(root: Path, file: SnapshotFile, keep: Keep | None = None) -> State:
    """Read one file back, bit for bit; only the streams that ``keep`` wants, if given. Raise ``RecoveryError`` if damaged."""
    with safe_open(verify(root, file), framework="pt") as stored:
        structure = json.loads(stored.metadata()["streambank.state"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    state = State(
        streams=structure["streams"],
        dense={name[6:]: tensor for name, tensor in tensors.items() if name.startswith("dense.")},
        rows={name: Rows(*(tensors[f"rows.{part}.{name}"] for part in _ROW_PARTS)) for name in structure["rows"]},
        shared={name[7:]: tensor for name, tensor in tensors.items() if name.startswith("shared.")},
        additive={name[9:]: tensor for name, tensor in tensors.items() if name.startswith("additive.")},
        meta=structure["meta"],
        incremental=structure["incremental"],
        closed=structure["closed"],
        patches={name: Patch(*(tensors[f"{part}.{name}"] for part in _PATCH_PARTS)) for name in structure.get("patches", ())},
    )
    if keep is None:
        return state
    return state.select(np.fromiter((keep(stream) for stream in state.streams), np.bool_, len(state.streams)))


def verify(root: Path, file: SnapshotFile) -> Path:
    """Return the path of a file of the manifest. Raise ``RecoveryError`` if it is gone or not as it was written."""
    path = root / file.path
    try:
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise RecoveryError(f"snapshot {path} of the manifest cannot be read: {error.strerror}; start over") from error
    if sha256 != file.sha256:
        raise RecoveryError(f"snapshot {path} has changed since its epoch was committed (SHA-256 differs); start over")
    return path


def read_chain(root: Path, chain: Sequence[SnapshotFile], keep: Keep | None = None) -> State:
    """Return the full state at the end of a chain."""
    if not chain or chain[0].incremental:
        raise RecoveryError(f"a snapshot chain in {root} does not begin with a full snapshot; the manifest is damaged")
    state = read_snapshot(root, chain[0], keep)
    for file in chain[1:]:
        state = state.apply(read_snapshot(root, file, keep))
    return state


class SnapshotWriter:
    """Writes snapshots in a thread of its own, so that rows flow on while the disk is busy."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot")

    def submit(self, state: State, path: str) -> Future[SnapshotFile]:
        """Write ``state`` (ownership passes) to ``path`` below the state folder."""
        return self._pool.submit(write_snapshot, state, self._root, path)

    def call(self, write: Callable[[Path], SnapshotFile]) -> Future[SnapshotFile]:
        """Have ``write`` write a file of another kind, given the state folder, after all that was submitted before."""
        return self._pool.submit(write, self._root)

    def close(self) -> None:
        """Finish what was submitted."""
        self._pool.shutdown(wait=True)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {f"dense.{name}": tensor for name, tensor in state.dense.items()}
    tensors |= {f"shared.{name}": tensor for name, tensor in state.shared.items()}
    tensors |= {f"additive.{name}": tensor for name, tensor in state.additive.items()}
    for name, patch in state.patches.items():
        tensors |= {f"{prefix}.{name}": getattr(patch, part) for prefix, part in _PATCH_PARTS.items()}
    for name, rows in state.rows.items():
        tensors |= {f"rows.{part}.{name}": getattr(rows, part) for part in _ROW_PARTS}
    seen: set[int] = set()
    owned = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that share memory (Rows.full may reuse one) or have gaps.
        pointer = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone(memory_format=torch.contiguous_format) if pointer in seen else tensor.contiguous()
        seen.add(pointer)
    return owned
