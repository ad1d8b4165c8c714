"""Sound of a batch as an operator gets it: rows of ``pcm.v1`` to mono samples, and what is wrong with a row.

Beside 16-bit samples, those of 32 bits and floats in [-1, 1] are taken. Channels are averaged. Knows no stream.
"""

# N moments, C channels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records
from connectors.errors import SchemaError
from operators.output import NOT_FINITE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HIGHEST_RATE", "LOWEST_RATE", "NO_SOUND", "SOUND_KEYS", "PcmRow", "PcmRows", "sound_cells", "sound_column"]

LOWEST_RATE = 4_000
"""Samples per second that are taken, at least."""
HIGHEST_RATE = 192_000
"""At most."""

SOUND_KEYS = pa.schema([f for f in records.PCM if f.name != "samples"], metadata=records.PCM.metadata)
"""What a row of sound has beside its samples, whose type may differ."""

NO_SOUND = "the decoder gave NaN or infinity for this sound; check the checkpoint and its precision"

_SCALE = {pa.int16(): 1 / 2**15, pa.int32(): 1 / 2**31, pa.float32(): 1.0, pa.float64(): 1.0}


@dataclass(frozen=True, slots=True)
class PcmRow:
    """The sound of one row."""

    rate: int
    samples_N: npt.NDArray[np.float64]
    """Mono, in [-1, 1]."""
    repaired: int = 0
    """Samples that were NaN or infinite, and are 0 now."""
    first_repaired: int = 0
    """The first moment and the one behind the last with such samples."""
    end_repaired: int = 0


class PcmRows:
    """The rows of a batch. Raises ``SchemaError`` where it is no sound."""

    def __init__(self, batch: pa.RecordBatch, where: str) -> None:
        records.require(batch, SOUND_KEYS, where)
        index = batch.schema.get_field_index("samples")
        kind = batch.schema.field(index).type if index >= 0 else None
        if kind is None or not pa.types.is_list(kind) or kind.value_type not in _SCALE:
            raise SchemaError(
                f"{where}: 'samples' is {kind or 'missing'}; it must be a list of {', '.join(map(str, _SCALE))}; the source "
                "'audio' gives int16"
            )
        samples = batch.column(index)
        self._scale = _SCALE[kind.value_type]
        self._flat = samples.values.to_numpy(zero_copy_only=False)
        self._ends = samples.offsets.to_numpy()
        self._there = samples.is_valid().to_pylist()
        self._rates = batch.column("sample_rate").to_pylist()
        self._channels = batch.column("channels").to_pylist()

    def read(self, row: int) -> tuple[PcmRow | None, str | None]:
        """Return the sound of a row, or why there is none."""
        if not self._there[row]:
            return None, "the row has no samples"
        rate, channels = self._rates[row], self._channels[row]
        if rate is None or not LOWEST_RATE <= rate <= HIGHEST_RATE:
            return None, f"sample_rate is {rate}; {LOWEST_RATE} to {HIGHEST_RATE} Hz can be read"
        channels = 1 if channels is None else channels
        part = self._flat[self._ends[row] : self._ends[row + 1]]
        if channels < 1 or len(part) % channels:
            return None, f"{len(part)} samples are no whole number of moments of {channels} channels"
        samples_NC = part.reshape(-1, channels).astype(np.float64) * self._scale
        if self._scale != 1.0:
            return PcmRow(rate, samples_NC.mean(1)), None
        wrong_NC = ~np.isfinite(samples_NC)
        samples_N = np.clip(np.where(wrong_NC, 0.0, samples_NC), -1.0, 1.0).mean(1)
        at = np.flatnonzero(wrong_NC.any(1))
        if not len(at):
            return PcmRow(rate, samples_N), None
        return PcmRow(rate, samples_N, int(wrong_NC.sum()), int(at[0]), int(at[-1]) + 1), None


def sound_column(parts: Sequence[npt.NDArray[np.int16] | None]) -> pa.Array:
    """Return the column ``samples`` of rows of mono sound; null where there is none."""
    there = [part for part in parts if part is not None]
    flat = np.concatenate(there) if there else np.zeros(0, np.int16)
    ends = np.cumsum([0, *(0 if part is None else len(part) for part in parts)], dtype=np.int32)
    missing = [part is None for part in parts]
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.array(flat, pa.int16()), mask=pa.array(missing, pa.bool_()) if any(missing) else None
    )


def sound_cells(samples_N: Tensor) -> dict[str, Any]:
    """Return what a row of sound made of samples in [-1, 1] holds: 16-bit ``samples``, or that they are no numbers."""
    samples_N = samples_N.cpu()
    if not bool(samples_N.isfinite().all()):
        return {"samples": None, "status": NOT_FINITE, "error": NO_SOUND}
    return {"samples": (samples_N.double() * 2**15).round().clamp(-(2**15), 2**15 - 1).short().numpy()}
