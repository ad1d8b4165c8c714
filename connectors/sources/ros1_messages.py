"""Messages of ROS 1 by their fixed layouts, which will not change anymore. Knows no files.

The decoder of ``mcap-ros1-support`` writes Python out of the definitions inside a file and imports it; a recording must not be
able to run code. So what is read here is a table, and a file whose definition differs from it is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

__all__ = ["ros1_decoder"]

# Fields in order. Those at the end that are not used are left out.
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "std_msgs/Header": (("uint32", "seq"), ("time", "stamp"), ("string", "frame_id")),
    "geometry_msgs/Vector3": (("float64", "x"), ("float64", "y"), ("float64", "z")),
    "geometry_msgs/Quaternion": (("float64", "x"), ("float64", "y"), ("float64", "z"), ("float64", "w")),
    "geometry_msgs/Transform": (("geometry_msgs/Vector3", "translation"), ("geometry_msgs/Quaternion", "rotation")),
    "geometry_msgs/TransformStamped": (
        ("std_msgs/Header", "header"),
        ("string", "child_frame_id"),
        ("geometry_msgs/Transform", "transform"),
    ),
    "tf2_msgs/TFMessage": (("geometry_msgs/TransformStamped[]", "transforms"),),
    "tf/tfMessage": (("geometry_msgs/TransformStamped[]", "transforms"),),
    "sensor_msgs/CompressedImage": (("std_msgs/Header", "header"), ("string", "format"), ("uint8[]", "data")),
    "sensor_msgs/Image": (
        ("std_msgs/Header", "header"),
        ("uint32", "height"),
        ("uint32", "width"),
        ("string", "encoding"),
        ("uint8", "is_bigendian"),
        ("uint32", "step"),
        ("uint8[]", "data"),
    ),
    "sensor_msgs/CameraInfo": (
        ("std_msgs/Header", "header"),
        ("uint32", "height"),
        ("uint32", "width"),
        ("string", "distortion_model"),
        ("float64[]", "D"),
        ("float64[9]", "K"),
        ("float64[9]", "R"),
        ("float64[12]", "P"),
    ),
}
_NUMBERS = {"uint8": "B", "uint32": "I", "float64": "d"}


def ros1_decoder(name: str, definition: str) -> Callable[[bytes], dict[str, Any]]:
    """Return what decodes messages ``name`` (package/Name). Raise ``ValueError`` where ``definition`` has other fields."""
    wanted = _LAYOUTS.get(name)
    told = _fields(definition)
    if wanted is None or [_bare(kind, field) for kind, field in wanted] != told[: len(wanted)]:
        raise ValueError(f"the definition of {name} in the file is not that of ROS 1; its fields are {told}")
    return lambda data: _Bytes(data).message(name)


def _fields(definition: str) -> list[tuple[str, str]]:
    """Return type and name of each field of the first message in a definition, constants left out, types without package."""
    found = []
    for line in definition.split("\n====")[0].splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 2 and "=" not in line.partition("#")[0]:
            found.append(_bare(*words))
    return found


def _bare(kind: str, name: str) -> tuple[str, str]:
    return kind.rpartition("/")[2], name


class _Bytes:
    """Reads one message from its start: little-endian, nothing aligned."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def message(self, name: str) -> dict[str, Any]:
        return {field: self._value(kind) for kind, field in _LAYOUTS[name]}

    def _value(self, kind: str) -> Any:
        if kind.endswith("]"):
            bare, _, length = kind[:-1].partition("[")
            return self._values(bare, int(length) if length else self._number("I"))
        if kind == "string":
            return self._take(self._number("I")).decode("utf-8", "replace")
        if kind == "time":
            return {"secs": self._number("I"), "nsecs": self._number("I")}
        return self._number(_NUMBERS[kind]) if kind in _NUMBERS else self.message(kind)

    def _values(self, kind: str, count: int) -> Any:
        if kind == "uint8":
            return self._take(count)
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            return struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(code)))
        return [self.message(kind) for _ in range(count)]

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ValueError(f"the message ends after {len(self._data)} bytes, and {end} are needed")
        part, self._at = self._data[self._at : end], end
        return part
