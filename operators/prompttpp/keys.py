"""Numbers that the operator keeps of each key beside its banks, one array entry per slot."""

# S slots, N slots of a snapshot

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from connectors.records import NEVER_US
from operators.state import State

__all__ = ["KeyNumbers"]

Ints = npt.NDArray[np.int64]

_PREFIX = "key."


class KeyNumbers:
    """Arrays [S] of int64."""

    def __init__(self, slots: int) -> None:
        self.sequence_S: Ints = np.full(slots, NEVER_US)
        """Of the last accepted event."""
        self.first_us_S: Ints = np.zeros(slots, np.int64)
        self.last_us_S: Ints = np.full(slots, NEVER_US)
        self.events_S: Ints = np.zeros(slots, np.int64)
        """Events that the key has had."""
        self.version_S: Ints = np.zeros(slots, np.int64)
        """Of the weights that made its state."""
        self.pending_S: Ints = np.zeros(slots, np.int64)
        """Latest events that are to be learned from."""
        self.order_S: Ints = np.zeros(slots, np.int64)
        """When the first of those came: orders keys within a step whatever their slots."""

    def _arrays(self) -> dict[str, tuple[Ints, int]]:
        """Return name → array and what it holds of a slot without a key."""
        return {
            "sequence": (self.sequence_S, NEVER_US),
            "first_us": (self.first_us_S, 0),
            "last_us": (self.last_us_S, NEVER_US),
            "events": (self.events_S, 0),
            "version": (self.version_S, 0),
            "pending": (self.pending_S, 0),
            "order": (self.order_S, 0),
        }

    @staticmethod
    def bytes_per_slot() -> int:
        """Return what one key costs."""
        return 7 * 8

    def clear(self, slots: Ints | int) -> None:
        """Forget keys."""
        for array, nothing in self._arrays().values():
            array[slots] = nothing

    def export(self, slots_N: Ints, state: State) -> None:
        """Add copies of these slots to ``state``."""
        for name, (array, _) in self._arrays().items():
            state.dense[_PREFIX + name] = torch.from_numpy(array[slots_N])

    def load(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``; forget all others."""
        for name, (array, nothing) in self._arrays().items():
            array[:] = nothing
            if len(slots_N):
                array[slots_N] = state.dense[_PREFIX + name].numpy()
