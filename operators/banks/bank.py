"""What every bank with slots offers, by the same verbs. Which rows are written and read is each bank's own."""

from __future__ import annotations

from typing import Any, Protocol

from operators.state import State

__all__ = ["Bank"]


class Bank(Protocol):
    """Preallocated memory of the streams of one shard, one slot each. Slots of one call are distinct."""

    def open(self, slots: Any, seeds: Any, /) -> None:
        """Make slots ready for new streams: empty, with the seed (or key) of each stream."""

    def release(self, slots: Any, /) -> None:
        """Forget what stands in slots whose streams have ended, and give pages and files back."""

    def export(self, slots: Any, state: State, *, incremental: bool) -> None:
        """Add the slots of the streams of ``state``, in its order; where incremental, what changed since ``mark_clean``."""

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""

    def load(self, slots: Any, state: State, /) -> None:
        """Take slots from a full ``state``, in its order; all others are empty afterwards."""

    def bytes(self) -> dict[str, int]:
        """Return the memory of each tier: ``device``, ``host``, ``disk``."""
