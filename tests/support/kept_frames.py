"""FRAME batches whose images are kept on a device in the place of their pixels."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import torch
from torch import Tensor

from connectors.device_frames import ENCODING, KeptFrames
from operators.frames import decode_row

__all__ = ["keep"]


def keep(batch: pa.RecordBatch, kept: KeptFrames, place: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> pa.RecordBatch:
    """Return the batch with the handles of its images, which ``place`` puts where they are kept; bad rows stay as they are."""
    images, encodings = batch.column("image").to_pylist(), batch.column("encoding").to_pylist()
    for row in range(batch.num_rows):
        image = decode_row(batch, row)[0]
        if image is not None:
            images[row], encodings[row] = kept.put(place(torch.from_numpy(image)), image.nbytes), ENCODING
    columns = {"image": pa.array(images, pa.binary()), "encoding": pa.array(encodings, pa.string())}
    return pa.RecordBatch.from_arrays(
        [columns.get(name, batch.column(name)) for name in batch.schema.names], schema=batch.schema
    )
