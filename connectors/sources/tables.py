"""Recorded tables: what Parquet, CSV, JSON lines and Arrow files have in common.

A format cuts each file into chunks and can go on at any chunk's start; this module names streams, makes records, cuts them
into batches and keeps the position. Memory holds one chunk. A file that cannot be read becomes one row with ``error``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.errors import ConfigError, SourceError, StreambankError, first_line, nearest
from connectors.options import REQUIRED, option
from connectors.sources.casting import plain_type
from connectors.sources.channels import check_channels
from connectors.sources.columns import Layout, parse_type
from connectors.sources.event_time import TimeUnit
from connectors.sources.files import FileStamp, expand, name_streams, natural_key
from connectors.sources.follow import Folder, FollowOptions
from connectors.sources.paced import rows_within

__all__ = ["Chunk", "NoRecords", "TableFormat", "TableOptions", "TableReader", "TableSource"]

logger = logging.getLogger(__name__)

_ONE_SPLIT = "all"
"""Split id where a column names the streams: one split, all files in order."""


@dataclass(frozen=True, kw_only=True)
class TableOptions(FollowOptions):
    """Options of the sources ``parquet``, ``csv``, ``jsonl`` and ``arrow``."""

    path: str | list[str] = option(REQUIRED, "File, folder of files, glob, or a list of these.", path=True)
    stream_id: str | None = option(
        None, "Column that names the stream; nothing: the column 'stream_id' if there is one, else every file is a stream."
    )
    event_time: str | None = option(None, "Column that says when a row happened; nothing: the column 'event_time'.")
    event_time_unit: TimeUnit = option(
        "auto",
        "Notation of event_time: s, ms, us, ns since 1970 UTC; iso (ISO 8601 text); auto for text and time columns; "
        "rows: no column, row n happened n / row_rate seconds after 1970-01-01.",
    )
    row_rate: float = option(1.0, "Rows per second where event_time_unit is rows.", unit="1/s", gt=0)
    sequence: str | None = option(
        None, "Column that counts the rows of a stream; nothing: the column 'sequence' if there is one, else the row number."
    )
    columns: list[str] | dict[str, str] | None = option(
        None, "Columns to read, as a list or as {name: type}; nothing: all, with the types that the files show."
    )
    channels: str | list[str] | None = option(
        None,
        "Columns of numbers to pack into one column `values` (sample.v1), which operators of sensor data take: a list, or all. "
        "Then only `columns` stand beside it.",
    )
    channel: str | None = option(
        None, "Long form, one row per value: the column that names the channel; `channels` then lists its values that are read."
    )
    value: str | None = option(None, "Long form: the column with the value.")
    stream_names: Literal["stem", "path"] = option(
        "stem",
        "Stream id of a file where no column names it: its name without suffix, or its path below the common folder.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.columns, dict):
            for kind in self.columns.values():
                parse_type(kind)
        if self.event_time is not None and self.event_time_unit == "rows":
            raise ConfigError(f"event_time: {self.event_time!r} is not read with event_time_unit: rows; leave one of them out")
        check_channels(self.channels)
        if (self.channel is None) != (self.value is None):
            raise ConfigError("channel: belongs together with value; give both for the long form, or neither")
        if self.channel is not None:
            if not isinstance(self.channels, list):
                raise ConfigError(f"channels: list the channels to read, which are values of the column {self.channel!r}")
            for name, given in (("event_time_unit", self.event_time_unit == "rows"), ("sequence", self.sequence is not None)):
                if given:
                    raise ConfigError(
                        f"{name}: does not go with the long form, where several rows make one sample; leave it out"
                    )
        if self.row_rate != 1.0 and self.event_time_unit != "rows":
            raise ConfigError(f"row_rate: {self.row_rate!r} needs event_time_unit: rows; it is {self.event_time_unit!r}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that follow one another in a file. ``at`` and ``after`` are JSON values only the format understands."""

    rows: pa.RecordBatch
    errors: pa.Array | None
    """Per row what was wrong with it; None if nothing."""
    at: Any
    after: Any


class NoRecords(SourceError):
    """No file holds a record that tells the columns. ``names`` are those that are known all the same."""

    def __init__(self, where: str, names: Sequence[str] = ()) -> None:
        super().__init__(f"{where!r} holds no record from which the columns could be told; is it of this format?")
        self.names = list(names)


