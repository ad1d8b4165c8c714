"""Recordings of robots in MCAP as RGB-D streams: images, depth, cameras and transforms of ROS 1, ROS 2 and Foxglove.

One stream per recording: a file, or the folder of a rosbag2 recording with all its files. A file is gone through once when it
is opened, to learn what goes with what; then images are read where they lie. A frame that cannot be used becomes a row with
``error``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.errors import SourceError
from connectors.options import REQUIRED, option
from connectors.records import RGBD
from connectors.sources.files import digest_of, expand, name_streams, natural_key
from connectors.sources.mcap_messages import CameraMessage, ImageMessage, Kind
from connectors.sources.mcap_pixels import color_of, depth_of, fitted
from connectors.sources.mcap_recording import CameraTopic, Clock, ImageTopic, MessageFiles, scan
from connectors.sources.mcap_topics import camera_topic, image_topic
from connectors.sources.paced import ReplayOptions
from connectors.sources.rgbd_cameras import camera_matrix, require_camera
from connectors.sources.rgbd_layouts import associate
from connectors.sources.rgbd_poses import Floats
from connectors.sources.rgbd_rows import RgbdBatch
from connectors.sources.transforms import PosePath

__all__ = ["McapOptions", "McapSource"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class McapOptions(ReplayOptions):
    """Options of the source ``mcap``."""

    path: str | list[str] = option(
        REQUIRED, "File, folder of a rosbag2 recording, folder that holds either, glob, or a list of these.", path=True
    )
    stream_names: Literal["stem", "path"] = option(
        "stem", "Stream id: the name of the file or folder, or its path below the common folder where names repeat."
    )
    color: str | None = option(None, "Topic of the color images; needed where there are several.")
    depth: str | None = option(None, "Topic of the depth, aligned to color; needed where there are several.")
    with_depth: bool = option(True, "False: depth is null, whatever topics there are.")
    camera_info: str | None = option(
        None, "Topic of the camera; default: the one beside the color topic, else the one that names the same frame."
    )
    camera: list[float] | None = option(None, "fx, fy, cx, cy in px of all frames, in place of what the recording says.")
    rectified: bool = option(False, "True where the color images are rectified: the matrix is then that of P and not K.")
    world: str | None = option(
        None, "Frame that poses refer to, such as base_link or map; without it pose is null, coordinates are the camera's."
    )
    camera_frame: str | None = option(
        None, "Frame of the camera (x right, y down, z forward); default: the one that its images name."
    )
    depth_is_aligned: bool = option(
        False, "True where depth is aligned to color although its messages name another frame; else such frames are refused."
    )
    depth_scale: float = option(1000.0, "Units per meter of 16-bit depth; depth in 32-bit numbers is meters.", gt=0)
    time: Clock = option("header", "When something happened: the time in the message's header, or when it was recorded (log).")
    pair_ms: float = option(20.0, "Depth goes with the color image nearest in time, at most this far off.", unit="ms", ge=0)
    max_pose_gap_s: float = option(
        0.2, "No transform is interpolated between two that are further apart; the frame's row says so.", unit="s", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_camera(self.camera)


class McapSource(Source):
    """Recorded MCAP files; splits are recordings and are called like their streams."""

    Options = McapOptions
    options: McapOptions
    bulky = True

    def __init__(self, options: McapOptions) -> None:
        super().__init__(options)
        self._recordings: dict[str, Path] | None = None

    @property
    def schema(self) -> pa.Schema:
        """``rgbd.v1``."""
        return RGBD

    def splits(self) -> list[str]:
        """List the stream ids, one per recording."""
        if self._recordings is None:
            what = "MCAP recordings (.mcap, or a folder of rosbag2)"
            given = [self.options.path] if isinstance(self.options.path, str) else self.options.path
            bags = [Path(item).expanduser() for item in given if _is_bag(Path(item).expanduser())]
            others = [item for item in given if not _is_bag(Path(item).expanduser())]
            found = [*bags, *(expand(others, _is_recording, what) if others else [])]
            self._recordings = name_streams(sorted(found, key=natural_key), self.options.stream_names)
        return list(self._recordings)

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> Reader:
        """Open a recording: go through it once.

        Raise ``SourceError`` where topics, camera or transforms are missing or not certain; its message says what to set.
        """
        self.splits()
        path = (self._recordings or {}).get(split)
        if path is None or not path.exists():
            raise SourceError(f"recording {split!r} is gone from {self.options.path!r}; put it back")
        files = sorted(path.glob("*.mcap"), key=natural_key) if path.is_dir() else [path]
        return _McapReader(files, split, self.options, position)


def _is_bag(path: Path) -> bool:
    """Return whether a folder is one recording of rosbag2."""
    return path.is_dir() and (path / "metadata.yaml").is_file() and any(path.glob("*.mcap"))


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() == ".mcap" if path.is_file() else _is_bag(path)


class _Row(NamedTuple):
    """What a row is made of."""

    time_us: int
    color: int | None = None
    depth: int | None = None
    damage: str | None = None
    """What of a file cannot be read; there is no image then."""


class _McapReader(Reader):
    """Reads one recording. Position: the next row, and a digest of the files."""

    def __init__(self, files: Sequence[Path], stream_id: str, options: McapOptions, position: Position | None) -> None:
        self.closes: Sequence[str] = (stream_id,)
        self._stream_id, self._options = stream_id, options
        self._digest = digest_of(files)
        if position is not None and position["digest"] != self._digest:
            raise SourceError(
                f"the files of recording {stream_id!r} ({', '.join(map(str, files))}) have changed since the position was "
                "recorded; put the old ones back, or start over with another state folder"
            )
        recording = scan(files, self._is_wanted, options.time)
        self.unread: dict[str, str] = {f"{stream_id}/{name}": why for name, why in recording.unread.items()}
        self._files, self._recording = MessageFiles(files), recording
        self._color = image_topic(recording, options.color, "color", files)
        self._depth = image_topic(recording, options.depth, "depth", files) if options.with_depth else None
        self._camera = None if options.camera is not None or self._color is None else self._find_camera(self._color)
        self._matrix = None if options.camera is None else camera_matrix(options.camera)
        self._paths: dict[str, PosePath] = {}
        if options.world is not None and self._color is not None and self._color.is_depth is not None and not recording.damages:
            self._path(options.camera_frame or self._color.frame)
        if recording.transforms.refused:
            self.unread[f"{stream_id}/transforms"] = f"{recording.transforms.refused} hold NaN or no rotation"
        self._rows = self._plan()
        self._next = int(position["row"]) if position is not None else 0
        self.exhausted = self._next >= len(self._rows)

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next frames; None once the recording has ended."""
        batch = RgbdBatch(self._stream_id, RGBD, max_rows, max_bytes)
        while self._next < len(self._rows) and batch.fits(self._size(self._rows[self._next])):
            self._add(batch, self._next, self._rows[self._next])
            self._next += 1
        self.exhausted = self._next >= len(self._rows)
        return batch.finish()

    def position(self) -> Position:
        """Return the next row and what identifies the files."""
        return {"row": self._next, "digest": self._digest}

    def total_rows(self) -> int:
        """Return the number of frames and of what was damaged."""
        return len(self._rows)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    # What goes with what

    def _is_wanted(self, topic: str, kind: Kind) -> bool:
        options = self._options
        if kind == "transforms":
            return options.world is not None
        if kind == "camera":
            return options.camera is None and options.camera_info in (None, topic)
        if options.color is None or (options.depth is None and options.with_depth):
            return True
        return topic in (options.color, options.depth)

    def _find_camera(self, color: ImageTopic) -> CameraTopic | None:
        frame = self._options.camera_frame or color.frame
        found = camera_topic(self._recording, self._options.camera_info, color.name, frame)
        if found is not None and not self._options.rectified and any(message.is_distorted for _, message in found.said):
            logger.warning("stream=%s topic=%s: the lens distorts, which is not corrected", self._stream_id, color.name)
        return found

    def _plan(self) -> list[_Row]:
        """Return the rows by time."""
        rows = [_Row(time_us, damage=why) for time_us, why in self._recording.damages]
        color, depth = self._color, self._depth
        if color is not None:
            images, depths = _usable(color), _usable(depth) if depth is not None else []
            depth_us = [depth.time_us[number] for number in depths] if depth is not None else []
            limit_us = round(self._options.pair_ms * 1000)
            pairs = associate([color.time_us[number] for number in images], depth_us, limit_us)
            partners = {images[image]: depths[partner] for image, partner in pairs.items()}
            rows += [_Row(time_us, number, partners.get(number)) for number, time_us in enumerate(color.time_us)]
        return sorted(rows, key=lambda row: row.time_us)  # stable: of equal times as in the files

    def _path(self, frame: str) -> PosePath:
        if frame not in self._paths:
            if not frame:
                raise SourceError(f"the images of {self._stream_id!r} name no frame; set camera_frame: NAME")
            self._paths[frame] = self._recording.transforms.path(frame, self._options.world or "")
        return self._paths[frame]

    # Rows

    def _size(self, row: _Row) -> int:
        size = self._color.size[row.color] if self._color is not None and row.color is not None else 0
        return size + (self._depth.size[row.depth] if self._depth is not None and row.depth is not None else 0)

    def _add(self, batch: RgbdBatch, sequence: int, row: _Row) -> None:
        try:
            if row.color is None or self._color is None:
                raise ValueError(row.damage)
            if row.color in self._color.problems:
                raise ValueError(f"{self._color.name}: {self._color.problems[row.color]}")
            image = self._files.image(self._recording, self._color, row.color)
            content, height, width = self._named(self._color, color_of, image)
            depth, scale = self._depth_of(row.depth, image, height, width)
            intrinsics, pose = self._intrinsics(row.time_us, height, width), self._pose(row.time_us, image)
            batch.add(sequence, row.time_us, image=content, depth=depth, depth_scale=scale, intrinsics=intrinsics, pose=pose)
        except ValueError as error:
            batch.add_error(sequence, row.time_us, str(error))

    @staticmethod
    def _named(topic: ImageTopic, read: Any, *arguments: Any) -> Any:
        """Call ``read`` and let its error name the topic."""
        try:
            return read(*arguments)
        except ValueError as error:
            raise ValueError(f"{topic.name}: {error}") from error

    def _depth_of(self, number: int | None, color: ImageMessage, height: int, width: int) -> tuple[Any, float | None]:
        if self._depth is None or number is None:
            return None, None
        message = self._files.image(self._recording, self._depth, number)
        if message.frame != color.frame and not self._options.depth_is_aligned:
            raise ValueError(
                f"{self._depth.name}: depth is in the frame {message.frame!r}, color in {color.frame!r}; name a topic of depth "
                "that is aligned to color by depth, or set depth_is_aligned: true if this is"
            )
        content, in_meters = self._named(self._depth, depth_of, message)
        scale = 1.0 if in_meters else self._options.depth_scale
        return self._named(self._depth, fitted, content, height, width), scale

    def _intrinsics(self, time_us: int, height: int, width: int) -> Floats:
        if self._matrix is not None:
            return self._matrix
        if self._camera is None:
            raise ValueError("no camera was said before the damage; set camera: [fx, fy, cx, cy]")
        said: CameraMessage = self._camera.at(time_us)
        values = said.rectified_9 if self._options.rectified else said.matrix_9
        if not (values[0] > 0 and values[4] > 0):
            raise ValueError(
                f"{self._camera.name}: the camera is not calibrated ({list(values)}); set camera: [fx, fy, cx, cy]"
            )
        if (said.height, said.width) not in ((height, width), (0, 0)):
            raise ValueError(
                f"{self._camera.name}: the camera's matrix is of {said.width}x{said.height} px, the image has "
                f"{width}x{height}; set camera: [fx, fy, cx, cy] of the images, or camera_info: the topic that belongs to them"
            )
        return np.array(values).reshape(3, 3)

    def _pose(self, time_us: int, image: ImageMessage) -> Floats | None:
        if self._options.world is None:
            return None
        try:
            path = self._path(self._options.camera_frame or image.frame)
        except SourceError as error:
            raise ValueError(str(error)) from error
        pose, problem = path.at(time_us, round(self._options.max_pose_gap_s * 1e6))
        if problem is not None:
            raise ValueError(problem)
        return pose


def _usable(topic: ImageTopic) -> list[int]:
    return [number for number in range(len(topic.time_us)) if number not in topic.problems]
