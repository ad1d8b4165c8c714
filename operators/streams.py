"""The streams of one shard: who has a slot, what came last of each, who makes room, and what a snapshot says about it.

All bookkeeping that an operator with a memory per stream needs to keep the promises of ``operators.base``, and nothing else: no
content of rows, no banks, no models. A method subclasses :class:`Stream`; fields that are plain numbers or flags are part of
snapshots on their own. An evicted stream is remembered as a *tombstone*, so that its next row can say so.
"""

# B rows of a call, N streams of a snapshot

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.errors import RecoveryError
from connectors.options import option
from connectors.records import NEVER_US, encode_streams
from operators.counters import Counters
from operators.output import NOT_FINITE_STATUS

if TYPE_CHECKING:
    from operators.state import State

__all__ = [
    "EVICTED",
    "NEVER_US",
    "STREAM_LOSSES",
    "STREAM_STATUSES",
    "OnStreamsFull",
    "Opened",
    "Refusal",
    "Stream",
    "StreamOptions",
    "StreamTable",
    "TimedStreamOptions",
    "on_streams_full",
    "require_full",
]

STREAM_STATUSES: Mapping[str, str] = {
    "late": "sequence or event_time did not rise within the stream",
    "duplicate": "the row has the sequence of the stream's last one",
    "rejected_corrupt": "the row's content cannot be used; `error` says why",
    "rejected_full": "a new stream, all slots are taken, and `on_streams_full` is `reject`",
    "reset": "the first row after the stream's memory was forgotten; `error` says why",
    **NOT_FINITE_STATUS,
}
"""What every operator with a memory per stream can say of a row besides ``ok`` and its own."""

STREAM_LOSSES: Mapping[str, str] = {
    "evictions": "streams lost their memory to make room for others; raise max_streams to avoid that",
}
"""What every operator with a memory per stream counts of what was lost."""

EVICTED = "the memory of this stream was evicted to make room; raise max_streams to avoid that"

_TOMBSTONES = 4096
"""Evicted streams that are remembered."""

_PLAIN = {"int": "int64", "bool": "bool", "float": "float64"}
"""Of fields of a stream → of columns of a snapshot."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_log = logging.getLogger(__name__)


OnStreamsFull = Literal["evict", "reject"]


def on_streams_full(*, was: Sequence[str] = ()) -> Any:
    """Declare the option ``on_streams_full``; ``was``: what an operator called it before."""
    return option(
        "evict",
        "When one stream more arrives: `evict` the one idle longest (it starts over later), or `reject` the new one's rows.",
        was=was,
    )


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options of every operator that has a memory per stream."""

    max_streams: int = option(
        4, "Streams with a memory at the same time; memory for them is allocated at the start.", unit="streams", ge=1
    )
    on_streams_full: OnStreamsFull = on_streams_full()


@dataclass(frozen=True, kw_only=True)
class TimedStreamOptions(StreamOptions):
    """Options of operators whose memory is about what came just before."""

    late: Literal["drop", "read_only"] = option(
        "drop", "Rows whose sequence or event_time does not rise: `drop`, or `read_only` (answer, write nothing)."
    )
    max_gap_s: float | None = option(None, "Forget a stream's memory after a longer pause between rows.", unit="s", gt=0)


class Refusal(NamedTuple):
    """Why a row cannot be used."""

    status: str
    error: str


@dataclass(slots=True)
class Stream:
    """What an operator knows of one stream besides its banks."""

    slot: int
    last_sequence: int = NEVER_US
    first_time_us: int = NEVER_US
    """Of the first row with a time since the stream got its slot."""
    last_time_us: int = NEVER_US
    used: int = 0
    """Tick of the last accepted row; orders streams for eviction after a restore."""

    def refusal(self, sequence: int, time_us: int | None) -> Refusal | None:
        """Say why a row comes too late for this stream, None if it does not. ``time_us``: None where a row has no time."""
        if sequence == self.last_sequence:
            return Refusal("duplicate", f"sequence {sequence} was taken already; it is the last of this stream")
        if sequence < self.last_sequence:
            return Refusal("late", f"sequence {sequence} does not follow {self.last_sequence}")
        if time_us is not None and time_us <= self.last_time_us:
            behind_s = (self.last_time_us - time_us) / 1e6
            return Refusal("late", f"event_time is {behind_s:.6f} s before or at the last row's")
        return None

    def gap_s(self, time_us: int) -> float | None:
        """Return the seconds since the last row that had a time; None for the first one."""
        return None if self.last_time_us == NEVER_US else (time_us - self.last_time_us) / 1e6


