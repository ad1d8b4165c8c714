"""The contracts of sources and sinks.

A *source* lists splits (a file, a partition, a camera); a *reader* delivers the rows of one split in order and says at any
time which position comes next. A *sink* stages the rows of an epoch and publishes them when the epoch is committed. Neither
knows about operators, Ray or epochs beyond their number.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, SinkError, SourceError

__all__ = ["Position", "Reader", "Row", "Shown", "Sink", "Source", "Staged", "Tail"]

Row = dict[str, Any]
"""One row as plain values by column."""

Position = dict[str, Any]
"""A JSON value that names the *next* row to read. Only the source that made it can interpret it."""


class Reader(ABC):
    """Delivers one split in order. Used by one thread at a time; opened in the process that reads.

    A reader never raises for bad data: it delivers a row whose ``error`` column says what was wrong and goes on.
    """

    exhausted: bool = False
    """True once the split has ended: ``read`` returns None for ever."""

    closes: Sequence[str] = ()
    """Streams that end with this split (their operators free the slot). Valid once ``exhausted`` is true."""

    ended: Sequence[str] = ()
    """Streams that ended with the last ``read``, after the rows that it returned, if any. The split itself goes on."""

    dropped: Mapping[str, int] = MappingProxyType({})
    """Rows that a live reader has dropped so far, by reason. A reader that can replay never drops."""

    unread: Mapping[str, str] = MappingProxyType({})
    """Files of the split that were not read, or not to their end, and why; the run names them at its end."""

    @abstractmethod
    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return 1..``max_rows`` rows (stop after ``max_bytes``, but at least one row), or None: nothing now, or exhausted."""

    @abstractmethod
    def position(self) -> Position:
        """Return the position after the last row that ``read`` returned."""

    @abstractmethod
    def close(self) -> None:
        """Release files and threads. May be called twice."""

    def next_due(self) -> float | None:
        """Return the seconds until ``read`` may deliver again, 0.0 for now; None where the reader cannot tell."""
        return None

    def total_rows(self) -> int | None:
        """Return the estimated number of rows of the split where it is known, for progress only."""
        return None


