"""Pixels of image messages: color as RGB or as the bytes of JPEG and PNG, depth in the forms of ``rgbd.v1``. NumPy only.

What is compressed stays so, except depth that was packed by ROS as inverse 32-bit numbers. Raises ``ValueError`` for what
cannot be used.
"""

# H height, W width, C channels

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.extras import optional
from connectors.sources.image_header import parse_header
from connectors.sources.mcap_messages import ImageMessage

cv2 = optional("cv2")

__all__ = ["color_of", "depth_of", "fitted"]

Pixels = npt.NDArray[Any]

# Encoding → bytes of a pixel, and which of them are red, green and blue.
_COLORS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "8UC3": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "8UC4": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
    "8UC1": (1, [0, 0, 0]),
}
_DEPTHS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
_PACKED = struct.Struct("<iff")
"""In front of depth that is packed by ROS: a number that says nothing here, and the two of the inverse scale."""


def color_of(message: ImageMessage) -> tuple[bytes | Pixels, int, int]:
    """Return a picture as JPEG, PNG or RGB [H, W, 3] uint8, its height and its width."""
    if message.is_compressed:
        header = parse_header(message.data)
        if header is None:
            raise ValueError(f"the compressed image ({message.encoding!r}) is neither JPEG nor PNG; record one of these")
        return message.data, header.height, header.width
    if message.encoding not in _COLORS:
        raise ValueError(f"encoding {message.encoding!r} is not read as color; read are {', '.join(_COLORS)}, JPEG and PNG")
    channels, order = _COLORS[message.encoding]
    pixels_HWC = _rows(message, channels).reshape(message.height, message.width, channels)
    return np.ascontiguousarray(pixels_HWC[..., order]), message.height, message.width


def depth_of(message: ImageMessage) -> tuple[bytes | Pixels, bool]:
    """Return depth as 16-bit PNG or [H, W], uint16 or float32, and whether it is in meters (else in the units of 16 bits)."""
    if message.is_compressed:
        return _compressed_depth(message)
    if message.encoding not in _DEPTHS:
        raise ValueError(f"encoding {message.encoding!r} is not read as depth; read are {', '.join(_DEPTHS)} and 16-bit PNG")
    kind = np.dtype(_DEPTHS[message.encoding]).newbyteorder(">" if message.is_big_endian else "<")
    flat = np.ascontiguousarray(_rows(message, kind.itemsize))
    depth_HW = flat.view(kind).reshape(message.height, message.width)
    return depth_HW.astype(kind.newbyteorder("=")), kind.kind == "f"


def fitted(depth: bytes | Pixels, height: int, width: int) -> bytes | Pixels:
    """Return depth in the size of the color: scaled by the nearest pixel where the aspect is the same.

    Bytes of a PNG stay as they are; whoever decodes them does this.
    """
    if isinstance(depth, bytes) or depth.shape == (height, width):
        return depth
    H, W = depth.shape
    if H * width != W * height:
        raise ValueError(
            f"depth is {W}x{H} px, color {width}x{height}: the aspects differ; use a topic of depth that is aligned to color"
        )
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in ((height, H), (width, W)))
    return np.asarray(depth[rows[:, None], columns])


def _rows(message: ImageMessage, size: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of the pixels, [H, W * size], without what fills the rows up."""
    height, width, step = message.height, message.width, message.step
    if not height or not width or step < width * size or len(message.data) < height * step:
        raise ValueError(
            f"{message.encoding} of {width}x{height} px needs rows of at least {width * size} bytes, "
            f"{height * max(step, width * size)} in all; the message has rows of {step} and {len(message.data)} in all"
        )
    flat: npt.NDArray[np.uint8] = np.frombuffer(message.data, np.uint8, height * step)
    return flat.reshape(height, step)[:, : width * size]


def _compressed_depth(message: ImageMessage) -> tuple[bytes | Pixels, bool]:
    packed = "compressedDepth" in message.encoding
    data = message.data[_PACKED.size :] if packed else message.data
    header = parse_header(data)
    if header is None or header.encoding != "png":
        raise ValueError(f"the compressed depth ({message.encoding!r}) is no PNG; record 'compressedDepth png' or raw depth")
    if not packed or not message.encoding.startswith("32FC1"):
        return data, False
    _, scale, shift = _PACKED.unpack_from(message.data)
    codes_HW = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if codes_HW is None or codes_HW.dtype != np.uint16 or codes_HW.ndim != 2:
        raise ValueError(f"the compressed depth ({message.encoding!r}) cannot be decoded as 16-bit PNG of one channel")
    with np.errstate(divide="ignore", invalid="ignore"):
        meters_HW = scale / (codes_HW.astype(np.float32) - np.float32(shift))
    return np.where(codes_HW == 0, np.float32(np.nan), meters_HW).astype(np.float32), True
