"""Counters of an operator over the whole run: part of snapshots, summed where shards are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectors.errors import RecoveryError

if TYPE_CHECKING:
    from operators.output import OutputRows
    from operators.state import State

__all__ = ["STREAM_COUNTERS", "Counters"]

STREAM_COUNTERS = ("evictions", "late", "rejected", "reset")
"""Of every operator with a memory per stream; ``late`` includes duplicates."""

_KEY = "counters"


class Counters:
    """Numbers by name. Bad rows may change them, and nothing else of a state."""

    def __init__(self, *names: str) -> None:
        self._counts = dict.fromkeys(names, 0)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def add(self, name: str, number: int = 1) -> None:
        """Count."""
        self._counts[name] += number

    def note(self, out: OutputRows) -> None:
        """Count the rows of a batch that were late, rejected or reset."""
        self.add("late", out.count("late", "duplicate"))
        self.add("rejected", out.count("rejected_corrupt", "rejected_full"))
        self.add("reset", out.count("reset"))

    def gauges(self) -> dict[str, float]:
        """Return all of them for ``metrics``."""
        return {name: float(count) for name, count in self._counts.items()}

    def export(self, state: State) -> None:
        """Add them to ``state``."""
        import torch

        state.additive[_KEY] = torch.tensor(list(self._counts.values()), dtype=torch.int64)
        state.meta[_KEY] = list(self._counts)

    def load(self, state: State, name: str) -> None:
        """Take them from a full ``state``. Raise ``RecoveryError`` for a state of another version of the operator."""
        if state.meta.get(_KEY, list(self._counts)) != list(self._counts):
            raise RecoveryError(
                f"{name}: the snapshot counts {', '.join(state.meta[_KEY])}, this version counts {', '.join(self._counts)}; "
                "start with an empty state folder"
            )
        tensor = state.additive.get(_KEY)
        values = [0] * len(self._counts) if tensor is None else tensor.tolist()
        self._counts = dict(zip(self._counts, values, strict=True))
