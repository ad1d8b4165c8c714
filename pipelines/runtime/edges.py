"""Both ends of the edges between tasks: which shard of which consumer gets which rows, and what a task takes next.

Knows nothing of how a message travels, the ``Transport``'s concern, nor of what it means beyond barriers and ``End``. Rows of
one stream always take the same edge. An inbox is thread-safe: deliveries come from many threads, one thread takes. Invariant:
per edge, messages are taken once each, in the order in which they were sent, those of attempts given up never, and nothing
behind a barrier before every edge has delivered that barrier.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from connectors.errors import StreambankError
from pipelines.runtime.keys import shard_of, split_by_shard
from pipelines.runtime.messages import Barrier, BarrierAhead, Body, Close, Data, Edge, End, Watermark

__all__ = ["Inbox", "InboxClosed", "Router", "SequenceGap", "StaleAttempt", "Transport"]


class Transport(Protocol):
    """Carries messages of one task. May block while receivers are behind."""

    def send(self, messages: Sequence[tuple[Edge, int, Body]]) -> None:
        """Send ``(edge, sequence number, body)``; one call holds what one batch became. Bodies may be shared among edges."""
        ...


class Router:
    """Sends a task's outputs to their consumers."""

    def __init__(self, edges: Sequence[Edge], transport: Transport) -> None:
        consumers: dict[tuple[str, str, str], list[Edge]] = {}
        for edge in edges:
            consumers.setdefault((edge.receiver.node, edge.role, edge.output), []).append(edge)
        self._consumers = [sorted(group, key=lambda edge: edge.receiver.shard) for group in consumers.values()]
        self._readers: dict[str, list[list[Edge]]] = {}  # output → those of its rows
        for group in self._consumers:
            self._readers.setdefault(group[0].output, []).append(group)
        self._next = dict.fromkeys(edges, 0)
        self._transport = transport
        self.aligned = any(edge.aligned for edge in edges)
        """Whether somebody behind this task asks for watermarks."""

    def send(self, body: Body, output: str = "") -> None:
        """Send rows of ``output`` and closings to the shards they belong to, all else to all of them, or to all that align."""
        messages = []
        for shards in self._readers.get(output, ()) if isinstance(body, Data) else self._consumers:
            for edge, part in self._split(body, shards):
                messages.append((edge, self._next[edge], part))
                self._next[edge] += 1
        if messages:
            self._transport.send(messages)

    @staticmethod
    def _split(body: Body, shards: list[Edge]) -> list[tuple[Edge, Body]]:
        if isinstance(body, Watermark | BarrierAhead) and not shards[0].aligned:
            return []
        if len(shards) == 1:
            return [(shards[0], body)]
        if isinstance(body, Data):
            mark = body.watermark_us if shards[0].aligned else None
            parts: dict[int, Body] = {shard: Data(rows, mark) for shard, rows in split_by_shard(body.batch, len(shards))}
            if mark is not None:
                parts = {shard: parts.get(shard) or Watermark(mark) for shard in range(len(shards))}
            return [(shards[shard], part) for shard, part in parts.items()]
        if isinstance(body, Close):
            owners: dict[int, list[str]] = {}
            for stream in body.streams:
                owners.setdefault(shard_of(stream, len(shards)), []).append(stream)
            return [(shards[shard], Close(tuple(streams))) for shard, streams in owners.items()]
        return [(edge, body) for edge in shards]


class StaleAttempt(StreambankError):
    """A message of an attempt that has been given up; its sender must end."""


class SequenceGap(StreambankError):
    """A message is missing, or a sender ignores its credit."""


class InboxClosed(StreambankError):
    """The receiving task has ended or failed."""


@dataclass(slots=True)
class _Channel:
    """One edge. ``queue`` holds what may be taken, ``early`` what overtook a message that is still under way."""

    queue: deque[Body] = field(default_factory=deque)
    early: dict[int, Body] = field(default_factory=dict)
    expected: int = 0
    taken: int = 0
    barrier: int | None = None
    ended: bool = False


