"""When a sketch forgets. All count rows written to a slot, so that what is forgotten does not depend on how writes are batched."""

from __future__ import annotations

from dataclasses import dataclass

from connectors.errors import ConfigError

__all__ = ["Forgetting", "HalfLife", "Never", "ResetEvery", "Slices"]


@dataclass(frozen=True, slots=True)
class Never:
    """Keep everything."""


@dataclass(frozen=True, slots=True)
class ResetEvery:
    """Clear a slot before the row that comes after every ``rows`` rows (ReLoop2 §3.2.3)."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"reset after {self.rows} rows: it must be at least 1")


@dataclass(frozen=True, slots=True)
class Slices:
    """Keep a sliding window of ``rows`` rows in ``slices`` parts: before the row after a part's end, the oldest part goes.

    The window holds between (1 - 1/slices) rows and ``rows``. With one slice it is ``ResetEvery``. Costs a table per slice.
    """

    rows: int
    slices: int

    def __post_init__(self) -> None:
        if self.slices < 1 or self.rows < self.slices:
            raise ConfigError(f"a window of {self.rows} rows in {self.slices} slices: at least one slice, of at least one row")

    @property
    def length(self) -> int:
        """Rows of one slice."""
        return self.rows // self.slices


@dataclass(frozen=True, slots=True)
class HalfLife:
    """A row counts half after ``rows`` more rows of its slot. In float64: sums of two banks depend on the order."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"a half-life of {self.rows} rows: it must be at least 1")


Forgetting = Never | ResetEvery | Slices | HalfLife
