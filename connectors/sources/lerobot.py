"""LeRobot data sets (versions 3 and 2.1) as RGB-D streams, one stream per episode, with actions, states and instructions.

Images stay the bytes of the table; videos are decoded by time. Depth is 16-bit PNG of millimeters, or a video of 12-bit codes.
Most data sets hold no camera: give it as an option; without poses, coordinates are the camera's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.base import Position, Reader, Source
from connectors.errors import ConfigError, SourceError, nearest
from connectors.options import REQUIRED, option
from connectors.records import RGBD
from connectors.sources.event_time import parse_start_time
from connectors.sources.files import digest_of
from connectors.sources.lerobot_layout import Episode, LeRobotLayout
from connectors.sources.paced import ReplayOptions
from connectors.sources.rgbd_cameras import camera_matrix, require_camera
from connectors.sources.rgbd_rows import RgbdBatch
from connectors.sources.video_times import FramesByTime

__all__ = ["DEMONSTRATION", "LeRobotOptions", "LeRobotSource"]

DEMONSTRATION = pa.schema(
    [
        *RGBD,
        pa.field("episode", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("state", pa.list_(pa.float32())),
        pa.field("action", pa.list_(pa.float32())),
    ],
    metadata=RGBD.metadata,
)
"""``rgbd.v1`` with what a demonstration has besides."""


@dataclass(frozen=True, kw_only=True)
class LeRobotOptions(ReplayOptions):
    """Options of the source ``lerobot``."""

    path: str = option(REQUIRED, "Folder of the data set, the one that holds meta/info.json.", path=True)
    episodes: list[int] | None = option(None, "Numbers of the episodes to read; default: all.")
    color: str | None = option(None, "Feature of the color images; needed where there are several cameras.")
    depth: str | None = option(None, "Feature of the depth; needed where there are several. Without any, depth is null.")
    depth_scale: float = option(1000.0, "Units per meter of depth that is stored as images.", gt=0)
    camera: list[float] | None = option(None, "fx, fy, cx, cy in px of all frames, where no feature holds them.")
    intrinsics: str | None = option(None, "Feature of 9 numbers: the camera matrix of each frame, row by row.")
    pose: str | None = option(None, "Feature of 16 numbers: the pose of each frame, camera to world, row by row.")
    state: str = option("observation.state", "Feature of the robot's state.")
    action: str = option("action", "Feature of the action.")
    start_time: str | None = option(None, "Added to event times, ISO 8601; nothing for 1970-01-01.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_time is not None:
            parse_start_time(self.start_time)
        require_camera(self.camera)
        if self.camera is not None and self.intrinsics is not None:
            raise ConfigError("camera and intrinsics both say what the camera is; remove one")


class LeRobotSource(Source):
    """A LeRobot data set; splits are its episodes, each a stream of its own."""

    Options = LeRobotOptions
    options: LeRobotOptions
    bulky = True

    def __init__(self, options: LeRobotOptions) -> None:
        super().__init__(options)
        self._layout: LeRobotLayout | None = None

    @property
    def schema(self) -> pa.Schema:
        """``rgbd.v1`` with ``episode``, ``instruction``, ``state`` and ``action``."""
        return DEMONSTRATION

    def splits(self) -> list[str]:
        """List the stream ids, one per episode."""
        known = self._read().episodes
        wanted = list(known) if self.options.episodes is None else self.options.episodes
        absent = [index for index in wanted if index not in known]
        if absent:
            raise SourceError(f"episodes: {self.options.path!r} has no {absent}; it has {len(known)}, from 0 on")
        return [_name(index) for index in wanted]

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> Reader:
        """Open an episode."""
        layout = self._read()
        named = {_name(index): episode for index, episode in layout.episodes.items()}
        if split not in named:
            raise SourceError(f"{split!r} is gone from {self.options.path!r}{nearest(split, named)}; there are {len(named)}")
        return _EpisodeReader(layout, named[split], split, self.options, position)

    def _read(self) -> LeRobotLayout:
        if self._layout is None:
            self._layout = LeRobotLayout(Path(self.options.path).expanduser())
        return self._layout


def _name(index: int) -> str:
    return f"episode_{index:06d}"


class _EpisodeReader(Reader):
    """Reads one episode. Position: the next row, and a digest of the files."""

    def __init__(
        self, layout: LeRobotLayout, episode: Episode, stream_id: str, options: LeRobotOptions, position: Position | None
    ) -> None:
        self.closes: Sequence[str] = (stream_id,)
        self.unread: dict[str, str] = {}
        self._layout, self._episode, self._stream_id, self._options = layout, episode, stream_id, options
        self._start_us = parse_start_time(options.start_time) if options.start_time else 0
        self._color = layout.find(options.color, layout.cameras, "color")
        if self._color is None:
            raise SourceError(f"{str(layout.root)!r} holds no images; it has {sorted(layout.features)}")
        self._depth = layout.find(options.depth, layout.depths, "depth")
        depth = self._depth
        self._codes = layout.depth_codes(depth) if depth is not None and depth in episode.videos else None
        for name in (options.intrinsics, options.pose):
            if name is not None:
                layout.find(name, list(layout.features), "intrinsics and pose")
        self._files = [episode.data, *(piece.file for piece in episode.videos.values())]
        self._digest = digest_of(self._files)
        if position is not None and position["digest"] != self._digest:
            raise SourceError(
                f"the files of {stream_id!r} in {str(layout.root)!r} have changed since the position was recorded; put the old "
                "ones back, or start over with another state folder"
            )
        self._matrix = None if options.camera is None else camera_matrix(options.camera)
        self._next = int(position["row"]) if position is not None else 0
        self._rows = self._table()
        self._videos: dict[str, FramesByTime] = {}
        self.exhausted = self._next >= len(self._rows)

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next frames; None once the episode has ended."""
        batch = RgbdBatch(self._stream_id, DEMONSTRATION, max_rows, max_bytes)
        while self._next < len(self._rows) and batch.fits(self._size()):
            self._add(batch, self._rows[self._next])
            self._next += 1
        self.exhausted = self._next >= len(self._rows)
        return batch.finish()

    def position(self) -> Position:
        """Return the next row and what identifies the files."""
        return {"row": self._next, "digest": self._digest}

    def total_rows(self) -> int:
        """Return the episode's length."""
        return len(self._rows)

    def close(self) -> None:
        """Close the videos."""
        for video in self._videos.values():
            video.close()
        self._videos = {}

    def _table(self) -> list[dict[str, Any]]:
        """Return the rows of the episode; images are looked at when they are due."""
        file = self._episode.data
        try:
            table = pq.read_table(file, filters=[("episode_index", "=", self._episode.index)])
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{str(file)!r} cannot be read: {error}") from error
        if table.num_rows != self._episode.length:
            raise SourceError(
                f"{str(file)!r} holds {table.num_rows} rows of episode {self._episode.index}, the metadata say "
                f"{self._episode.length}; copy the data set again"
            )
        rows: list[dict[str, Any]] = table.sort_by("frame_index").to_pylist()
        return rows

    def _size(self) -> int:
        """Estimate the bytes of a row: decoded pixels of a video, or an image of the usual size."""
        shape = self._layout.features[self._color or ""].get("shape") or (480, 640, 3)
        return int(np.prod(shape)) * (1 if self._color in self._episode.videos else 0) or 1 << 16

    def _add(self, batch: RgbdBatch, row: Mapping[str, Any]) -> None:
        number, options = int(row["frame_index"]), self._options
        moment_s = float(row["timestamp"])
        time_us = self._start_us + round(number * 1e6 / self._layout.fps)  # the column is float32: too coarse for hours
        more = {
            "episode": self._stream_id,
            "instruction": self._layout.tasks.get(int(row.get("task_index", -1))),
            "state": row.get(options.state),
            "action": row.get(options.action),
        }
        try:
            intrinsics = self._numbers(row, options.intrinsics, 9)
            common: dict[str, Any] = {
                "intrinsics": self._matrix if intrinsics is None else intrinsics,
                "pose": self._numbers(row, options.pose, 16),
                "more": more,
            }
            color = self._pixels(self._color or "", row, moment_s)
            depth = None if self._depth is None else self._pixels(self._depth, row, moment_s)
            scale = 1.0 if self._codes is not None else options.depth_scale
            batch.add(number, time_us, image=color, depth=depth, depth_scale=scale, **common)
        except ValueError as error:
            self.unread[f"{self._stream_id}/{number}"] = str(error)
            batch.add_error(number, time_us, f"frame {number}: {error}")

    def _numbers(self, row: Mapping[str, Any], name: str | None, count: int) -> np.ndarray[Any, Any] | None:
        if name is None:
            return None
        values = np.asarray(row.get(name), np.float64).ravel()
        if values.size != count:
            raise ValueError(f"{name} has {values.size} numbers; it must be {count}, row by row")
        return values

    def _pixels(self, name: str, row: Mapping[str, Any], moment_s: float) -> bytes | np.ndarray[Any, Any]:
        """Return an image's bytes, or a video's pixels: RGB, or depth in meters."""
        piece = self._episode.videos.get(name)
        if piece is not None:
            if name not in self._videos:
                tolerance_s = 0.5 / self._layout.fps
                self._videos[name] = FramesByTime(piece.file, tolerance_s, is_depth=name == self._depth)
            frame = self._videos[name].at(piece.start_s + moment_s)
            return self._codes.meters(frame) if name == self._depth and self._codes is not None else frame
        cell = row.get(name)
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if data is None and isinstance(cell, Mapping) and cell.get("path"):
            try:
                data = (self._layout.root / cell["path"]).read_bytes()
            except OSError as error:
                raise ValueError(f"{name}: {error}") from error
        if not isinstance(data, bytes) or not data:
            raise ValueError(f"{name} holds no image")
        return data
