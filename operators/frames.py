"""Frames of many streams as an operator gets them: admitted in the one order, decoded to RGB where wanted only.

An image that leaves here is finite, RGB, ``[H, W, 3]``, 0..255, whatever its codec, color order and bit depth were. It lies on
the host, or, of a source that keeps its frames on a device, there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from connectors import device_frames
from connectors.extras import opencv_problem, optional
from models.uploads import upload
from operators.admission import Admitted, admit_rows
from operators.output import OutputRows
from operators.streams import Refusal, Stream, StreamTable

cv2 = optional("cv2")

__all__ = [
    "ENCODINGS",
    "Frame",
    "Image",
    "admit_frames",
    "as_tensors",
    "decode_image",
    "decode_row",
    "frame_of",
    "on_host",
    "stack_frames",
]

S = TypeVar("S", bound=Stream)

ENCODINGS = ("jpeg", "png", "raw_rgb8", "raw_bgr8", "raw_gray8", "raw_f32_rgb")
"""``raw_*``: height·width·channels values, row-major, no padding; ``raw_f32_rgb``: little-endian float32 in 0..255."""

Image = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""On the host."""
Frame = Image | Tensor
"""On the host, or a uint8 tensor where the source keeps its frames."""

_RAW = {"raw_rgb8": ("u1", 3), "raw_bgr8": ("u1", 3), "raw_gray8": ("u1", 1), "raw_f32_rgb": ("<f4", 3)}  # type, channels


def decode_image(data: pa.Buffer | bytes, encoding: str | None, height: int | None, width: int | None) -> Image:
    """Decode one image to a new RGB array: uint8, or float32 for ``raw_f32_rgb``.

    Gray becomes three equal channels, alpha is dropped, 16-bit PNG is scaled to 8 bit, EXIF orientation is applied. Raises
    ``ValueError`` for whatever cannot be used, saying why.
    """
    if encoding in _RAW:
        return _decode_raw(data, encoding, height, width)
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is not supported; use one of {_list(ENCODINGS)}")
    packed = np.frombuffer(data, np.uint8)
    if packed.size == 0:
        raise ValueError(f"the {encoding} image has no bytes")
    try:
        bgr = cv2.imdecode(packed, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # a header that promises more pixels than are allowed
        raise ValueError(f"the {encoding} image of {packed.size} bytes cannot be decoded: {opencv_problem(error)}") from error
    if bgr is None or bgr.size == 0:
        raise ValueError(f"the {encoding} image of {packed.size} bytes cannot be decoded")
    if bgr.dtype == np.uint16:
        bgr = ((bgr.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if bgr.dtype != np.uint8:
        raise ValueError(f"the {encoding} image has {bgr.dtype} pixels; 8 or 16 bits per channel are supported")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _decode_raw(data: pa.Buffer | bytes, encoding: str, height: int | None, width: int | None) -> Image:
    kind, channels = np.dtype(_RAW[encoding][0]), _RAW[encoding][1]
    if not height or not width or height < 0 or width < 0:
        raise ValueError(f"{encoding} needs a positive height and width, got {height}x{width}")
    values = np.frombuffer(data, np.uint8)
    expected = height * width * channels * kind.itemsize
    if values.size != expected:
        raise ValueError(f"{encoding} of {height}x{width} needs {expected} bytes, got {values.size}")
    image = values.view(kind).reshape(height, width, channels)
    if encoding == "raw_f32_rgb":
        # NaN fails both comparisons.
        if not bool(((image >= 0) & (image <= 255)).all()):
            raise ValueError("raw_f32_rgb holds values that are NaN, infinite or outside 0..255")
        return np.array(image, dtype=np.float32)
    if encoding == "raw_gray8":
        return np.repeat(image, 3, axis=2)
    return np.array(image[..., ::-1] if encoding == "raw_bgr8" else image, dtype=np.uint8)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def admit_frames(
    batch: pa.RecordBatch,
    streams: StreamTable[S],
    out: OutputRows,
    *,
    before_eviction: Callable[[S], None],
    wanted: Callable[[S | None, int], bool] = lambda stream, time_us: True,
    problem: Callable[[Frame], str | None] = lambda image: None,
    refusal: Callable[[S, int], Refusal | None] = lambda stream, row: None,
    timeless: Collection[int] = (),
    read_late: bool = False,
) -> Iterator[Admitted[S, Frame | None]]:
    """Yield the frames of a FRAME batch that count with their images; see :func:`operators.admission.admit_rows`.

    ``wanted`` says from the stream (None: a new one) and the event time whether a frame is to be decoded; else its content is
    None. ``problem`` says what is wrong with an image.
    """

    def read(row: int, stream: S | None, time_us: int) -> tuple[Frame | None, str | None]:
        if not wanted(stream, time_us):
            return None, None
        image, reason = frame_of(batch, row)
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


def frame_of(batch: pa.RecordBatch, row: int) -> tuple[Frame | None, str | None]:
    """Decode one frame, or return it where its source keeps it on a device, or say why not; exactly one of the two is None."""
    if batch.column("encoding")[row].as_py() != device_frames.ENCODING:
        return decode_row(batch, row)
    handle, height, width = (batch.column(name)[row].as_py() for name in ("image", "height", "width"))
    frame = device_frames.find(handle)
    if frame is None:
        return None, "the row names a frame that this process does not keep, or not any longer"
    if tuple(frame.shape) != (height, width, 3):
        return None, f"the frame that the row names has the shape {tuple(frame.shape)}, the row says {height}x{width}"
    return frame, None


def as_tensors(images: Sequence[Frame]) -> list[Tensor]:
    """Return images as tensors in one place: on the host, or on the device where a source keeps one of them."""
    tensors = [image if isinstance(image, Tensor) else torch.from_numpy(image) for image in images]
    kept = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return tensors if kept is None else [upload(tensor, kept) for tensor in tensors]


def stack_frames(images: Sequence[Frame]) -> Tensor:
    """Return images of one size as uint8 [F, H, W, 3], in one place as :func:`as_tensors` does; fractions are rounded."""
    whole = [
        image if isinstance(image, Tensor) or image.dtype == np.uint8 else np.rint(image).astype(np.uint8) for image in images
    ]
    return torch.stack(as_tensors(whole))


def on_host(image: Frame) -> Image:
    """Return an image on the host; a copy where it is not there."""
    return image.cpu().numpy() if isinstance(image, Tensor) else image
