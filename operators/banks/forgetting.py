"""When a sketch forgets, counted in rows written to a slot: what is forgotten does not depend on how writes are batched.

Each rule cuts a slot's rows into periods; :class:`operators.banks.SketchBank` acts before the first row of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.errors import ConfigError

__all__ = ["Forgetting", "HalfLife", "Never", "ResetEvery", "Slices"]

_DOUBLINGS = 12


@dataclass(frozen=True, slots=True)
class Never:
    """Keep everything."""


@dataclass(frozen=True, slots=True)
class ResetEvery:
    """Forget everything when a row comes after ``rows`` of them (ReLoop2's own rule, §3.2.3)."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"reset after {self.rows} rows: it must be at least 1")

    @property
    def period(self) -> int:
        """Rows of a period."""
        return self.rows


@dataclass(frozen=True, slots=True)
class Slices:
    """A sliding window of ``slices`` parts of ``rows / slices`` rows each: when one begins, the oldest is taken out exactly.

    The window holds more than ``rows - rows / slices`` rows and at most ``rows``; with one slice it is ``ResetEvery``. Costs a
    table per slice.
    """

    rows: int
    slices: int

    def __post_init__(self) -> None:
        if self.slices < 1 or self.rows < self.slices:
            raise ConfigError(f"a window of {self.rows} rows in {self.slices} slices: at least one slice, of at least one row")

    @property
    def period(self) -> int:
        """Rows of a period."""
        return self.rows // self.slices


@dataclass(frozen=True, slots=True)
class HalfLife:
    """A row counts half after ``rows`` more rows.

    Old rows are left alone and new ones weigh more, 2**(1/rows) times the row before, in fixed point; when a period ends all
    sums are shifted back. So a rule of real numbers becomes one of integers, whose sums do not depend on their order.
    """

    rows: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 1 << 24:
            raise ConfigError(f"a half-life of {self.rows} rows: it must be from 1 to {1 << 24}")

    @property
    def period(self) -> int:
        """Rows of a period."""
        return _DOUBLINGS * self.rows

    @property
    def shift(self) -> int:
        """Bits by which sums are shifted when a period ends."""
        return _DOUBLINGS


Forgetting = Never | ResetEvery | Slices | HalfLife
