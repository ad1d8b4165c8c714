"""Small MCAP recordings for tests, written by MCAP's own writers: ROS 2, ROS 1 and Foxglove, the frames of ``rgbd_folders``."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.writer import CompressionType, Writer
from rgbd_folders import HEIGHT, MATRIX, WIDTH, color, depth, pose

START_S = 1_700_000_000
COLOR, DEPTH, INFO = "/camera/color/image_raw", "/camera/aligned_depth_to_color/image_raw", "/camera/color/camera_info"
FRAME, BODY, WORLD = "camera_color_optical_frame", "body", "base_link"

BODY_IN_CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])
"""The fixed mount: axes of a robot (x forward) seen from those of a camera (z forward)."""

_HEADER = "================\nMSG: std_msgs/Header\n{}builtin_interfaces/Time stamp\nstring frame_id\n"
_MOVED = (
    "================\nMSG: geometry_msgs/TransformStamped\n"
    "std_msgs/Header header\nstring child_frame_id\nTransform transform\n"
    "================\nMSG: geometry_msgs/Transform\nVector3 translation\nQuaternion rotation\n"
    "================\nMSG: geometry_msgs/Vector3\nfloat64 x\nfloat64 y\nfloat64 z\n"
    "================\nMSG: geometry_msgs/Quaternion\nfloat64 x\nfloat64 y\nfloat64 z\nfloat64 w\n"
)
_IMAGE = "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\nuint8[] data\n"
_PACKED = "std_msgs/Header header\nstring format\nuint8[] data\n"
_CAMERA = (
    "std_msgs/Header header\nuint32 height\nuint32 width\nstring distortion_model\nfloat64[] {}\nfloat64[9] {}\nfloat64[9] {}\n"
    "float64[12] {}\nuint32 binning_x\nuint32 binning_y\n"
)


@dataclass(frozen=True)
class Said:
    """One message: topic, kind (image, packed, camera, transforms), when it was recorded, and its content."""

    topic: str
    kind: str
    time_s: float
    content: dict[str, Any] = field(hash=False)


def stamp(time_s: float) -> tuple[int, int]:
    """Return seconds and nanoseconds."""
    microseconds = round(time_s * 1e6)
    return microseconds // 1_000_000, microseconds % 1_000_000 * 1000


def image(
    topic: str, time_s: float, encoding: str, pixels: np.ndarray, *, frame: str = FRAME, big: bool = False, fill: int = 0
) -> Said:
    """Say an image of raw pixels, with ``fill`` bytes at the end of each row."""
    rows = pixels.astype(pixels.dtype.newbyteorder(">")) if big else pixels
    flat = rows.reshape(len(rows), -1).copy().view(np.uint8)
    data = np.pad(flat, ((0, 0), (0, fill)), constant_values=77)
    content = {"frame": frame, "stamp": time_s, "height": pixels.shape[0], "width": pixels.shape[1], "encoding": encoding}
    return Said(topic, "image", time_s, content | {"big": big, "step": data.shape[1], "data": data.tobytes()})


def packed(topic: str, time_s: float, kind: str, data: bytes, *, frame: str = FRAME) -> Said:
    """Say a compressed image."""
    return Said(topic, "packed", time_s, {"frame": frame, "stamp": time_s, "format": kind, "data": data})


def camera(
    topic: str, time_s: float, matrix: np.ndarray = MATRIX, *, frame: str = FRAME, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Said:
    """Say a camera whose rectified images have twice the focal length."""
    rectified = np.diag([2.0, 2.0, 1.0]) @ matrix
    content = {"frame": frame, "stamp": time_s, "height": size[0], "width": size[1], "k": matrix.ravel().tolist()}
    return Said(topic, "camera", time_s, content | {"p": np.c_[rectified, np.zeros(3)].ravel().tolist()})


def transform(topic: str, time_s: float, parent: str, child: str, matrix: np.ndarray) -> Said:
    """Say one transform."""
    content = {"stamp": time_s, "parent": parent, "child": child, "place": matrix[:3, 3].tolist(), "turn": quaternion(matrix)}
    return Said(topic, "transforms", time_s, content)


def quaternion(matrix: np.ndarray) -> list[float]:
    """Return x, y, z, w of a rotation, by its axis and angle."""
    angle = math.acos(max(-1.0, min(1.0, (np.trace(matrix[:3, :3]) - 1) / 2)))
    if angle < 1e-12:
        return [0.0, 0.0, 0.0, 1.0]
    m = matrix
    axis = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]) / (2 * math.sin(angle))
    return [*(axis * math.sin(angle / 2)).tolist(), math.cos(angle / 2)]


def body_at(number: float) -> np.ndarray:
    """Return where the body is in the world when frame ``number`` is taken, so that the camera is at ``rgbd_folders.pose``."""
    return pose(number) @ BODY_IN_CAMERA  # type: ignore[arg-type]


def frames(count: int = 4, *, depth_shift_s: float = 0.012, depth_frame: str = FRAME) -> list[Said]:
    """Say a recording at 10 Hz: color, depth, one camera info, a moving body with a fixed mount."""
    said = [transform("/tf_static", START_S - 1, BODY, FRAME, np.linalg.inv(BODY_IN_CAMERA)), camera(INFO, START_S - 0.5)]
    for number in range(count):
        time_s = START_S + 0.1 * number
        said.append(image(COLOR, time_s, "rgb8", color(number)))
        said.append(image(DEPTH, time_s + depth_shift_s, "16UC1", depth(number), frame=depth_frame))
    for half in range(-1, 2 * count):
        number = half / 2 + 0.25  # between the frames
        said.append(transform("/tf", START_S + 0.1 * number, WORLD, BODY, body_at(number)))
    return sorted(said, key=lambda each: each.time_s)


# Writers


def write(path: Path, said: Iterable[Said], flavor: str = "ros2", **options: Any) -> Path:
    """Write messages. ``flavor``: ros2, ros1, protobuf or json; ``options`` go to MCAP's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = {"ros2": _Ros2, "ros1": _Ros1, "protobuf": _Protobuf, "json": _Json}[flavor]()
    with path.open("wb") as file:
        writer = Writer(file, **{"chunk_size": 4096, "compression": CompressionType.ZSTD, **options})
        writer.start()
        schemas: dict[str, int] = {}
        channels: dict[str, int] = {}
        for each in said:
            name, schema_encoding, definition = encode.schemas[each.kind]
            if name not in schemas:
                schemas[name] = writer.register_schema(name, schema_encoding, definition)
            if each.topic not in channels:
                channels[each.topic] = writer.register_channel(each.topic, encode.message_encoding, schemas[name])
            time_ns = round(each.time_s * 1e6) * 1000
            writer.add_message(channels[each.topic], time_ns, encode.data(each), time_ns)
        writer.finish()
    return path