class Inbox:
    """Queues of all edges of one task.

    ``window`` is the sender's credit per edge: how many messages it may have under way that were not taken. None means that
    sender and receiver share a thread: messages then come strictly in order and the caller bounds their number.
    """

    def __init__(self, edges: Sequence[Edge], *, attempt: int, window: int | None = None) -> None:
        self.attempt = attempt
        self.duplicates = 0
        self._window = window
        self._channels = {edge: _Channel() for edge in edges}
        self._turn: deque[Edge] = deque(edges)
        self._change = threading.Condition()
        self._paused: Collection[Edge] = ()
        self._under_way: int | None = None  # the epoch whose barrier some edge has delivered or announced, until all have
        self._aligned_epoch = -1
        self._closed: str | None = None
        self._woken = False

    @property
    def edges(self) -> list[Edge]:
        """All edges of the task."""
        return list(self._channels)

    def pause(self, edges: Collection[Edge]) -> None:
        """Take nothing from these edges until told otherwise: they are ahead of the others.

        While a barrier is under way, and where all the others have ended, messages of paused edges are taken all the same.
        """
        with self._change:
            self._paused = edges

    @property
    def under_way(self) -> int | None:
        """The epoch whose barrier has come, or has been announced, from some edges and has not come from all."""
        return self._under_way

    def backlog(self, edge: Edge) -> int:
        """Return the number of messages of one edge that were not taken."""
        with self._change:
            return len(self._channels[edge].queue)

    def offer(self, edge: Edge, attempt: int, sequence: int, body: Body) -> bool:
        """Take in a message; return False if it was there before (it is dropped).

        Raise ``StaleAttempt`` for an older attempt, ``SequenceGap`` for a message beyond the sender's credit, which means that
        an earlier one is lost, and ``InboxClosed`` after ``close``.
        """
        with self._change:
            if self._closed is not None:
                raise InboxClosed(self._closed)
            if attempt != self.attempt:
                raise StaleAttempt(f"edge {edge}: message of attempt {attempt} at a task of attempt {self.attempt}")
            channel = self._channels[edge]
            if sequence < channel.expected or sequence in channel.early:
                self.duplicates += 1
                return False
            reach = channel.expected + 1 if self._window is None else channel.taken + self._window
            if sequence >= reach:
                raise SequenceGap(
                    f"edge {edge}: message {sequence} arrived while message {channel.expected} is missing "
                    f"({channel.taken} taken, credit {self._window or 1})"
                )
            channel.early[sequence] = body
            while channel.expected in channel.early:
                channel.queue.append(channel.early.pop(channel.expected))
                channel.expected += 1
            self._change.notify_all()
            return True

    def take(self) -> tuple[Edge, Data | Close | Watermark] | tuple[None, Barrier | End] | None:
        """Return the next message and its edge, the edges taking turns, or None when there is nothing to take now.

        A ``Barrier`` or ``End`` is returned once, with edge None, when every edge has delivered it. An edge that has ended
        counts as aligned with every barrier.
        """
        with self._change:
            passed_over = self._passed_over()
            unasked = len(self._turn)
            while unasked:
                unasked -= 1
                edge = self._turn[0]
                self._turn.rotate(-1)
                channel = self._channels[edge]
                if channel.barrier is not None or not channel.queue or edge in passed_over:
                    continue
                body = channel.queue.popleft()
                channel.taken += 1
                self._change.notify_all()
                if isinstance(body, Barrier):
                    channel.barrier = self._under_way = body.epoch
                elif isinstance(body, End):
                    channel.ended = True
                elif isinstance(body, BarrierAhead):
                    if body.epoch > self._aligned_epoch:
                        self._under_way = body.epoch
                else:
                    return edge, body
                aligned = self._aligned()
                if aligned is not None:
                    return None, aligned
                passed_over, unasked = self._passed_over(), len(self._turn)
            return None

    def wait_taken(self, edge: Edge, sequence: int, timeout_s: float | None = None) -> bool:
        """Block until message ``sequence`` of ``edge`` has been taken: this is the sender's credit. False on timeout."""
        with self._change:
            channel = self._channels[edge]
            done = self._change.wait_for(lambda: channel.taken > sequence or self._closed is not None, timeout_s)
            if channel.taken <= sequence and self._closed is not None:
                raise InboxClosed(self._closed)
            return done

    def wait(self, timeout_s: float) -> None:
        """Block until something may have become takeable, ``wake`` is called, or the time is over."""
        with self._change:
            passed_over = self._passed_over()
            if not self._woken and not any(
                channel.queue and channel.barrier is None and edge not in passed_over
                for edge, channel in self._channels.items()
            ):
                self._change.wait(timeout_s)
            self._woken = False

    def wake(self) -> None:
        """End the ``wait`` of now, or else the next one."""
        with self._change:
            self._woken = True
            self._change.notify_all()

    def close(self, reason: str) -> None:
        """Refuse everything from now on and release all who wait."""
        with self._change:
            self._closed = reason
            for channel in self._channels.values():
                channel.queue.clear()
                channel.early.clear()
            self._change.notify_all()

    def waiting(self) -> int:
        """Return the number of messages held."""
        with self._change:
            return sum(len(channel.queue) + len(channel.early) for channel in self._channels.values())

    def _passed_over(self) -> Collection[Edge]:
        others = (channel for edge, channel in self._channels.items() if edge not in self._paused)
        return () if self._under_way is not None or all(channel.ended for channel in others) else self._paused

    def _aligned(self) -> Barrier | End | None:
        live = [channel for channel in self._channels.values() if not channel.ended]
        if not live:
            return End()
        epochs = {channel.barrier for channel in live}
        if None in epochs:
            return None
        if len(epochs) > 1:
            raise SequenceGap(f"barriers of different epochs meet: {sorted(e for e in epochs if e is not None)}")
        for channel in live:
            channel.barrier = None
        epoch = epochs.pop()
        assert epoch is not None  # checked above; narrows the type
        self._under_way, self._aligned_epoch = None, epoch
        return Barrier(epoch)
