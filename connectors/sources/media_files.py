"""Sources of media files, one stream per file: which there are, which have come since, when a file's time 0 is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from connectors.base import Position, Reader, Source
from connectors.errors import SourceError, nearest
from connectors.options import REQUIRED, option
from connectors.sources.event_time import parse_start_time
from connectors.sources.files import FileStamp, expand, name_streams
from connectors.sources.follow import Folder, FollowOptions

__all__ = ["MediaOptions", "MediaSource"]


@dataclass(frozen=True, kw_only=True)
class MediaOptions(FollowOptions):
    """Options of every source of media files."""

    path: str | list[str] = option(REQUIRED, "File, folder of files, glob, or a list of these; one stream per file.", path=True)
    stream_names: Literal["stem", "path"] = option(
        "stem",
        "Stream id of a file: its name without suffix, or its path below the common folder where names repeat.",
    )
    start_time: str | None = option(
        None,
        "event_time of the container's time 0: an ISO 8601 time (UTC unless it says otherwise), 'mtime' for the file's "
        "modification time, or nothing for 1970-01-01.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_time not in (None, "mtime"):
            parse_start_time(str(self.start_time))

    def epoch_us(self, stamp: FileStamp) -> int:
        """Return the event time of a file's time 0 in microseconds."""
        if self.start_time == "mtime":
            return stamp.mtime_ns // 1000
        return parse_start_time(self.start_time) if self.start_time else 0


class MediaSource(Source):
    """Files; splits are files and are called like their streams."""

    options: MediaOptions
    files: ClassVar[str]
    """What they are called in messages."""
    suffixes: ClassVar[Collection[str]]
    """Those of files to read, in lower case."""

    def __init__(self, options: MediaOptions) -> None:
        super().__init__(options)
        self.bounded = not options.follow
        self._folder = Folder(options.path, self._fits, options.settle_s)
        self._files: dict[str, Path] | None = None

    @abstractmethod
    def reader(self, path: Path, stream_id: str, position: Position | None) -> Reader:
        """Return a reader of a file. A damaged file has one, too: it delivers the row that says so."""

    def splits(self) -> list[str]:
        """List the stream ids, one per file."""
        return list(self._streams())

    def discover(self) -> list[str]:
        """Return the files that have been finished since, with ``follow``."""
        return self._folder.add_new(self._streams()) if self.options.follow else []

    @property
    def unread(self) -> Mapping[str, str]:  # type: ignore[override]
        """Files that share the stream id of another one."""
        return self._folder.unread

    def grown(self, split: str, position: Position) -> Position | None:
        """Return None: a file that was read to its end is over. ``SourceError`` where the file is another one now."""
        path = self._streams()[split]
        FileStamp.of(path).require_read(path, (position["size"], position["mtime_ns"]))
        return None

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> Reader:
        """Open a file."""
        files = self._streams()
        if split not in files:
            raise SourceError(f"file of stream {split!r} is gone{nearest(split, files)}; there are {len(files)} {self.files}")
        return self.reader(files[split], split, position)

    def _fits(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes

    def _streams(self) -> dict[str, Path]:
        if self._files is None:
            paths = self._folder.settled() if self.options.follow else expand(self.options.path, self._fits, self.files)
            self._files = name_streams(paths, self.options.stream_names) if paths else {}
        return self._files
