"""Messages of robots as plain values: images, cameras and transforms of ROS 1, ROS 2 and Foxglove, in all their encodings.

The decoders of ROS 2 and Protobuf are those of MCAP's own packages; here names are leveled: ``K`` and ``k``, ``secs`` and
``nanosec``, base64 in JSON. Knows no files and no order of messages.
"""

# H height, W width

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from connectors.extras import MissingExtra, optional
from connectors.sources.ros1_messages import ros1_decoder

mcap_protobuf = optional("mcap_protobuf.decoder")
mcap_ros2 = optional("mcap_ros2.decoder")

__all__ = ["CameraMessage", "Decoder", "ImageMessage", "Kind", "Transform", "decoder_of", "kind_of"]

Kind = Literal["image", "camera", "transforms"]

_KINDS: dict[str, Kind] = {
    "sensor_msgs/Image": "image",
    "sensor_msgs/CompressedImage": "image",
    "sensor_msgs/CameraInfo": "camera",
    "tf2_msgs/TFMessage": "transforms",
    "tf/tfMessage": "transforms",
    "foxglove/RawImage": "image",
    "foxglove/CompressedImage": "image",
    "foxglove/CameraCalibration": "camera",
    "foxglove/FrameTransform": "transforms",
    "foxglove/FrameTransforms": "transforms",
}


@dataclass(frozen=True, slots=True)
class ImageMessage:
    """One image as it was sent."""

    stamp_us: int
    frame: str
    encoding: str
    """Of pixels (``rgb8``, ``16UC1``), or what a compressed image says of itself (``jpeg``, ``16UC1; compressedDepth png``)."""
    data: bytes
    is_compressed: bool
    height: int = 0
    width: int = 0
    step: int = 0
    """Bytes of a row of pixels."""
    is_big_endian: bool = False

    @property
    def is_depth(self) -> bool:
        """Whether this is a depth map and no picture."""
        if self.encoding.startswith(("16UC1", "mono16", "32FC1")) or "compressedDepth" in self.encoding:
            return True
        return self.is_compressed and self.data[:8] == b"\x89PNG\r\n\x1a\n" and self.data[24:26] == b"\x10\x00"  # 16 bits, gray


@dataclass(frozen=True, slots=True)
class CameraMessage:
    """The calibration of a camera."""

    stamp_us: int
    frame: str
    height: int
    width: int
    matrix_9: tuple[float, ...]
    """Of the image as the lens gives it, row by row: K."""
    rectified_9: tuple[float, ...]
    """Of the rectified image, row by row: the left three columns of P."""
    is_distorted: bool


@dataclass(frozen=True, slots=True)
class Transform:
    """One transform: coordinates of the child in the parent's frame."""

    stamp_us: int
    parent: str
    child: str
    place_3: tuple[float, float, float]
    turn_4: tuple[float, float, float, float]
    """Quaternion x, y, z, w."""


Content = ImageMessage | CameraMessage | Sequence[Transform]
Decoder = Callable[[bytes], Content]


def kind_of(schema_name: str) -> Kind | None:
    """Return what messages of a schema are, by its name in ROS 1, ROS 2 or Foxglove; None for all that is not used."""
    return _KINDS.get(_plain(schema_name))


def decoder_of(schema: Any, message_encoding: str) -> Decoder:
    """Return what decodes messages of a schema record of MCAP. The decoder raises ``ValueError`` for messages that are broken.

    Raise ``ValueError`` where the encoding is none of ROS 1, ROS 2 (CDR with ``ros2msg``), Protobuf and JSON.
    """
    name = _plain(schema.name)
    levels: dict[Kind, Callable[[Any, str], Content]] = {"image": _image, "camera": _camera, "transforms": _transforms}
    level = levels[_KINDS[name]]
    chosen = _raw_decoder(schema, message_encoding, name)

    def decoded(data: bytes) -> Content:
        try:
            return level(chosen(data), name)
        except Exception as error:  # whatever a decoder raises on bytes that are no message: struct.error, KeyError, …
            raise ValueError(f"the message cannot be decoded: {type(error).__name__}: {error}") from error

    return decoded


def _raw_decoder(schema: Any, message_encoding: str, name: str) -> Callable[[bytes], Any]:
    if message_encoding == "json":
        return json.loads
    if message_encoding == "ros1" and schema.encoding == "ros1msg":
        return ros1_decoder(name, schema.data.decode("utf-8", "replace"))
    factories = {"cdr": mcap_ros2, "protobuf": mcap_protobuf}
    decode: Callable[[bytes], Any] | None = None
    if message_encoding in factories:
        try:
            decode = factories[message_encoding].DecoderFactory().decoder_for(message_encoding, schema)
        except MissingExtra:
            raise
        except Exception as error:  # of the parsers of definitions: their own kinds, TypeError, KeyError, …
            raise ValueError(f"the schema {schema.name!r} cannot be understood: {type(error).__name__}: {error}") from error
    if decode is None:
        raise ValueError(
            f"messages are {message_encoding!r} with a schema in {schema.encoding!r}; read are cdr with ros2msg, ros1 with "
            "ros1msg, protobuf, and json"
        )
    return decode