class _Ros2:
    message_encoding = "cdr"

    def __init__(self) -> None:
        from mcap_ros2._dynamic import serialize_dynamic

        texts = {
            "image": ("sensor_msgs/msg/Image", _IMAGE + _HEADER.format("")),
            "packed": ("sensor_msgs/msg/CompressedImage", _PACKED + _HEADER.format("")),
            "camera": ("sensor_msgs/msg/CameraInfo", _CAMERA.format("d", "k", "r", "p") + _HEADER.format("")),
            "transforms": (
                "tf2_msgs/msg/TFMessage",
                "geometry_msgs/TransformStamped[] transforms\n" + _MOVED + _HEADER.format(""),
            ),
        }
        self.schemas = {kind: (name, "ros2msg", text.encode()) for kind, (name, text) in texts.items()}
        self._encoders: dict[str, Callable[[Any], bytes]] = {
            kind: serialize_dynamic(name, text)[name] for kind, (name, text) in texts.items()
        }

    def data(self, said: Said) -> bytes:
        c = said.content
        sec, nanosec = stamp(c["stamp"])
        header = {"stamp": {"sec": sec, "nanosec": nanosec}, "frame_id": c.get("frame", c.get("parent"))}
        if said.kind == "transforms":
            place, turn = dict(zip("xyz", c["place"], strict=True)), dict(zip("xyzw", c["turn"], strict=True))
            moved = {"translation": place, "rotation": turn}
            return self._encoders["transforms"](
                {"transforms": [{"header": header, "child_frame_id": c["child"], "transform": moved}]}
            )
        return self._encoders[said.kind](
            {**c, "header": header, "is_bigendian": int(c.get("big", False)), "d": [], "r": [0.0] * 9}
        )