class Source(ABC):
    """A kind of input, built from its options dataclass. Cheap to build; does I/O only in the methods below."""

    Options: ClassVar[type]
    bounded: bool = True
    """True when every split ends on its own and the run need not wait for more: it ends when all have been read.

    A run that has read a source without an end is never finished, only stopped.
    """
    splits_end: bool = True
    """False when splits go on for ever (a camera, a topic): all of them are then read at the same time."""
    replayable: bool = True
    """True when a reader opened at an earlier position delivers the same rows again."""
    appeared_at: ClassVar[Position | None] = None
    """Position of a split that appears after the run's first start; None: like any other split, at its start."""
    unread: Mapping[str, str] = MappingProxyType({})
    """Files that belong to no split, and why: they are not read. Looked at after ``splits`` and ``discover``."""
    bulky: bool = False
    """True when rows are large (images): the engine then prefers to read them in the process that uses them."""
    listing_s: float = 30.0
    """How long ``splits`` may wait for a service that does not answer; ``check`` sets less."""

    @classmethod
    def also_needs(cls, options: Any) -> tuple[str, ...]:
        """Return what these options need besides the type's own: keys of ``connectors.extras.EXTRAS``."""
        return ()

    @classmethod
    def keeps_frames(cls, options: Any) -> str | None:
        """Return the device on which decoded frames stay with these options, None where rows carry their pixels.

        Rows then name frames of the process that read them (``connectors.device_frames``). The engine hands them to one
        operator there, and gives the frames back when it has processed them.
        """
        return None

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Schema of every batch of this source."""

    @abstractmethod
    def splits(self) -> list[str]:
        """List the split ids in a stable order.

        Raise ``NothingToRead`` when there is nothing to read, naming the path, and ``SourceError`` when it cannot be listed.
        """

    def streams(self) -> list[str] | None:
        """Return the streams, where listing the splits tells them; None where only the rows do."""
        return None

    def discover(self) -> list[str]:
        """Return splits that have appeared since they were last listed; asked at every epoch, so it must be quick.

        It is asked after the positions of an epoch have been taken, and then the epoch before is committed.
        """
        return []

    def grown(self, split: str, position: Position) -> Position | None:
        """Return where to go on in a split that an earlier run has read to its end, None where nothing has come since.

        Asked once when a run is resumed, before any split is opened. Raise ``SourceError`` where what was read has changed, so
        that its rows are no longer those of the file.
        """
        return None

    @abstractmethod
    def open(self, split: str, position: Position | None) -> Reader:
        """Open a split at a position (None: the start). Raise ``SourceError`` if the file has changed since."""

    def require_puttable(self) -> None:
        """Raise ``ConfigError`` where rows cannot be put into this source from outside; its message says why. Does no I/O."""
        raise ConfigError("rows cannot be put into this kind of source")

    def put(self, rows: Sequence[Row]) -> None:
        """Put rows where a run that reads this source takes them from; they are durable there when this returns.

        For another process than the one that reads. ``rows`` hold JSON values: ``stream_id`` and columns of ``schema``. Only
        where ``require_puttable`` does not object. Raise ``SourceError`` where they cannot be put.
        """
        raise SourceError("rows cannot be put into this kind of source")


class Shown(IntEnum):
    """Where and when another process can read the rows of a sink; the least is the best for one who waits for a row."""

    AT_ONCE = 0
    """From a server, before their epoch is committed."""
    COMMITTED = 1
    """From a server, when their epoch is committed."""
    IN_FILES = 2
    """From a folder, when their epoch is committed."""


class Tail(ABC):
    """Rows that a sink shows from the moment this was made, chosen by a column of ids. For another process than the sink's."""

    def __init__(self, column: str) -> None:
        self._column = column

    def take(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Return rows of ``ids`` that have come since the last call; wait ``timeout_s`` at most for the first."""
        ends_s = time.monotonic() + timeout_s
        found: list[Row] = []
        while not found and (left_s := ends_s - time.monotonic()) > 0:
            found = self.look(ids, left_s)
        return found

    @abstractmethod
    def look(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Return rows of ``ids`` among what comes next, if any do; wait ``timeout_s`` at most. Raise ``SinkError``."""

    @abstractmethod
    def close(self) -> None:
        """Stop following. May be called twice."""

    def matching(self, table: pa.Table | pa.RecordBatch, ids: Collection[str]) -> list[Row]:
        """Return the rows of a table that have one of ``ids``; a table without the column has none."""
        if self._column not in table.schema.names or not table.num_rows:
            return []
        found = table.column(self._column).cast(pa.string())  # JSON lines may have been taken for another type
        rows: list[Row] = table.filter(pc.is_in(found, pa.array(sorted(ids), pa.string()))).to_pylist()
        return rows


@dataclass(frozen=True, slots=True)
class Staged:
    """One prepared output of an epoch. Paths are relative to the sink's folder; the final name is a function of
    (epoch, shard, counter), so publishing twice does nothing the second time.
    """

    staged: str
    final: str
    rows: int
    bytes: int
    sha256: str


class Sink(ABC):
    """A kind of output. One object per shard; used by one thread at a time.

    Order of calls: ``recover`` once per run on one shard before any shard is opened, ``open``, then per epoch any number of
    ``write`` and one ``prepare(epoch)``; ``commit`` after the epoch's manifest is durable, possibly again after a crash.
    """

    Options: ClassVar[type]

    def __init__(self, options: Any) -> None:
        self.options = options

    def examine(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Raise ``ConfigError`` where rows of these schemas could not be written; for ``check``. Does no I/O."""
        return

    @abstractmethod
    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Get ready to write. ``schemas`` maps each input's node name to its schema; ``attempt`` fences older runs."""

    @abstractmethod
    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Take rows that came from node ``source``. Raise ``SinkError`` if they cannot be kept (full disk)."""

    @abstractmethod
    def prepare(self, epoch: int) -> list[Staged]:
        """Flush and fsync what was written since the last call under staged names. Nothing is visible to readers yet."""

    @abstractmethod
    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Publish the staged files of ``epoch``. Repeatable: what is already published is left alone."""

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows were not handed over whole since ``open``, by what became of them: the end of "3 rows …"."""
        return {}

    @abstractmethod
    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Finish the commit of ``epoch``, the newest one with a manifest (-1: none), and delete everything staged besides.

        Also takes back what a later, uncommitted epoch may have left. Safe to call on a folder that does not exist.
        """

    def written(self) -> list[Path]:
        """Return the files that runs of this sink have left, committed and staged: those that a run that starts over deletes.

        Whatever else is in the folder is not among them. Safe to call on a folder that does not exist.
        """
        return []

    @abstractmethod
    def close(self) -> None:
        """Drop what was not prepared and release files. May be called twice."""

    def shown(self, column: str) -> Shown:
        """Return where rows can be read back and told apart by ``column``. Does no I/O.

        Raise ``ConfigError`` where they cannot be; its message says why.
        """
        raise ConfigError("its rows cannot be read back")

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        """Begin to follow rows of node ``source`` and these streams, which are those of ``shards`` of the sink.

        For another process than the one that writes, where ``shown`` does not object. Raise ``SinkError`` where the sink cannot
        be reached.
        """
        raise SinkError("its rows cannot be read back")
