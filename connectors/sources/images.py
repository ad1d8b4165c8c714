"""Folders of images, one stream per folder, in natural order of the file names.

JPEG and PNG pass through as the bytes of the file; other formats are decoded to raw_bgr8. An image that is empty, cut short
or no image at all becomes a row with ``error`` and the next one follows.
"""

# H height, W width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.errors import ConfigError, SourceError, nearest
from connectors.extras import opencv_problem, optional
from connectors.options import REQUIRED, option
from connectors.records import FRAME
from connectors.sources.event_time import parse_start_time
from connectors.sources.files import digest_of, expand, name_streams, natural_key
from connectors.sources.follow import Folder, FollowOptions, changed_ns
from connectors.sources.frames import FrameBatch, FrameMemory
from connectors.sources.image_header import parse_header

cv2 = optional("cv2")

__all__ = ["ImagesOptions", "ImagesReader", "ImagesSource"]

_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"}

_MAX_FILE_BYTES = 256 << 20
"""A larger file is taken for no image: one row must never fill the memory."""


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(FollowOptions):
    """Options of the source ``images``."""

    path: str | list[str] = option(
        REQUIRED,
        "Folder with images, folder whose sub-folders hold images, glob of folders or of images, or a list of these; "
        "one stream per folder.",
        path=True,
    )
    stream_names: Literal["stem", "path"] = option(
        "stem",
        "Stream id of a folder: its name, or its path below the common folder where names repeat.",
    )
    event_time: Literal["fps", "mtime"] = option(
        "fps",
        "fps: image n happened n/fps seconds after start_time; mtime: when its file was last modified.",
    )
    fps: float = option(25.0, "Images per second of event time.", unit="1/s", gt=0)
    start_time: str | None = option(None, "event_time of the first image, ISO 8601; nothing for 1970-01-01.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_time is not None:
            parse_start_time(self.start_time)
        if self.event_time == "mtime" and (self.start_time is not None or self.fps != 25.0):
            raise ConfigError(
                "event_time: mtime leaves fps and start_time without effect; leave them out, or set event_time: fps"
            )


class ImagesSource(Source):
    """Image folders; splits are folders and are called like their streams."""

    Options = ImagesOptions
    options: ImagesOptions
    bulky = True

    def __init__(self, options: ImagesOptions) -> None:
        super().__init__(options)
        self.bounded = not options.follow
        self._folders: dict[str, list[Path]] | None = None

    @property
    def schema(self) -> pa.Schema:
        """``frame.v1``."""
        return FRAME

    def splits(self) -> list[str]:
        """List the stream ids, one per folder."""
        return list(self._streams())

    def discover(self) -> list[str]:
        """Return folders that have appeared since, with ``follow``."""
        if not self.options.follow:
            return []
        known = self._streams()
        new = {name: files for name, files in self._list().items() if name not in known}
        known |= new
        return list(new)

    def grown(self, split: str, position: Position) -> Position | None:
        """Return the position behind the last image where images have come since, or where they are followed from now on."""
        reader = self.open(split, position)
        return None if reader.exhausted else reader.position()

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> ImagesReader:
        """Open a folder. The list of its files is fixed from here on, but with ``follow``."""
        folders = self._streams()
        if split not in folders:
            raise SourceError(f"image folder of stream {split!r} is gone{nearest(split, folders)}; there are {len(folders)}")
        return ImagesReader(folders[split], split, self.options, position)

    def _streams(self) -> dict[str, list[Path]]:
        if self._folders is None:
            self._folders = self._list()
        return self._folders

    def _list(self) -> dict[str, list[Path]]:
        """Group the image files that ``path`` names by folder."""
        by_folder: dict[Path, list[Path]] = {}
        what = "images or folders of images"
        for entry in expand(self.options.path, _is_image_or_folder_of_images, what, may_be_empty=self.options.follow):
            for image in _images_in(entry) if entry.is_dir() else [entry]:
                by_folder.setdefault(image.parent.absolute(), []).append(image)
        names = name_streams(sorted(by_folder, key=natural_key), self.options.stream_names) if by_folder else {}
        return {name: by_folder[folder] for name, folder in names.items()}


class ImagesReader(Reader):
    """Reads one folder. Position: the next file's number and name, and a digest of the whole list (name, size, time).

    With ``follow`` instead: the number of images so far and the name of the last one; the list holds those that wait.
    """

    def __init__(self, files: Sequence[Path], stream_id: str, options: ImagesOptions, position: Position | None) -> None:
        self.closes: Sequence[str] = (stream_id,)
        self._files = files
        self._stream_id = stream_id
        self._options = options
        self._start_us = parse_start_time(options.start_time) if options.start_time else 0
        self._memory = FrameMemory()
        self._folder: Folder | None = None
        self._unread: dict[str, str] = {}
        self._done: str | None = None
        self._gone = 0  # files that are not in the list anymore
        if position is not None and "digest" in position and position["digest"] != digest_of(files[: position["files"]]):
            raise SourceError(
                f"the images of stream {stream_id!r} in {str(files[0].parent)!r} have changed since the position was "
                f"recorded ({position['files']} files then, {len(files)} now; next was {position['name']!r}); put the old "
                "files back and name new ones so that they sort behind them, or start over with another state folder"
            )
        if options.follow:
            self._folder = Folder(str(files[0].parent), _is_image, options.settle_s)
            if position is not None:
                self._gone = int(position["frame"])
                self._folder.newest_ns = int(position.get("newest_ns", 0))
                if "digest" not in position:
                    self._done = position["done"]
                elif self._gone:  # the run did not follow so far
                    self._done = self._folder.name(files[self._gone - 1])
                    self._folder.newest_ns = max(changed_ns(path) for path in files[: self._gone])
            self._next, self._files, self._digest = 0, [], ""
            return
        self._digest = digest_of(files)
        self._next = int(position["frame"]) if position is not None else 0
        self.exhausted = self._next >= len(files)

    @property
    def unread(self) -> Mapping[str, str]:  # type: ignore[override]
        """Images that are none, and with ``follow`` those whose names sort before what was read already."""
        return self._unread | (self._folder.unread if self._folder is not None else {})

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next images; None once the folder has ended."""
        if self._folder is not None and self._next >= len(self._files):
            self._files, self._next = self._folder.after(self._done), 0
        batch = FrameBatch(self._stream_id, FRAME, max_rows, max_bytes, self._memory)
        while self._next < len(self._files) and self._add_next(batch):
            if self._folder is not None:
                self._done = self._folder.name(self._files[self._next])
                self._gone += 1
            self._next += 1
        self.exhausted = self._folder is None and self._next >= len(self._files)
        return batch.finish()

    def position(self) -> Position:
        """Return the next file and what identifies the list."""
        if self._folder is not None:
            return {"frame": self._gone, "done": self._done, "newest_ns": self._folder.newest_ns}
        name = self._files[self._next].name if self._next < len(self._files) else None
        return {"frame": self._next, "name": name, "files": len(self._files), "digest": self._digest}

    def total_rows(self) -> int | None:
        """Return the number of files."""
        return len(self._files) if self._folder is None else None

    def close(self) -> None:
        """Nothing is held open between reads."""

    def _add_next(self, batch: FrameBatch) -> bool:
        """Append the next image if it fits; false otherwise."""
        path = self._files[self._next]
        number = self._next if self._folder is None else self._gone
        time_us = self._start_us + round(number * 1e6 / self._options.fps)
        try:
            status = path.stat()
            if self._options.event_time == "mtime":
                time_us = status.st_mtime_ns // 1000
            if status.st_size > _MAX_FILE_BYTES:
                raise ValueError(f"{status.st_size} bytes are too many for an image; at most {_MAX_FILE_BYTES}")
            if not batch.fits(status.st_size):
                return False
            data = path.read_bytes()
            if not data:
                raise ValueError("the file is empty")
            header = parse_header(data)
            if header is not None:
                batch.add(data, number, time_us, header.encoding, header.height, header.width)
                return True
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError("not an image, or of a format that OpenCV cannot decode")
            if not batch.fits(image.size):
                return False
            height, width = image.shape[:2]
            batch.add(image.reshape(-1), number, time_us, "raw_bgr8", height, width)
        except (OSError, ValueError, cv2.error) as error:
            if not batch.fits(0):
                return False
            problem = opencv_problem(error) if isinstance(error, cv2.error) else str(error)
            self._unread[f"{self._stream_id}/{path.name}"] = problem
            batch.add_error(f"{path.name}: {problem}", sequence=number, time_us=time_us)
        return True


def _images_in(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if _is_image(entry)), key=natural_key)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_image_or_folder_of_images(path: Path) -> bool:
    return _is_image(path) or (path.is_dir() and any(_is_image(entry) for entry in path.iterdir()))
