"""The sending end of a task: which shard of which consumer gets which rows, and the sequence number of every message.

Knows nothing of how a message travels; that is the ``Transport``'s concern. Rows of one stream always take the same edge, so
their order is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pipelines.runtime.keys import shard_of, split_by_shard
from pipelines.runtime.messages import BarrierAhead, Body, Close, Data, Edge, Watermark

__all__ = ["Router", "Transport"]


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
