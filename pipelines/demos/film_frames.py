"""Frames of rendered films, as the pictures of demos show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from connectors.charts import Worded

if TYPE_CHECKING:
    from models.films import Film

__all__ = ["film_frames"]


def film_frames(film: Film, frames: Iterable[int]) -> list[Worded]:
    """Return frames of a film of one frame a second, with their times."""
    return [(film.frame(t), f"{t // 60:02}:{t % 60:02}") for t in frames]
