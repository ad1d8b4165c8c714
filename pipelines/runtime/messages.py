"""What flows between two tasks, and what tasks tell the coordinator.

On an edge flow, in order: ``Data``, ``Close``, ``Barrier`` and, at the end, ``End``; towards operators that align by event time
also ``Watermark`` and ``BarrierAhead``. How they are carried (a function call or an actor call) is the runner's concern. All of
these are immutable and can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from connectors.base import Position, Staged
from pipelines.runtime.tally import Tally

__all__ = [
    "END_OF_TIME",
    "Ack",
    "Alignment",
    "Barrier",
    "BarrierAhead",
    "Body",
    "Close",
    "Data",
    "Edge",
    "End",
    "Event",
    "Exhausted",
    "OperatorAck",
    "SinkAck",
    "SnapshotFile",
    "SourceAck",
    "SplitState",
    "TaskId",
    "Watermark",
]

END_OF_TIME = 2**63 - 1
"""The watermark of a sender that has no more rows."""


class TaskId(NamedTuple):
    """One shard of a node of the pipeline file."""

    node: str
    shard: int

    def __str__(self) -> str:
        return f"{self.node}[{self.shard}]"


class Edge(NamedTuple):
    """A channel between two tasks for the rows of one output. ``role`` says which of an operator's methods takes them."""

    sender: TaskId
    receiver: TaskId
    role: Literal["data", "control"] = "data"
    aligned: bool = False
    """Whether an operator behind this edge aligns its rows by event time, so that watermarks are sent along."""
    output: str = ""
    """Whose rows it carries, of those that the sender has; the one without a name where it is empty."""

    @property
    def source(self) -> str:
        """The address of that output: what the receiver's inputs call it."""
        return f"{self.sender.node}.{self.output}" if self.output else self.sender.node

    def __str__(self) -> str:
        named = f":{self.output}" if self.output else ""
        return f"{self.sender}{named}->{self.receiver}" + (":control" if self.role == "control" else "")


@dataclass(frozen=True, slots=True)
class Data:
    """Rows, in order within each stream."""

    batch: pa.RecordBatch
    watermark_us: int | None = None
    """If given: a ``Watermark`` that follows these rows."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the rows only: Arrow would send the whole buffers that a slice is a view of.

        Buffers that are used whole go out of band, without a copy; slices as an IPC stream.
        """
        if self.batch.get_total_buffer_size() <= _SLACK * max(self.batch.nbytes, _SMALL_BYTES):
            return Data, (self.batch, self.watermark_us)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.batch.schema) as writer:
            writer.write_batch(self.batch)
        return _from_ipc, (sink.getvalue(), self.watermark_us)


@dataclass(frozen=True, slots=True)
class Close:
    """These streams have ended at the sender."""

    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watermark:
    """The sender expects no more rows with an event time before ``time_us`` (since the epoch, UTC)."""

    time_us: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Everything before belongs to ``epoch`` or an earlier one."""

    epoch: int


@dataclass(frozen=True, slots=True)
class BarrierAhead:
    """The barrier of ``epoch`` has come to one input of the sender, or has been announced to it.

    Who has paused inputs must take them again until the barrier has come from all: it may stand behind what is not taken.
    """

    epoch: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows."""


Body = Data | Close | Watermark | BarrierAhead | Barrier | End

_SLACK = 1.25
_SMALL_BYTES = 4096


def _from_ipc(buffer: pa.Buffer, watermark_us: int | None) -> Data:
    with pa.ipc.open_stream(buffer) as reader:
        return Data(reader.read_next_batch(), watermark_us)


@dataclass(frozen=True, slots=True)
class SplitState:
    """How far a split has been read: ``position`` names the next row (None: not started)."""

    position: Position | None = None
    done: bool = False
    rows: int = 0
    """Rows delivered so far, over all attempts."""
    time_us: int | None = None
    """The latest event time among them; kept only where an operator aligns by it."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of an operator's snapshot chain; ``path`` is relative to the state folder."""

    path: str
    bytes: int
    sha256: str
    incremental: bool


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where an operator shard that aligns its inputs stood: a part of its state. JSON but for ``rows``."""

    released_us: int | None
    """All rows before this event time had been handed over."""
    closes: Sequence[tuple[int, str, Sequence[str]]] = ()
    """Ends of streams that wait for their turn: event time of their span, input node, streams."""
    rows: SnapshotFile | None = None
    """The rows that wait for theirs."""


@dataclass(frozen=True, slots=True)
class SourceAck:
    """A source task has sent the barrier; ``splits`` is where it stood, without those that had ended before the last one."""

    task: TaskId
    epoch: int
    splits: dict[str, SplitState]
    rows: int = 0
    """Rows delivered in this attempt."""
    endless: bool = False
    """More splits may come at any time, so that no run has ever read them all."""
    tally: Tally = field(default_factory=Tally)
    """What has become of the rows in this attempt, up to the barrier."""


@dataclass(frozen=True, slots=True)
class OperatorAck:
    """An operator task's snapshot is on disk: the full file, then what changed since."""

    task: TaskId
    epoch: int
    chain: Sequence[SnapshotFile]
    open_streams: dict[str, list[str]] = field(default_factory=dict)
    """Input node → streams it has open; kept only by operators with several inputs."""
    alignment: Alignment | None = None
    """Only of operators that align their inputs by event time."""
    tally: Tally = field(default_factory=Tally)
    """As of a source; its ``losses`` are of the whole run."""


@dataclass(frozen=True, slots=True)
class SinkAck:
    """A sink task has staged its rows of the epoch."""

    task: TaskId
    epoch: int
    staged: Sequence[Staged]
    tally: Tally = field(default_factory=Tally)
    """Rows that were not handed over whole in this attempt."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """A source task has read all its splits; it still answers barriers."""

    task: TaskId


Ack = SourceAck | OperatorAck | SinkAck
Event = Ack | Exhausted
