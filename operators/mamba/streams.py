"""What MAMBA knows of a stream besides its banks, and its columns in a snapshot. It decides nothing."""

# N streams of a snapshot, R rows over all streams

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from operators.frames import ENCODINGS, Image, decode_image
from operators.mamba.config import MAX_REFERENCES
from operators.mamba.rules import HISTOGRAM_BINS
from operators.state import Rows, State
from operators.streams import NEVER_US, Refusal, Stream

__all__ = ["MambaStream", "Packed", "export_streams", "import_streams"]


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
class MambaStream(Stream):
    """One stream."""

    histogram: npt.NDArray[np.float32] | None = None
    """Colors of the last frame, for the cut detector."""
    references: list[Packed] = field(default_factory=list)

    def no_reference(self) -> Refusal | None:
        """Say why a reference frame cannot be taken now; None if it can."""
        if self.last_time_us != NEVER_US:
            return Refusal("late", "a reference frame came after the first frame of its stream")
        if len(self.references) == MAX_REFERENCES:
            return Refusal("late", f"there are {MAX_REFERENCES} reference frames already")
        return None


def export_streams(streams: Sequence[MambaStream], state: State) -> None:
    """Add what is not plain of these streams (in the order of ``state.streams``) to ``state``."""
    length_N = _ints([0 if s.histogram is None else HISTOGRAM_BINS for s in streams])
    histograms = [s.histogram for s in streams if s.histogram is not None]
    state.rows["histogram"] = Rows.full(length_N, torch.from_numpy(np.concatenate([np.empty(0, np.float32), *histograms])))
    packed = [reference for s in streams for reference in s.references]
    shape_R4 = _ints([[len(p.data), ENCODINGS.index(p.encoding), p.height, p.width] for p in packed]).reshape(-1, 4)
    state.rows["reference_shapes"] = Rows.full(_ints([len(s.references) for s in streams]), shape_R4)
    length_N = _ints([sum(len(p.data) for p in s.references) for s in streams])
    data_R = np.frombuffer(bytearray().join(p.data for p in packed), np.uint8)
    state.rows["reference_bytes"] = Rows.full(length_N, torch.from_numpy(data_R.copy()))


def import_streams(streams: Sequence[MambaStream], state: State) -> None:
    """Fill in what is not plain of these streams (in the order of ``state.streams``) from a full ``state``."""
    for stream, histogram in zip(streams, _split(state.rows["histogram"]), strict=True):
        stream.histogram = histogram.numpy().copy() if histogram.numel() else None
    shapes, data = _split(state.rows["reference_shapes"]), _split(state.rows["reference_bytes"])
    for stream, shape_R4, bytes_R in zip(streams, shapes, data, strict=True):
        parts = torch.split(bytes_R, shape_R4[:, 0].tolist()) if len(shape_R4) else ()
        stream.references = [
            Packed(part.numpy().tobytes(), ENCODINGS[encoding], height, width)
            for part, (_, encoding, height, width) in zip(parts, shape_R4.tolist(), strict=True)
        ]


def _ints(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _split(rows: Rows) -> list[Tensor]:
    return list(torch.split(rows.values_R, rows.length_N.tolist()))
