"""Source: a folder into which people and programs put requests (questions, prompts) while a pipeline runs.

A file is moved to ``taken/`` under the next number before its rows go out. From then on the numbers are the order, so a
position is a number and a replay is exact, whatever the clocks of those who ask say. Files that no kept epoch needs anymore
are deleted: neither folder grows with the number of requests.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from connectors import durable
from connectors.base import Position, Reader, Row, Source
from connectors.errors import ConfigError, SourceError
from connectors.options import REQUIRED, option
from connectors.records import KEY_FIELDS, TIME_TYPE
from connectors.sources.columns import Layout, parse_type
from connectors.sources.jsonl import JsonlFormat
from connectors.sources.paced import rows_within

__all__ = ["RequestsOptions", "RequestsReader", "RequestsSource", "put_requests"]

logger = logging.getLogger(__name__)

_SPLIT = "requests"
"""The only split, and the stream of a line that names none."""

_TAKEN = "taken"
_SUFFIXES = frozenset({".json", ".jsonl"})
_LOOK_S = 0.1
"""How often the folder is listed, at most, when all that was found has been taken."""

_SETTLE_S = 1.0
"""A file that does not end with a line feed may still be written to; it counts when it has not changed for so long."""

_MAX_FILE_BYTES = 16 << 20
_KEPT_EPOCHS = 2
"""Manifests that the engine keeps: a run may have to begin at the older one."""

_RESERVED = frozenset({*(field.name for field in KEY_FIELDS), "error"})


@dataclass(frozen=True, kw_only=True)
class RequestsOptions:
    """Options of the source ``requests``."""

    path: Path = option(
        REQUIRED, "Folder that requests are put into; made where it is missing, and on a cluster one that all machines share."
    )
    columns: dict[str, str] = option(
        REQUIRED, "What a request holds besides its stream_id, as {name: type}; what else it holds is left out."
    )

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError("columns: is empty; name what a request holds, such as {question_id: string, question: string}")
        taken = sorted(_RESERVED & self.columns.keys())
        if taken:
            raise ConfigError(f"columns: {taken[0]!r} is there in every row; leave it out")
        for kind in self.columns.values():
            parse_type(kind)


class RequestsSource(Source):
    """One split that never ends. Its event times are those at which the files were written."""

    Options = RequestsOptions
    options: RequestsOptions

    def __init__(self, options: RequestsOptions) -> None:
        super().__init__(options)
        self.bounded = self.splits_end = False
        file = pa.schema([("stream_id", pa.string()), *((name, parse_type(kind)) for name, kind in options.columns.items())])
        self._layout = Layout.of(
            file,
            str(options.path),
            stream_id="stream_id",
            event_time=None,
            sequence=None,
            unit="rows",  # replaced by the times of the files
            row_rate=1.0,
            columns=list(options.columns),
            read_as=lambda _, kind: JsonlFormat().read_as(kind),
        )
        JsonlFormat().require(self._layout.raw)
        self._reader: RequestsReader | None = None

    @property
    def schema(self) -> pa.Schema:
        """The key columns, the declared columns, ``error``."""
        return self._layout.schema

    def splits(self) -> list[str]:
        """Return the one there is; the folder need not exist."""
        return [_SPLIT]

    def discover(self) -> list[str]:
        """Return nothing new; delete what no epoch needs anymore."""
        if self._reader is not None:
            self._reader.delete_passed()
        return []

    def open(self, split: str, position: Position | None) -> RequestsReader:
        """Take hold of the folder. ``SourceError`` where another run has it, or it cannot be made."""
        self._reader = RequestsReader(self.options.path, self._layout, position)
        return self._reader

    def require_puttable(self) -> None:
        """Accept: putting rows into it is what the folder is for."""

    def put(self, rows: Sequence[Row]) -> None:
        """Put one file of requests into the folder."""
        put_requests(self.options.path, rows)


@dataclass(frozen=True, slots=True)
class _File:
    """What is in a file that has been taken."""

    number: int
    time_us: int
    lines: Sequence[bytes]
    problem: str | None = None
    """Why it cannot be read; it then has one line, which is bad."""


class RequestsReader(Reader):
    """Takes files and reads those that have been taken. Position: number of the next file, its next row, rows before that."""

    def __init__(
        self, folder: Path, layout: Layout, position: Position | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._taken = folder / _TAKEN
        self._layout = layout
        self._clock = clock
        self._lock: int | None = _lock(self._taken)
        numbers = sorted(int(path.stem) for path in self._taken.iterdir() if path.stem.isdecimal())
        self._number = int(position["file"]) if position is not None else min(numbers, default=0)
        self._skip = int(position["row"]) if position is not None else 0
        self._first_row = (int(position["rows"]) if position is not None else 0) - self._skip
        begun = self._number + (self._skip > 0)
        self._end = max([begun, *(number + 1 for number in numbers)])  # the number of the next file to take
        for number in numbers:
            if number < self._number:
                _delete(self._path(number))
        self._kept = self._number
        self._marks: deque[int] = deque()  # where the last epochs begin
        self._found: deque[Path] = deque()
        self._looked_s = -_LOOK_S
        self._batch: pa.RecordBatch | None = None
        self._at = 0
        self._numbers: list[int] = []
        self._ends: list[int] = []

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the rows of the next files, in the order in which they were taken."""
        if self._batch is None and not self._load(max_rows, max_bytes):
            return None
        assert self._batch is not None
        rows = rows_within(self._batch, self._at, max_rows, max_bytes)
        batch = self._batch.slice(self._at, rows)
        self._at += rows
        if self._at == self._batch.num_rows:
            self._first_row += self._at
            self._batch, self._at = None, 0
        return batch

    def position(self) -> Position:
        """Return the next row."""
        if self._batch is None:
            return {"file": self._number, "row": self._skip, "rows": self._first_row + self._skip}
        file = bisect_right(self._ends, self._at)
        row = self._at - (self._ends[file - 1] if file else 0)
        return {"file": self._numbers[file], "row": row, "rows": self._first_row + self._at}

    def next_due(self) -> float | None:
        """Return the time until the folder is looked into again."""
        if self._batch is not None or self._found or self._number < self._end:
            return 0.0
        return max(0.0, self._looked_s + _LOOK_S - self._clock())

    def close(self) -> None:
        """Let go of the folder. May be called twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def delete_passed(self) -> None:
        """Delete the files that lie before all epochs that a run may have to begin at.

        Called when the positions of an epoch have been taken: the one before it is committed, and one more is kept.
        """
        self._marks.append(self.position()["file"])
        if len(self._marks) > _KEPT_EPOCHS:
            first = self._marks.popleft()
            for number in range(self._kept, first):
                _delete(self._path(number))
            self._kept = max(self._kept, first)

    def _load(self, max_rows: int, max_bytes: int) -> bool:
        """Make a batch of files, one at least. Return whether there are any."""
        before, bytes_read = self._end, 0
        files: list[_File] = []
        rows = 0
        for file in self._files():
            files.append(file)
            rows += len(file.lines)
            bytes_read += sum(map(len, file.lines))
            if rows >= max_rows or bytes_read >= max_bytes:
                break
        if self._end > before:  # a position beyond them must not outlive a power cut that they do not
            durable.sync(self._taken)
            durable.sync(self._folder)
        if not rows:
            return False
        self._numbers = [file.number for file in files]
        self._ends = list(accumulate(len(file.lines) for file in files))
        self._batch, self._at, self._skip = self._records(files), self._skip, 0
        return True

    def _records(self, files: Sequence[_File]) -> pa.RecordBatch:
        raw, errors = JsonlFormat().rows([line for file in files for line in file.lines], self._layout.raw)
        if any(file.problem for file in files):
            problems = pa.array([file.problem for file in files for _ in file.lines], pa.string())
            errors = problems if errors is None else pc.coalesce(problems, errors)
        batch, _ = self._layout.apply(raw, errors, stream=_SPLIT, first_row=self._first_row, time_us=0)
        times = pa.array([file.time_us for file in files for _ in file.lines], pa.int64()).view(TIME_TYPE)
        index = batch.schema.get_field_index("event_time")
        return batch.set_column(index, batch.schema.field(index), times)

    def _files(self) -> Iterator[_File]:
        """Yield the files that were taken and not delivered, then take more."""
        while self._number < self._end:
            number = self._number
            self._number += 1
            file = _read(self._path(number), number)
            if file is not None:
                yield file
                continue
            logger.warning("request %d has been deleted from %s before it was answered", number, self._taken)
            self._first_row, self._skip = self._first_row + self._skip, 0
        while self._found or self._look():
            path = self._found.popleft()
            if self._move(path):
                number = self._end
                self._end = self._number = number + 1
                yield _read(self._path(number), number) or _File(number, 0, [])

    def _look(self) -> bool:
        """List the folder, unless that was just done. Return whether there is something to take."""
        if self._clock() - self._looked_s < _LOOK_S:
            return False
        self._looked_s = self._clock()
        with os.scandir(self._folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and Path(e.name).suffix in _SUFFIXES]
        self._found.extend(path for name in sorted(names) if _is_whole(path := self._folder / name))
        return bool(self._found)

    def _move(self, path: Path) -> bool:
        """Give a file the next number. Return whether it was still there."""
        try:
            path.rename(self._path(self._end))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SourceError(f"cannot move {path} to {self._taken}: {error.strerror}; this user must write to both") from error
        return True

    def _path(self, number: int) -> Path:
        return self._taken / f"{number:012d}.jsonl"


def put_requests(folder: Path, rows: Sequence[Row]) -> Path:
    """Put one file of requests into the folder of a source ``requests``: durable, and visible as a whole or not at all.

    ``rows`` hold JSON values, ``stream_id`` among them. Return the file. Raise ``SourceError`` where it cannot be written.
    """
    path = folder / f"{time.time_ns():020d}-{uuid4().hex}.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write(path, text.encode())
    except OSError as error:
        raise SourceError(
            f"cannot put a request into {folder}: {error.strerror}; this user must be able to write there"
        ) from error
    return path


def _lock(taken: Path) -> int:
    """Make the folder of taken files and hold its lock; two readers would share the requests out between them."""
    try:
        taken.mkdir(parents=True, exist_ok=True)
        lock = os.open(taken / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SourceError(
            f"{taken} cannot be written: {error.strerror}; set 'path' to a folder that this user may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise SourceError(f"another run takes requests from {taken.parent}; give each pipeline a folder of its own") from None
    return lock


def _is_whole(path: Path) -> bool:
    """Return whether nobody seems to be writing a file anymore. What is no file will not change; its row says what it is."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or time.time() - status.st_mtime >= _SETTLE_S:
            return True
        with path.open("rb") as file:
            file.seek(max(0, status.st_size - 1))
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return False
    except OSError:
        return True  # cannot be read, and its row will say so


def _read(path: Path, number: int) -> _File | None:
    """Read a file as far as that is possible; None where there is none.

    Whoever may put requests must not make this process read something else: links are not followed, pipes and devices not
    waited for, and what grows while it is read is cut off.
    """
    try:
        time_us = path.lstat().st_mtime_ns // 1000
        with open(path, "rb", opener=_without_links) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return _File(number, time_us, [b""], "is no plain file, and only those are read")
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            size = max(status.st_size, len(content))
            return _File(number, time_us, [b""], f"a file of {size} bytes is too large; {_MAX_FILE_BYTES} are allowed")
        lines = JsonlFormat().records(content)[0]
        return _File(number, time_us, lines)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _File(number, time_us, [b""], "is a symbolic link, and those are not followed")
        if path.is_socket() or error.errno == errno.EISDIR:
            return _File(number, time_us, [b""], "is no plain file, and only those are read")
        return _File(number, time_us, [b""], f"cannot be read: {error.strerror}")


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _delete(path: Path) -> None:
    """Delete what was taken; what cannot be, such as a folder, stays with a warning."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("request=%s cannot be deleted: %s", path, error.strerror)