class TableFormat(ABC):
    """How to read one kind of file."""

    sparse: ClassVar[bool] = False
    """Whether a record may lack a column, so that one may be declared which the start of the files does not show."""

    def read_as(self, kind: pa.DataType) -> pa.DataType:
        """Return the type to read a column with which is meant to be ``kind``."""
        return plain_type(kind)

    def require(self, columns: pa.Schema) -> None:
        """Raise ``ConfigError`` for a column that cannot be read with its type."""
        return

    @abstractmethod
    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Return the columns of the files. Raise ``SourceError`` if no file tells, ``NoRecords`` if they are fine but empty."""

    @abstractmethod
    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield the rows from ``at`` (None: the start) with ``columns``, in bounded pieces whose cuts depend on ``at`` only.

        Raise any exception for a file that cannot be read on; its first line is what the user gets to see.
        """

    @abstractmethod
    def estimate_rows(self, path: Path) -> int | None:
        """Return about how many rows a file holds."""


class TableSource(Source):
    """Base of the table sources. With a stream column there is one split; otherwise every file is a split and a stream."""

    Options = TableOptions
    options: TableOptions
    suffixes: ClassVar[frozenset[str]]

    def __init__(self, options: TableOptions) -> None:
        super().__init__(options)
        self.bounded = not options.follow
        self._folder = Folder(options.path, self._is_wanted, options.settle_s)
        self._paths: list[Path] | None = None
        self._files: dict[str, Path] | None = None
        self._resolved: Layout | None = None

    @abstractmethod
    def format(self) -> TableFormat:
        """Return how to read the files."""

    @property
    def schema(self) -> pa.Schema:
        """The key columns, the chosen columns, ``error``; with ``channels`` they are sample.v1. Reads the head of the files."""
        return self._layout().schema

    @property
    def unread(self) -> Mapping[str, str]:  # type: ignore[override]
        """Files that share the stream id of another one."""
        return self._folder.unread

    def splits(self) -> list[str]:
        """List one split per file, or one for all where a column names the streams."""
        return [_ONE_SPLIT] if self._layout().stream_id is not None else list(self._named())

    def discover(self) -> list[str]:
        """Return the files that have been finished since, with ``follow``, where a file is a stream."""
        if not self.options.follow or self._layout().stream_id is not None:
            return []
        return self._folder.add_new(self._named())

    def streams(self) -> list[str] | None:
        """Return the files where each is a stream."""
        return self.splits() if self._layout().stream_id is None else None

    def open(self, split: str, position: Position | None) -> TableReader:
        """Open a split; every file is compared with what the position recorded of it."""
        if self._layout().stream_id is not None:
            return TableReader(
                self._format(), self._list(), split, self._layout(), position, self._folder, follow=self.options.follow
            )
        files = self._named()
        if split not in files:
            raise SourceError(f"file of stream {split!r} is gone{nearest(split, files)}; there are {len(files)} files")
        return TableReader(self._format(), [files[split]], split, self._layout(), position, self._folder)

    def grown(self, split: str, position: Position) -> Position | None:
        """Return the position behind the last file where files have come since, or where they are followed from now on."""
        if self._layout().stream_id is None:
            FileStamp.of(self._named()[split]).require_read(self._named()[split], position["files"][0][1:])
            return None
        reader = self.open(split, position)
        reader.close()
        return None if reader.exhausted else reader.position()

    def _format(self) -> TableFormat:
        options = self.options
        if options.channel is None or options.value is None or options.channels is None:
            return self.format()
        from connectors.sources.long_form import LongForm

        stream, time = options.stream_id or "stream_id", options.event_time or "event_time"
        return LongForm(
            self.format(),
            channel=options.channel,
            value=options.value,
            channels=list(options.channels),
            stream=stream,
            time=time,
        )

    def _named(self) -> dict[str, Path]:
        if self._files is None:
            self._files = name_streams(self._list(), self.options.stream_names) if self._list() else {}
        return self._files

    def _is_wanted(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes and path.is_file()

    def _list(self) -> list[Path]:
        if self._paths is None:
            self._paths = self._folder.settled() if self.options.follow else self._expand()
        return self._paths

    def _expand(self) -> list[Path]:
        return expand(self.options.path, self._is_wanted, f"{'/'.join(sorted(self.suffixes))} files")

    def _layout(self) -> Layout:
        if self._resolved is None:
            options = self.options
            format = self._format()
            paths = self._list()
            if not paths and not (options.follow and isinstance(options.columns, dict)):
                paths = self._expand()  # columns may be told from a file that is still being written
            where = str(paths[0] if paths else options.path)
            truths: set[str] = set()
            try:
                if not paths:
                    raise NoRecords(where)
                shown = format.schema(paths)
                truths = {field.name for field in shown if pa.types.is_boolean(field.type)}
                columns = self._declared(shown, sparse=format.sparse)
            except NoRecords as error:
                columns = self._untold(error, where)

            def read_as(name: str, kind: pa.DataType) -> pa.DataType:
                """Read true and false as such, where they are meant to be numbers, too."""
                number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
                return pa.bool_() if name in truths and number else format.read_as(kind)

            self._resolved = Layout.of(
                columns,
                where,
                stream_id=options.stream_id,
                event_time=options.event_time,
                sequence=options.sequence,
                unit=options.event_time_unit,
                row_rate=options.row_rate,
                columns=None if options.columns is None else list(options.columns),
                channels=options.channels,
                read_as=read_as,
            )
            format.require(self._resolved.raw)
        return self._resolved

    def _declared(self, columns: pa.Schema, *, sparse: bool) -> pa.Schema:
        """Return ``columns`` with the declared types, and those that are only declared where records may lack columns."""
        if isinstance(self.options.columns, dict):
            for name, kind in self.options.columns.items():
                index = columns.get_field_index(name)
                if index >= 0:
                    columns = columns.set(index, columns.field(index).with_type(parse_type(kind)))
                elif sparse:
                    columns = columns.append(pa.field(name, parse_type(kind)))
        return columns

    def _untold(self, error: NoRecords, where: str) -> pa.Schema:
        """Return the columns of files without records: those of the header, or the declared ones; text where nothing tells.

        Raise ``error`` where no column is known, ``SourceError`` where records will come and their types are not declared.
        """
        declared = self.options.columns if isinstance(self.options.columns, dict) else {}
        if not declared and not error.names:
            raise error
        keys = (self.options.stream_id, self.options.event_time, self.options.sequence)
        names = error.names or list(dict.fromkeys([*declared, *(key for key in keys if key is not None)]))
        columns = pa.schema([(name, pa.string()) for name in names])
        if self.options.follow:
            wanted = [
                *(key for key in keys if key is not None),
                *(names if self.options.columns is None else self.options.columns),
            ]
            unknown = [name for name in dict.fromkeys(wanted) if name not in declared]
            if unknown:
                raise SourceError(
                    f"{where!r} holds no record yet that tells the types of {unknown}; declare them, such as "
                    f"columns: {{{unknown[0]}: double, …}}"
                )
        return self._declared(columns, sparse=False)


class TableReader(Reader):
    """Reads the files of one split, one after the other.

    Position: where the current chunk starts (``file``, ``at``), what came before it (``row``, ``time_us``) and how many of
    its rows were delivered (``skip``). ``files`` holds name, size and modification time of every file. Files that have come
    since a position was recorded are read behind those that it lists, in natural order. Those that were read may be gone.

    With ``follow``, files that have been read are left out; ``done`` is the greatest of their names. Files come in the order of
    their names then: one whose name sorts before those that were taken is not read (``unread``).
    """

    def __init__(
        self,
        format: TableFormat,
        paths: Sequence[Path],
        split: str,
        layout: Layout,
        position: Position | None,
        folder: Folder,
        *,
        follow: bool = False,
    ) -> None:
        self._format = format
        self._layout = layout
        self._folder = folder
        self._follow = follow
        self._split = split
        self._unread: dict[str, str] = {}
        if layout.stream_id is None:
            self.closes = (split,)
        start = position or {"file": 0, "at": None, "row": 0, "time_us": 0, "skip": 0, "files": []}
        self._file = int(start["file"])
        self._done: str | None = start.get("done")
        folder.newest_ns = max(folder.newest_ns, int(start.get("newest_ns", 0)))
        self._paths: list[Path] = []
        self._names: list[str] = []
        self._stamps: list[FileStamp] = []
        self._take(paths, start["files"])
        self._at: Any = start["at"]
        self._row = int(start["row"])
        self._time_us = int(start["time_us"])
        self._skip = int(start["skip"])
        self._chunks: Iterator[Chunk] | None = None
        self._batch: pa.RecordBatch | None = None
        self._after: tuple[int, Any, int] = (0, None, 0)  # file, at and time_us behind the current chunk
        self.exhausted = not follow and self._file >= len(self._paths)

    @property
    def unread(self) -> Mapping[str, str]:  # type: ignore[override]
        """Files that could not be read on and, with ``follow``, those whose names sort before what was read already."""
        return self._unread | self._folder.unread if self._follow else self._unread

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next rows, at most the rest of the current chunk; None once all files have ended."""
        while self._batch is None:
            if self.exhausted or (self._file >= len(self._paths) and not self._look()):
                return None
            self._load()
        rows = rows_within(self._batch, self._skip, max_rows, max_bytes)
        batch = self._batch.slice(self._skip, rows)
        self._skip += rows
        if self._skip >= self._batch.num_rows:
            self._pass()
        return batch

    def position(self) -> Position:
        """Return the next row and the stamps of all files."""
        return {
            "file": self._file,
            "at": self._at,
            "row": self._row,
            "skip": self._skip,
            "time_us": self._time_us,
            "files": [[name, stamp.size, stamp.mtime_ns] for name, stamp in zip(self._names, self._stamps, strict=True)],
            **({"done": self._done, "newest_ns": self._folder.newest_ns} if self._follow else {}),
        }

    def total_rows(self) -> int | None:
        """Return the sum of the files' estimates."""
        if self._follow:
            return None
        estimates = [self._estimate(path) for path in self._paths]
        return None if None in estimates else sum(estimate or 0 for estimate in estimates)

    def close(self) -> None:
        """Close the current file."""
        self._chunks = self._batch = None

    def _load(self) -> None:
        """Make the next chunk the current one, or go on to the next file."""
        path = self._paths[self._file]
        errors: pa.Array | None
        try:
            if self._chunks is None:
                self._chunks = self._format.chunks(path, self._at, self._layout.raw)
            chunk = next(self._chunks, None)
            if chunk is None:
                self._next_file()
                return
            rows, errors, after = chunk.rows, chunk.errors, (self._file, chunk.after)
        except StreambankError:
            raise
        except Exception as error:  # whatever a library makes of a damaged file: the others are read
            problem = f"{path.name}: cannot be read on: {first_line(error)}"
            self._unread[self._names[self._file]] = problem.removeprefix(f"{path.name}: ")
            logger.warning("bad_file path=%s error=%s", path, problem)
            rows = pa.RecordBatch.from_arrays([pa.nulls(1, kind) for kind in self._layout.raw.types], schema=self._layout.raw)
            errors, after = pa.array([problem]), (self._file + 1, None)
        if not rows.num_rows:
            self._at = after[1]
            return
        batch, time_us = self._layout.apply(rows, errors, stream=self._stream(path), first_row=self._row, time_us=self._time_us)
        self._batch, self._after = batch, (*after, time_us)
        if self._skip >= batch.num_rows:
            raise SourceError(f"{str(path)!r} holds fewer rows than the recorded position says; start over")

    def _pass(self) -> None:
        """Leave the current chunk behind."""
        assert self._batch is not None
        self._row += self._batch.num_rows
        self._batch, self._skip = None, 0
        file, self._at, self._time_us = self._after
        if file != self._file:
            self._next_file()

    def _next_file(self) -> None:
        self._chunks = None
        if self._follow:
            read = self._file + 1
            self._done = max([*self._names[:read], *([] if self._done is None else [self._done])], key=natural_key)
            del self._paths[:read], self._stamps[:read], self._names[:read]
            self._file, self._at, self._skip = 0, None, 0
            return
        self._file, self._at, self._skip = self._file + 1, None, 0
        self.exhausted = self._file >= len(self._paths)

    def _look(self) -> bool:
        """Take on files that have appeared in the folder; say whether there are any."""
        new = self._folder.after(self._done)
        self._add(new)
        return bool(new)

    def _estimate(self, path: Path) -> int | None:
        try:
            return self._format.estimate_rows(path)
        except Exception:  # the reader says so in a row when it gets there
            return None

    def _stream(self, path: Path) -> str:
        return path.stem if self._layout.stream_id is not None else self._split

    def _take(self, paths: Sequence[Path], recorded: Sequence[Sequence[Any]]) -> None:
        """Take the files that a position lists, as it lists them, then those that have come since."""
        present = {self._folder.name(path): path for path in paths}
        for number, (name, size, mtime_ns) in enumerate(recorded):
            path, then = present.pop(name, None), FileStamp(int(size), int(mtime_ns))
            if number < self._file:
                if path is not None:
                    FileStamp.of(path).require_read(path, (size, mtime_ns))
            elif path is None:
                raise SourceError(
                    f"the file {name!r} of this source has not been read to its end, and it is gone; put it back, or start "
                    "over with another state folder"
                )
            else:
                FileStamp.of(path).require(path, {"size": size, "mtime_ns": mtime_ns})
            self._paths.append(path or Path(name))
            self._names.append(name)
            self._stamps.append(then)
        if not self._follow:
            self._add(list(present.values()))
            return
        last = max([self._done, *self._names], key=natural_key) if self._done is not None else None
        new = self._folder.behind(paths, last, frozenset(self._names))
        if self._file:  # the run did not follow so far
            self._done = max(self._names[: self._file], key=natural_key)
            del self._paths[: self._file], self._names[: self._file], self._stamps[: self._file]
            self._file = 0
        self._add(new)

    def _add(self, paths: Sequence[Path]) -> None:
        self._paths += paths
        self._names += [self._folder.name(path) for path in paths]
        self._stamps += [FileStamp.of(path) for path in paths]
