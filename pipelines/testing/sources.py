"""A source whose rows and misfortunes are written down in the test: batches, ``Crash()``, ``Gap(seconds)``, ``End()``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from connectors.base import Position, Reader, Source
from connectors.errors import SourceError
from connectors.options import REQUIRED, option

__all__ = ["Crash", "End", "Gap", "InjectedCrash", "MemoryOptions", "MemorySource"]


class InjectedCrash(Exception):
    """Raised by a ``Crash`` marker: the run ends here as if the process had died in its reader."""


@dataclass(slots=True)
class Crash:
    """Raise ``InjectedCrash`` when the reader gets here for the first time; later it is passed over."""

    fired: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Deliver nothing for this long, by the source's clock."""

    seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """The split ends here; what follows is never delivered."""


Item: TypeAlias = pa.RecordBatch | Crash | Gap | End


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Options of :class:`MemorySource`; made in Python, not in a pipeline file."""

    splits: Mapping[str, Sequence[Item]] = option(REQUIRED, "Split id → batches and markers, in order.")
    schema: pa.Schema = option(REQUIRED, "Schema of all batches.")
    closes: bool = option(True, "Whether the streams of a split end with it.")
    clock: Callable[[], float] = field(default=time.monotonic, metadata={"doc": "Measures gaps."})


class MemorySource(Source):
    """Replays batches from memory. Replayable; a position is ``{"item": i, "row": r}``."""

    Options: ClassVar[type] = MemoryOptions
    options: MemoryOptions

    @property
    def schema(self) -> pa.Schema:
        """Return the schema given in the options."""
        return self.options.schema

    def splits(self) -> list[str]:
        """List the split ids in the order of the options."""
        return list(self.options.splits)

    def open(self, split: str, position: Position | None) -> Reader:
        """Open a split at a position."""
        if split not in self.options.splits:
            raise SourceError(f"no split {split!r}; there are {self.splits()}")
        return _MemoryReader(self.options, self.options.splits[split], position or {"item": 0, "row": 0})


class _MemoryReader(Reader):
    def __init__(self, options: MemoryOptions, items: Sequence[Item], position: Position) -> None:
        self._options = options
        self._items = items
        self._item, self._row = int(position["item"]), int(position["row"])
        self._until: float | None = None

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return the next rows, or None within a gap and after the end."""
        while self._item < len(self._items):
            item = self._items[self._item]
            if isinstance(item, Crash):
                if not item.fired:
                    item.fired = True
                    raise InjectedCrash
                self._item += 1
            elif isinstance(item, Gap):
                if self._until is None:
                    self._until = self._options.clock() + item.seconds
                if self._options.clock() < self._until:
                    return None
                self._until = None
                self._item += 1
            elif isinstance(item, End):
                break
            else:
                batch = item.slice(self._row, max_rows)
                self._row += batch.num_rows
                if self._row >= item.num_rows:
                    self._item, self._row = self._item + 1, 0
                if batch.num_rows:
                    return batch
        self.exhausted = True
        if self._options.closes:
            batches = [item for item in self._items if isinstance(item, pa.RecordBatch)]
            streams = [pc.unique(batch.column("stream_id")).to_pylist() for batch in batches]
            self.closes = tuple(dict.fromkeys(name for names in streams for name in names))
        return None

    def next_due(self) -> float | None:
        """Return the rest of a gap."""
        return 0.0 if self._until is None else max(0.0, self._until - self._options.clock())

    def total_rows(self) -> int | None:
        """Return the number of rows in memory."""
        return sum(int(item.num_rows) for item in self._items if isinstance(item, pa.RecordBatch))

    def position(self) -> Position:
        """Return where the next row stands."""
        return {"item": self._item, "row": self._row}

    def close(self) -> None:
        """Do nothing."""