def _plain(schema_name: str) -> str:
    """Return package/Name of ``package/msg/Name``, ``package/Name`` and ``package.Name``."""
    parts = schema_name.replace(".", "/").split("/")
    package = "foxglove" if parts[0] == "foxglove_msgs" else parts[0]
    return f"{package}/{parts[-1]}"


def _image(message: Any, name: str) -> ImageMessage:
    stamp_us, frame = _head(message)
    if name.endswith("/CompressedImage"):
        return ImageMessage(stamp_us, frame, str(_get(message, "format")), _bytes(_get(message, "data")), True)
    return ImageMessage(
        stamp_us,
        frame,
        str(_get(message, "encoding")),
        _bytes(_get(message, "data")),
        False,
        int(_get(message, "height")),
        int(_get(message, "width")),
        int(_get(message, "step")),
        bool(_get(message, "is_bigendian", default=False)),
    )


def _camera(message: Any, name: str) -> CameraMessage:
    stamp_us, frame = _head(message)
    matrix = tuple(float(value) for value in _get(message, "k", "K"))
    projection = [float(value) for value in _get(message, "p", "P")]
    lens = [float(value) for value in _get(message, "d", "D", default=())]
    if len(matrix) != 9 or len(projection) not in (0, 12):
        raise ValueError(f"K has {len(matrix)} and P {len(projection)} numbers; they must have 9 and 12")
    rows = [projection[4 * row : 4 * row + 3] for row in range(3)]
    rectified = tuple(value for row in rows for value in row) or (0.0,) * 9
    return CameraMessage(
        stamp_us, frame, int(_get(message, "height")), int(_get(message, "width")), matrix, rectified, any(lens)
    )


def _transforms(message: Any, name: str) -> list[Transform]:
    if name == "foxglove/FrameTransform":
        return [_foxglove_transform(message)]
    if name == "foxglove/FrameTransforms":
        return [_foxglove_transform(each) for each in _get(message, "transforms")]
    found = []
    for each in _get(message, "transforms"):
        stamp_us, parent = _head(each)
        moved = _get(each, "transform")
        found.append(Transform(stamp_us, parent, _frame(_get(each, "child_frame_id")), *_rigid(moved)))
    return found


def _foxglove_transform(message: Any) -> Transform:
    stamp_us = _stamp_us(_get(message, "timestamp"))
    parent, child = (_frame(_get(message, name)) for name in ("parent_frame_id", "child_frame_id"))
    return Transform(stamp_us, parent, child, *_rigid(message))


def _rigid(message: Any) -> tuple[tuple[float, float, float], tuple[float, float, float, float]]:
    place, turn = _get(message, "translation"), _get(message, "rotation")
    x, y, z = (float(_get(place, axis)) for axis in "xyz")
    qx, qy, qz, qw = (float(_get(turn, axis)) for axis in "xyzw")
    return (x, y, z), (qx, qy, qz, qw)


def _head(message: Any) -> tuple[int, str]:
    """Return the stamp in microseconds and the frame of a message of ROS (in its header) or Foxglove."""
    header = _get(message, "header", default=message)
    return _stamp_us(_get(header, "stamp", "timestamp")), _frame(_get(header, "frame_id"))


def _frame(name: Any) -> str:
    return str(name).lstrip("/")  # as tf2 does with names of tf


def _stamp_us(stamp: Any) -> int:
    seconds = int(_get(stamp, "sec", "secs", "seconds"))
    return seconds * 1_000_000 + int(_get(stamp, "nanosec", "nsec", "nsecs", "nanos")) // 1000


_MISSING = object()


def _get(message: Any, *names: str, default: Any = _MISSING) -> Any:
    """Return the first of ``names`` that a message has, which is an object or, of JSON, a mapping."""
    for name in names:
        value = message.get(name, _MISSING) if isinstance(message, dict) else getattr(message, name, _MISSING)
        if value is not _MISSING:
            return value
    if default is _MISSING:
        raise ValueError(f"the message has no {' or '.join(names)}")
    return default


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data is no base64: {error}") from error
    return data if isinstance(data, bytes) else bytes(np.asarray(data, np.uint8))
