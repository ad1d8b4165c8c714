"""Which inputs of an operator still have a stream open: a stream ends for the operator when its last input ends it.

Only operators with several data inputs need it; its content is part of their snapshot. Holds open streams only, so it does not
grow with time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["OpenStreams"]


class OpenStreams:
    """Per stream a bit set of the input nodes that have sent rows of it and not closed it."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._bit = {node: 1 << i for i, node in enumerate(nodes)}
        self._open: dict[str, int] = {}

    def seen(self, node: str, streams: Iterable[str]) -> None:
        """Note that ``node`` has sent rows of ``streams``."""
        bit = self._bit[node]
        for stream in streams:
            self._open[stream] = self._open.get(stream, 0) | bit

    def close(self, node: str, streams: Iterable[str]) -> list[str]:
        """Note that ``node`` has ended ``streams``; return those that no input has open anymore."""
        ended = []
        for stream in streams:
            left = self._open.get(stream, 0) & ~self._bit[node]
            if left:
                self._open[stream] = left
            else:
                self._open.pop(stream, None)
                ended.append(stream)
        return ended

    def snapshot(self) -> dict[str, list[str]]:
        """Return node → its open streams, as JSON."""
        return {node: [stream for stream, bits in self._open.items() if bits & bit] for node, bit in self._bit.items()}

    def restore(self, state: Mapping[str, Iterable[str]]) -> None:
        """Add what ``snapshot`` returned; nodes that are no longer inputs are ignored."""
        for node, streams in state.items():
            if node in self._bit:
                self.seen(node, streams)
