"""Folders of RGB-D frames, one stream per folder: TUM RGB-D, Open3D and Redwood, 7-Scenes and tsdf-fusion.

Color and depth pass through as the bytes of their files. A frame whose color cannot be read, or that has no pose where the
folder has a trajectory, becomes a row with ``error``; one without depth stays, with null depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.errors import SourceError, nearest
from connectors.options import REQUIRED, option
from connectors.records import RGBD
from connectors.sources.event_time import parse_start_time
from connectors.sources.files import digest_of, expand, name_streams, natural_key
from connectors.sources.paced import ReplayOptions
from connectors.sources.rgbd_cameras import require_camera
from connectors.sources.rgbd_layouts import Layout, RgbdFolder, RgbdFrame, is_rgbd_folder, list_folder
from connectors.sources.rgbd_rows import RgbdBatch

__all__ = ["RgbdOptions", "RgbdSource"]

_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class RgbdOptions(ReplayOptions):
    """Options of the source ``rgbd``."""

    path: str | list[str] = option(
        REQUIRED, "Folder of one recording, folder whose sub-folders are recordings, glob, or a list of these.", path=True
    )
    stream_names: Literal["stem", "path"] = option(
        "stem", "Stream id of a folder: its name, or its path below the common folder where names repeat."
    )
    layout: Layout = option("auto", "How files are laid out; `auto` tells it from the names of the files.")
    camera: list[float] | None = option(
        None, "fx, fy, cx, cy in px; default: the folder's camera file, else what the layout's cameras are known to have."
    )
    depth_scale: float | None = option(
        None, "Depth units per meter; default: the camera file's, else 5000 for TUM and 1000 for the others.", gt=0
    )
    trajectory: str | None = option(None, "File of the poses inside the folder; needed where there are several .log files.")
    pair_ms: float = option(
        20.0, "TUM: depth goes with the color frame nearest in time, at most this far off.", unit="ms", ge=0
    )
    max_pose_gap_s: float = option(
        0.2, "TUM: no pose is interpolated between two that are further apart; the frame's row says so.", unit="s", gt=0
    )
    fps: float = option(30.0, "Frames per second of event time where the layout has no times (all but TUM).", unit="1/s", gt=0)
    start_time: str | None = option(None, "Added to event times, ISO 8601; nothing for 1970-01-01.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_time is not None:
            parse_start_time(self.start_time)
        require_camera(self.camera)


class RgbdSource(Source):
    """Recorded RGB-D folders; splits are folders and are called like their streams."""

    Options = RgbdOptions
    options: RgbdOptions
    bulky = True

    def __init__(self, options: RgbdOptions) -> None:
        super().__init__(options)
        self._folders: dict[str, Path] | None = None

    @property
    def schema(self) -> pa.Schema:
        """``rgbd.v1``."""
        return RGBD

    def splits(self) -> list[str]:
        """List the stream ids, one per folder."""
        if self._folders is None:
            self._folders = name_streams(self._list(), self.options.stream_names)
        return list(self._folders)

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> Reader:
        """Open a folder."""
        self.splits()
        folders = self._folders or {}
        if split not in folders:
            raise SourceError(f"recording {split!r} is gone{nearest(split, folders)}; there are {len(folders)}")
        options = self.options
        listed = list_folder(
            folders[split],
            options.layout,
            camera=options.camera,
            depth_scale=options.depth_scale,
            trajectory=options.trajectory,
            pair_ms=options.pair_ms,
            max_pose_gap_s=options.max_pose_gap_s,
        )
        return _RgbdReader(listed, folders[split], split, options, position)

    def _list(self) -> list[Path]:
        fits = is_rgbd_folder if self.options.layout == "auto" else Path.is_dir
        items = [self.options.path] if isinstance(self.options.path, str) else list(self.options.path)
        found: dict[Path, None] = {}
        for item in items:
            place = Path(item).expanduser()
            if place.is_dir() and is_rgbd_folder(place):
                found[place.absolute()] = None
                continue
            what = "RGB-D recordings (TUM, Open3D or 7-Scenes layout)"
            found |= dict.fromkeys(path.absolute() for path in expand(item, lambda path: path.is_dir() and fits(path), what))
        return sorted(found, key=natural_key)


class _RgbdReader(Reader):
    """Reads one folder. Position: the next frame's number, and a digest of all files."""

    def __init__(self, folder: RgbdFolder, path: Path, stream_id: str, options: RgbdOptions, position: Position | None) -> None:
        self.closes: Sequence[str] = (stream_id,)
        self.unread: dict[str, str] = {}
        self._folder, self._path, self._stream_id, self._fps = folder, path, stream_id, options.fps
        self._start_us = parse_start_time(options.start_time) if options.start_time else 0
        files = [file for frame in folder.frames for file in (frame.color, frame.depth) if file is not None]
        self._digest = digest_of([*files, *folder.texts])
        if position is not None and position["digest"] != self._digest:
            raise SourceError(
                f"the files of recording {stream_id!r} in {str(path)!r} have changed since the position was recorded; put the "
                "old ones back, or start over with another state folder"
            )
        self._next = int(position["frame"]) if position is not None else 0
        self.exhausted = self._next >= len(folder.frames)

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next frames; None once the folder has ended."""
        batch = RgbdBatch(self._stream_id, RGBD, max_rows, max_bytes)
        while self._next < len(self._folder.frames) and self._add(batch, self._folder.frames[self._next]):
            self._next += 1
        self.exhausted = self._next >= len(self._folder.frames)
        return batch.finish()

    def position(self) -> Position:
        """Return the next frame and what identifies the files."""
        return {"frame": self._next, "digest": self._digest}

    def total_rows(self) -> int:
        """Return the number of frames."""
        return len(self._folder.frames)

    def close(self) -> None:
        """Nothing is held open between reads."""

    def _add(self, batch: RgbdBatch, frame: RgbdFrame) -> bool:
        """Append a frame if it fits; false otherwise."""
        number = self._next
        offset_us = frame.time_us if frame.time_us is not None else round(number * 1e6 / self._fps)
        time_us = self._start_us + offset_us
        try:
            if frame.problem is not None:
                raise ValueError(frame.problem)
            sizes = [file.stat().st_size for file in (frame.color, frame.depth) if file is not None]
            if max(sizes) > _MAX_FILE_BYTES:
                raise ValueError(f"{max(sizes)} bytes are too many for an image; at most {_MAX_FILE_BYTES}")
            if not batch.fits(sum(sizes)):
                return False
            image, depth = frame.color.read_bytes(), None if frame.depth is None else frame.depth.read_bytes()
            if not image:
                raise ValueError("the color image is empty")
            batch.add(
                number,
                time_us,
                image=image,
                depth=depth,
                depth_scale=self._folder.depth_scale,
                intrinsics=self._folder.intrinsics,
                pose=frame.pose,
            )
        except (OSError, ValueError) as error:
            if not batch.fits(0):
                return False
            name = frame.color.relative_to(self._path) if frame.color.is_relative_to(self._path) else frame.color
            self.unread[f"{self._stream_id}/{name}"] = str(error)
            batch.add_error(number, time_us, f"{name}: {error}")
        return True
