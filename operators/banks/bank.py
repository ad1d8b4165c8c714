"""What every bank offers, by the same verbs. What is written and read is each bank's own.

Verbs mean the same in all banks: ``write`` stores rows, ``read`` returns what stands at given places, ``search`` what is
most like a query, ``correct`` adds to the values of rows written before, ``clear`` forgets rows while the stream goes on. A
bank's name in snapshots is given to its constructor.
"""

from __future__ import annotations

from typing import Any, Protocol

from operators.state import State

__all__ = ["Bank", "SharedBank"]


class Bank(Protocol):
    """Preallocated memory of the streams of one shard, one slot each. Slots of one call are distinct."""

    def open(self, slots: Any, seeds: Any, /) -> None:
        """Make slots ready for new streams: empty, with the seed (or key) of each stream."""

    def release(self, slots: Any, /) -> None:
        """Forget what stands in slots whose streams have ended, and give pages and files back."""

    def export(self, slots: Any, state: State, /, *, incremental: bool) -> None:
        """Add the slots of the streams of ``state``, in its order; where incremental, what changed since ``mark_clean``."""

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""

    def load(self, slots: Any, state: State, /) -> None:
        """Take slots from a full ``state``, in its order; all others are empty afterwards."""

    def bytes(self) -> dict[str, int]:
        """Return the memory of each tier: ``device``, ``host``, ``disk``."""


class SharedBank(Protocol):
    """Preallocated memory that belongs to no stream: one for all streams of a shard."""

    def clear(self) -> None:
        """Forget all rows."""

    def export(self, state: State, *, incremental: bool) -> None:
        """Add the content to what ``state`` shares; where incremental, what changed since ``mark_clean``."""

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""

    def load(self, state: State, /) -> None:
        """Replace the content by that of a full ``state``."""

    def bytes(self) -> dict[str, int]:
        """Return the memory of each tier: ``device``, ``host``, ``disk``."""
