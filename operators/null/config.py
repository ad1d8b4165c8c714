"""Options of the operator ``null``: none."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NullOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NullOptions:
    """``type: null`` takes no options."""