class _Ros1:
    """By hand: every field in order, little-endian, nothing aligned."""

    message_encoding = "ros1"

    def __init__(self) -> None:
        head = "=" * 80 + "\nMSG: std_msgs/Header\nuint32 seq\ntime stamp\nstring frame_id\n"
        image_text = _IMAGE.replace("std_msgs/Header", "Header")
        image_text = "# An image\nuint8 SOMETHING=3 # a constant\n" + image_text.replace("\n", "   # why\n", 1)
        texts = {
            "image": ("sensor_msgs/Image", image_text + head),
            "packed": ("sensor_msgs/CompressedImage", _PACKED + head),
            "camera": ("sensor_msgs/CameraInfo", _CAMERA.format("D", "K", "R", "P") + head),
            "transforms": ("tf2_msgs/TFMessage", "geometry_msgs/TransformStamped[] transforms\n" + _MOVED + head),
        }
        self.schemas = {kind: (name, "ros1msg", text.encode()) for kind, (name, text) in texts.items()}

    def data(self, said: Said) -> bytes:
        c = said.content

        def text(value: str) -> bytes:
            return struct.pack("<I", len(value)) + value.encode()

        def blob(value: bytes) -> bytes:
            return struct.pack("<I", len(value)) + value

        head = struct.pack("<III", 5, *stamp(c["stamp"])) + text(c.get("frame", c.get("parent", "")))
        if said.kind == "image":
            sizes = struct.pack("<II", c["height"], c["width"])
            return head + sizes + text(c["encoding"]) + struct.pack("<BI", c["big"], c["step"]) + blob(c["data"])
        if said.kind == "packed":
            return head + text(c["format"]) + blob(c["data"])
        if said.kind == "camera":
            numbers = struct.pack("<I30d", 0, *c["k"], *[0.0] * 9, *c["p"])
            return head + struct.pack("<II", c["height"], c["width"]) + text("plumb_bob") + numbers + struct.pack("<II", 1, 1)
        return struct.pack("<I", 1) + head + text("/" + c["child"]) + struct.pack("<7d", *c["place"], *c["turn"])


class _Json:
    message_encoding = "json"

    def __init__(self) -> None:
        names = {
            "image": "RawImage",
            "packed": "CompressedImage",
            "camera": "CameraCalibration",
            "transforms": "FrameTransform",
        }
        self.schemas = {kind: (f"foxglove.{name}", "jsonschema", b"{}") for kind, name in names.items()}

    def data(self, said: Said) -> bytes:
        return json.dumps(foxglove(said, ("sec", "nsec"), lambda data: base64.b64encode(data).decode(), str.upper)).encode()


def foxglove(said: Said, names: tuple[str, str], data: Callable[[bytes], Any], letter: Callable[[str], str]) -> dict[str, Any]:
    """Return the fields of a message in Foxglove's names."""
    c = said.content
    made: dict[str, Any] = {"timestamp": dict(zip(names, stamp(c["stamp"]), strict=True))}
    if said.kind == "transforms":
        made |= {"parent_frame_id": c["parent"], "child_frame_id": c["child"]}
        made |= {
            "translation": dict(zip("xyz", c["place"], strict=True)),
            "rotation": dict(zip("xyzw", c["turn"], strict=True)),
        }
        return made
    made["frame_id"] = c["frame"]
    if said.kind == "camera":
        return made | {"height": c["height"], "width": c["width"], letter("k"): c["k"], letter("p"): c["p"], letter("d"): []}
    made["data"] = data(c["data"])
    if said.kind == "packed":
        return made | {"format": c["format"]}
    return made | {name: c[name] for name in ("height", "width", "encoding", "step")}


class _Protobuf:
    message_encoding = "protobuf"

    def __init__(self) -> None:
        file = descriptor_pb2.FileDescriptorProto(name="made.proto", package="foxglove", syntax="proto3")
        kinds = {"s": 9, "u": 13, "b": 12, "d": 1, "i": 3, "n": 5}  # string, uint32, bytes, double, int64, int32

        def message(name: str, **fields: str) -> None:
            made = file.message_type.add(name=name)
            for number, (label, kind) in enumerate(fields.items(), start=1):
                one = made.field.add(name=label, number=number, label=3 if kind.startswith("*") else 1)
                if kind.lstrip("*") in kinds:
                    one.type = kinds[kind.lstrip("*")]
                else:
                    one.type, one.type_name = 11, f".foxglove.{kind}"

        message("Time", seconds="i", nanos="n")
        message("Vector3", x="d", y="d", z="d")
        message("Quaternion", x="d", y="d", z="d", w="d")
        message("RawImage", timestamp="Time", frame_id="s", width="u", height="u", encoding="s", step="u", data="b")
        message("CompressedImage", timestamp="Time", frame_id="s", data="b", format="s")
        message("CameraCalibration", timestamp="Time", frame_id="s", width="u", height="u", D="*d", K="*d", R="*d", P="*d")
        moved = {"translation": "Vector3", "rotation": "Quaternion"}
        message("FrameTransform", timestamp="Time", parent_frame_id="s", child_frame_id="s", **moved)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._pool = pool
        definition = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
        self.schemas = {kind: (name, "protobuf", definition) for kind, (name, _, _) in _Json().schemas.items()}

    def data(self, said: Said) -> bytes:
        kind = self._pool.FindMessageTypeByName(self.schemas[said.kind][0])
        fields = foxglove(said, ("seconds", "nanos"), lambda data: data, str.upper)
        data: bytes = message_factory.GetMessageClass(kind)(**fields).SerializeToString()
        return data


def png(pixels: np.ndarray) -> bytes:
    """Encode as PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(rgb: np.ndarray) -> bytes:
    """Encode as JPEG."""
    return cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()
