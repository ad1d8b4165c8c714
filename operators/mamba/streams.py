"""Bookkeeping of a stream outside the banks, and its columns in a snapshot. It decides nothing.

An evicted stream stays in snapshots as a *tombstone*: a stream without rows whose ``evicted`` flag is set.
"""

# N streams, R rows over all streams

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from operators.images import ENCODINGS, Image, decode_image
from operators.mamba.rules import HISTOGRAM_BINS
from operators.state import Rows, State

__all__ = ["MAX_REFERENCES", "Packed", "Stream", "add_tombstones", "evicted", "export_streams", "import_streams"]

MAX_REFERENCES = 64
"""Reference frames that one stream may hold until its first frame."""

_NEVER = -(2**63)


class Packed(NamedTuple):
    """A reference frame that waits for the first frame of its stream, still encoded: it is small, and cheap to snapshot."""

    data: bytes
    encoding: str
    height: int
    width: int

    @staticmethod
    def of(batch: pa.RecordBatch, row: int) -> Packed:
        """Copy a FRAME row that was found decodable."""
        image, encoding, height, width = (batch.column(name)[row].as_py() for name in ("image", "encoding", "height", "width"))
        return Packed(image, encoding, height or 0, width or 0)

    def decode(self) -> Image:
        """Return the RGB image."""
        return decode_image(self.data, self.encoding, self.height, self.width)


@dataclass(slots=True)
class Stream:
    """What the operator knows of one stream besides its banks."""

    slot: int
    last_sequence: int = _NEVER
    last_time_us: int = _NEVER
    started: bool = False
    """True after the first frame that was no reference."""
    used: int = 0
    """Tick of the last accepted row; orders streams for eviction after a restore."""
    histogram: npt.NDArray[np.float32] | None = None
    """Colours of the last frame, for the cut detector."""
    references: list[Packed] = field(default_factory=list)

    def lateness(self, sequence: int, time_us: int, *, reference: bool) -> str | None:
        """Say why a row comes too late for this stream; None if it does not."""
        if sequence <= self.last_sequence:
            return f"sequence {sequence} does not follow {self.last_sequence}"
        if reference and self.started:
            return "a reference frame came after the first frame of its stream"
        if reference:
            return f"there are {MAX_REFERENCES} reference frames already" if len(self.references) == MAX_REFERENCES else None
        if time_us <= self.last_time_us:
            return f"event_time is {(self.last_time_us - time_us) / 1e6:.6f} s before or at the last frame's"
        return None


def export_streams(streams: Sequence[Stream], state: State) -> None:
    """Add the columns of these streams (in the order of ``state.streams``) to ``state``."""
    state.dense |= {
        "last_sequence": _ints([s.last_sequence for s in streams]),
        "last_time_us": _ints([s.last_time_us for s in streams]),
        "started": torch.tensor([s.started for s in streams], dtype=torch.bool),
        "used": _ints([s.used for s in streams]),
        "evicted": torch.zeros(len(streams), dtype=torch.bool),
    }
    length_N = _ints([0 if s.histogram is None else HISTOGRAM_BINS for s in streams])
    histograms = [s.histogram for s in streams if s.histogram is not None]
    state.rows["histogram"] = Rows.full(length_N, torch.from_numpy(np.concatenate([np.empty(0, np.float32), *histograms])))
    packed = [reference for s in streams for reference in s.references]
    shape_R4 = _ints([[len(p.data), ENCODINGS.index(p.encoding), p.height, p.width] for p in packed]).reshape(-1, 4)
    state.rows["reference_shapes"] = Rows.full(_ints([len(s.references) for s in streams]), shape_R4)
    length_N = _ints([sum(len(p.data) for p in s.references) for s in streams])
    data_R = np.frombuffer(bytearray().join(p.data for p in packed), np.uint8)
    state.rows["reference_bytes"] = Rows.full(length_N, torch.from_numpy(data_R.copy()))


def import_streams(streams: Sequence[Stream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``) from a full ``state``."""
    columns = (state.dense[name].tolist() for name in ("last_sequence", "last_time_us", "started", "used"))
    for stream, *values in zip(streams, *columns, strict=True):
        stream.last_sequence, stream.last_time_us, stream.started, stream.used = values
    for stream, histogram in zip(streams, _split(state.rows["histogram"]), strict=True):
        stream.histogram = histogram.numpy().copy() if histogram.numel() else None
    shapes, data = _split(state.rows["reference_shapes"]), _split(state.rows["reference_bytes"])
    for stream, shape_R4, bytes_R in zip(streams, shapes, data, strict=True):
        parts = torch.split(bytes_R, shape_R4[:, 0].tolist()) if len(shape_R4) else ()
        stream.references = [
            Packed(part.numpy().tobytes(), ENCODINGS[encoding], height, width)
            for part, (_, encoding, height, width) in zip(parts, shape_R4.tolist(), strict=True)
        ]


def add_tombstones(state: State, names: Sequence[str]) -> None:
    """Append evicted streams, without rows, to ``state``."""
    extra = len(names)
    state.streams += names
    for key, tensor in state.dense.items():
        state.dense[key] = torch.cat([tensor, tensor.new_zeros((extra, *tensor.shape[1:]))])
    state.dense["evicted"][len(state.streams) - extra :] = True
    for key, rows in state.rows.items():
        length_N, count_N = (torch.cat([old, old.new_zeros(extra)]) for old in (rows.length_N, rows.count_N))
        state.rows[key] = Rows(length_N, count_N, rows.index_R, rows.values_R)


def evicted(state: State) -> list[bool]:
    """Tell which streams of ``state`` are tombstones."""
    flags: list[bool] = state.dense["evicted"].tolist() if state.streams else []
    return flags


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _split(rows: Rows) -> list[Tensor]:
    return list(torch.split(rows.values_R, rows.length_N.tolist()))