S = TypeVar("S", bound=Stream)


class Opened(NamedTuple, Generic[S]):
    """A stream that has been given a slot."""

    stream: S
    was_evicted: bool
    """An earlier memory of the stream had made room for another one."""


class StreamTable(Generic[S]):
    """Streams with a slot, and tombstones.

    ``make`` builds a stream for a slot; after a restore the fields of plain type are set on what it built. ``opened`` is
    called for every new stream, not for restored ones, whose banks are loaded; ``ended`` for every stream that gives its slot
    back, while it is still in the table.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str, int], S],
        options: StreamOptions,
        *,
        kind: type[S],
        counters: Counters,
        opened: Callable[[str, S], None] = lambda stream_id, stream: None,
        ended: Callable[[str, S], None] = lambda stream_id, stream: None,
    ) -> None:
        self._name, self._make, self._opened, self._ended, self._counters = name, make, opened, ended, counters
        self._rejects = options.on_streams_full == "reject"
        self._max_streams = options.max_streams
        self._free = list(range(options.max_streams - 1, -1, -1))
        self._streams: OrderedDict[str, S] = OrderedDict()  # from the stream idle longest to the one used last
        self._tombstones: dict[str, None] = {}
        self._touched: set[str] = set()
        self._closed: set[str] = set()
        self._tick = 0
        types = {f.name: getattr(f.type, "__name__", str(f.type)) for f in dataclasses.fields(kind) if f.name != "slot"}
        self._columns = {name: _PLAIN[text] for name, text in types.items() if text in _PLAIN}

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[str]:
        return iter(self._streams)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._streams

    def get(self, stream_id: str) -> S | None:
        """Return a stream, None if it has no slot."""
        return self._streams.get(stream_id)

    def values(self) -> Iterator[S]:
        """Iterate over all streams."""
        return iter(self._streams.values())

    @property
    def full(self) -> bool:
        """True where a new stream finds no free slot."""
        return not self._free

    def was_evicted(self, stream_id: str) -> bool:
        """Return whether a stream without a slot had one before."""
        return stream_id in self._tombstones

    # Rows

    def no_room(self, stream_id: str) -> Refusal | None:
        """Say why a stream can get no slot; None if it has one, or one is free or can be made free."""
        if stream_id in self._streams or not (self._rejects and self.full):
            return None
        return self.no_slot

    @property
    def no_slot(self) -> Refusal:
        """The refusal of a row whose stream can get no slot."""
        return Refusal(
            "rejected_full", f"all {self._max_streams} slots are taken; raise max_streams or set on_streams_full='evict'"
        )

    def open(self, stream_id: str, before_eviction: Callable[[S], None] = lambda stream: None) -> Opened[S]:
        """Give a slot to a stream that has none and need not be refused (``no_room``).

        ``before_eviction`` gets the stream to be evicted while it still has its slot, so that its waiting rows come first.
        """
        if self.full:
            idle = next(iter(self._streams))
            before_eviction(self._streams[idle])
            self._evict(idle)
        stream = self._streams[stream_id] = self._make(stream_id, self._free.pop())
        was_evicted = stream_id in self._tombstones
        self._tombstones.pop(stream_id, None)
        if was_evicted:
            self._closed.add(stream_id)  # an increment is laid over what was before, and nothing of that is left
        self._touched.add(stream_id)
        self._opened(stream_id, stream)
        return Opened(stream, was_evicted)

    def accept(self, stream_id: str, sequence: int, time_us: int | None = None) -> None:
        """Note a row that counts: the last of its stream, which becomes the one used last. None: the row has no time."""
        self._tick += 1
        stream = self._streams[stream_id]
        stream.used, stream.last_sequence = self._tick, sequence
        if time_us is not None:
            if stream.first_time_us == NEVER_US:
                stream.first_time_us = time_us
            stream.last_time_us = time_us
        self._streams.move_to_end(stream_id)
        self._touched.add(stream_id)

    def changed(self, stream_id: str) -> None:
        """Note that something of a stream changed though no row of it was accepted."""
        self._touched.add(stream_id)

    def all_changed(self) -> None:
        """Note that something of every stream changed."""
        self._touched.update(self._streams)

    def close(self, stream_id: str) -> None:
        """Forget a stream and free its slot. An unknown one is no error."""
        if stream_id in self._streams:
            self._release(stream_id)
        elif stream_id in self._tombstones:
            del self._tombstones[stream_id]
        else:
            return
        self._touched.discard(stream_id)
        self._closed.add(stream_id)

    def _evict(self, stream_id: str) -> None:
        self._release(stream_id)
        self._tombstones[stream_id] = None
        self._touched.add(stream_id)
        self._counters.add("evictions")
        _log.info("operator=%s evicted stream=%r, %d slots in use", self._name, stream_id, len(self))
        if len(self._tombstones) > _TOMBSTONES:
            self.close(next(iter(self._tombstones)))

    def _release(self, stream_id: str) -> None:
        self._ended(stream_id, self._streams[stream_id])
        self._free.append(self._streams.pop(stream_id).slot)

    # Rows by the column

    def no_room_rows(self, streams: pa.Array, opens_B: Bools) -> Bools:
        """Return for which rows ``no_room`` would refuse their stream, [B]; ``opens_B`` are those that count and open one."""
        if not self._rejects:
            return np.zeros(len(opens_B), np.bool_)
        names, codes_B = encode_streams(streams)
        has_slot = np.array([name in self._streams for name in names], np.bool_)
        opening = np.flatnonzero(opens_B & ~has_slot[codes_B])
        distinct, first = np.unique(codes_B[opening], return_index=True)
        order, free = np.argsort(first), len(self._free)
        has_slot[distinct[order[:free]]] = True
        full_after = -1 if free == 0 else opening[first[order[free - 1]]] if len(order) >= free else len(opens_B)
        refused_B: Bools = ~has_slot[codes_B] & (np.arange(len(opens_B)) > full_after)
        return refused_B

    def assign(self, streams: pa.Array, rows_B: Ints) -> Iterator[tuple[Ints, Ints, list[str]]]:
        """Yield ``rows_B`` with their slots, in order, in as many parts as it takes for every stream to have a slot.

        ``streams`` names the stream of every row of the batch; streams are opened, evicted and accepted as row by row. A part
        must be dealt with before the next is asked for. The third item names streams of the part that had been evicted before.
        """
        names, codes_B = encode_streams(streams)
        while len(rows_B):
            codes = codes_B[rows_B]
            distinct, first = np.unique(codes, return_index=True)
            stop = len(rows_B)
            returned: list[str] = []
            seen: set[str] = set()
            for code, row in zip(distinct[np.argsort(first)].tolist(), np.sort(first).tolist(), strict=True):
                name = names[code]
                if name in self._streams:
                    self._streams.move_to_end(name)
                elif self.full and next(iter(self._streams)) in seen:  # the one to go has rows in this part
                    stop = row
                    break
                elif self.open(name).was_evicted:
                    returned.append(name)
                seen.add(name)
            codes = codes[:stop]
            distinct, back = np.unique(codes[::-1], return_index=True)
            slot_of = np.zeros(len(names), np.int64)
            # The stream of the last row comes last: that is the order in which they will have to go.
            for code, behind in sorted(zip(distinct.tolist(), back.tolist(), strict=True), key=lambda pair: -pair[1]):
                name = names[code]
                stream = self._streams[name]
                slot_of[code] = stream.slot
                stream.used = self._tick + stop - behind
                self._streams.move_to_end(name)
                self._touched.add(name)
            self._tick += stop
            yield rows_B[:stop], slot_of[codes], returned
            rows_B = rows_B[stop:]

    def find(self, streams: pa.Array) -> tuple[Ints, list[str]]:
        """Return the slot of each row's stream, [B]. A new stream takes a free slot; -1 where none is free: none is evicted.

        The second item names new streams that had been evicted before. Marks the streams as changed; only one that is new
        counts as used.
        """
        names, codes_B = encode_streams(streams)
        returned: list[str] = []
        slot_of = np.full(len(names), -1, np.int64)
        for code, name in enumerate(names):
            if name not in self._streams and not self.full:
                self._tick += 1
                stream, was_evicted = self.open(name)
                stream.used = self._tick
                if was_evicted:
                    returned.append(name)
            if name in self._streams:
                slot_of[code] = self._streams[name].slot
                self._touched.add(name)
        return slot_of[codes_B], returned

    # Snapshots

    @contextmanager
    def snapshot(self, *, incremental: bool, **meta: object) -> Iterator[tuple[State, list[S]]]:
        """Open a state with the streams that belong in it; at the end of the block tombstones are added, all counts as clean.

        ``meta`` is what ``restore`` will compare, such as the id of the weights.
        """
        import torch  # what declares an operator needs this file, but neither torch nor states

        from operators.state import State

        names = [name for name in self._streams if not incremental or name in self._touched]
        names.sort(key=lambda name: self._streams[name].slot)
        streams = [self._streams[name] for name in names]
        state = State(streams=names, incremental=incremental, closed=sorted(self._closed) if incremental else [])
        for column, dtype in self._columns.items():
            state.dense[column] = torch.tensor([getattr(stream, column) for stream in streams], dtype=getattr(torch, dtype))
        state.dense["evicted"] = torch.zeros(len(streams), dtype=torch.bool)
        state.meta |= meta
        self._counters.export(state)
        yield state, streams
        _bury(state, [name for name in self._tombstones if not incremental or name in self._touched])
        self._clean()

    def restore(self, state: State, *, hint: str, **meta: object) -> tuple[State, list[S]]:
        """Replace all streams by those of a full ``state``; return it without tombstones, and its streams in its order.

        Raise ``RecoveryError`` for one that cannot be taken up: an increment, other ``meta`` (``hint`` says what to do), or too
        many streams. Nothing is changed then.
        """
        require_full(state, self._name)
        for key, wanted in meta.items():
            found = state.meta.get(key, wanted)
            if found != wanted:
                raise RecoveryError(f"{self._name}: the snapshot was made with {key} {found}, this is {wanted}; {hint}")
        gone = state.dense["evicted"].tolist() if state.streams else []
        live = state.select([not flag for flag in gone])
        if len(live.streams) > self._max_streams:
            raise RecoveryError(
                f"{self._name}: the snapshot holds {len(live.streams)} streams, max_streams is {self._max_streams}; raise it, "
                "or resume with more shards"
            )
        self._counters.load(state, self._name)
        self._free = list(range(self._max_streams - 1, -1, -1))
        self._tombstones = {name: None for name, flag in zip(state.streams, gone, strict=True) if flag}
        used = live.dense["used"].tolist() if live.streams else []
        self._streams = OrderedDict()
        for i in sorted(range(len(used)), key=used.__getitem__):  # the least recently used first
            name = live.streams[i]
            stream = self._streams[name] = self._make(name, self._free.pop())
            for column in self._columns:
                setattr(stream, column, live.dense[column][i].item())
        self._tick = max(used, default=0)
        self._clean()
        return live, [self._streams[name] for name in live.streams]

    def _clean(self) -> None:
        self._touched.clear()
        self._closed.clear()


def require_full(state: State, name: str) -> None:
    """Raise ``RecoveryError`` for a state that holds changes only."""
    if state.incremental:
        raise RecoveryError(f"{name}: an incremental snapshot cannot be restored; apply it to a full one first")


def _bury(state: State, names: Sequence[str]) -> None:
    """Append evicted streams, without rows, to ``state``."""
    import torch

    from operators.state import Rows

    extra = len(names)
    state.streams += names
    for key, tensor in state.dense.items():
        state.dense[key] = torch.cat([tensor, tensor.new_zeros((extra, *tensor.shape[1:]))])
    state.dense["evicted"][len(state.streams) - extra :] = True
    for key, rows in state.rows.items():
        length_N, count_N = (torch.cat([old, old.new_zeros(extra)]) for old in (rows.length_N, rows.count_N))
        state.rows[key] = Rows(length_N, count_N, rows.index_R, rows.values_R)
