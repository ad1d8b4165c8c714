"""Which stream owns which slot: a table with least-recently-used order. It holds no rows and decides nothing about eviction.

Invariant: every slot is either free or owned by exactly one stream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

__all__ = ["SlotTable"]


class SlotTable:
    """Map stream ids to slots ``0..slots-1``; iteration goes from the stream idle longest to the one used last."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(slots - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._slot_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._slot_of)

    @property
    def full(self) -> bool:
        """True when a new stream finds no free slot."""
        return not self._free

    def get(self, stream_id: str) -> int | None:
        """Return the slot of a stream, or None if it has none."""
        return self._slot_of.get(stream_id)

    def touch(self, stream_id: str) -> None:
        """Note that a stream was used just now."""
        self._slot_of.move_to_end(stream_id)

    def admit(self, stream_id: str) -> int:
        """Give a stream that has none a free slot and return it. The table must not be full."""
        slot = self._free.pop()
        self._slot_of[stream_id] = slot
        return slot

    def idle_longest(self) -> str:
        """Return the stream that was used least recently. The table must not be empty."""
        return next(iter(self._slot_of))

    def release(self, stream_id: str) -> int | None:
        """Free the slot of a stream and return it; None if it has none."""
        slot = self._slot_of.pop(stream_id, None)
        if slot is not None:
            self._free.append(slot)
        return slot

    def clear(self) -> None:
        """Free every slot."""
        self.__init__(self.slots)  # type: ignore[misc]
