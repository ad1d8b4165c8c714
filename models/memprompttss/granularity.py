"""Coarse states out of fine ones (spec section 3.5)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["coarse_states"]


def coarse_states(labels: Iterable[int], group_size: int, level: int) -> dict[int, int]:
    """Return label → state of a level: at level 0 renumbered by first appearance, at each further level in groups.

    ``group_size`` consecutive ones of the level below become one.
    """
    distinct = dict.fromkeys(int(label) for label in labels)
    return {label: place // group_size**level for place, label in enumerate(distinct)}
