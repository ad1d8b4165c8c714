"""Frames of many streams as an operator gets them: admitted in the one order, decoded where wanted only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import pyarrow as pa

from connectors.extras import optional
from operators.admission import Admitted, admit_rows
from operators.images import Image, decode_image
from operators.output import OutputRows
from operators.streams import Refusal, Stream, StreamTable

cv2 = optional("cv2")

__all__ = ["admit_frames", "decode_row"]

S = TypeVar("S", bound=Stream)


def admit_frames(
    batch: pa.RecordBatch,
    streams: StreamTable[S],
    out: OutputRows,
    *,
    before_eviction: Callable[[S], None],
    wanted: Callable[[S | None, int], bool] = lambda stream, time_us: True,
    problem: Callable[[Image], str | None] = lambda image: None,
    refusal: Callable[[S, int], Refusal | None] = lambda stream, row: None,
    timeless: Collection[int] = (),
    read_late: bool = False,
) -> Iterator[Admitted[S, Image | None]]:
    """Yield the frames of a FRAME batch that count with their images; see :func:`operators.admission.admit_rows`.

    ``wanted`` says from the stream (None: a new one) and the event time whether a frame is to be decoded; else its content is
    None. ``problem`` says what is wrong with an image.
    """

    def read(row: int, stream: S | None, time_us: int) -> tuple[Image | None, str | None]:
        if not wanted(stream, time_us):
            return None, None
        image, reason = decode_row(batch, row)
        return image, reason or (problem(image) if image is not None else None)

    return admit_rows(
        batch,
        streams,
        out,
        read,
        before_eviction=before_eviction,
        refusal=refusal,
        timeless=timeless,
        read_late=read_late,
    )


def decode_row(batch: pa.RecordBatch, row: int) -> tuple[Image | None, str | None]:
    """Decode one frame, or say why not; exactly one of the two is None."""
    image, encoding, height, width = (batch.column(name)[row] for name in ("image", "encoding", "height", "width"))
    if not image.is_valid:
        return None, "the row has no image"
    try:
        decoded = decode_image(image.as_buffer(), encoding.as_py(), height.as_py(), width.as_py())
    except (ValueError, cv2.error) as error:
        return None, str(error)
    return (decoded, None) if decoded.size else (None, "the image has no pixels")
