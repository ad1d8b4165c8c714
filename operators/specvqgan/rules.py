"""Where windows begin, what they wait for, and how long sound is: the operator's rules as plain functions (spec 8.1 to 8.3)."""

from __future__ import annotations

import math

from models.specvqgan.config import COLUMN_FRAMES, FEATURE_FRAMES, HOP, RATE
from models.specvqgan.sampling import centered_start, hopping_start
from operators.specvqgan.config import ROWS_PER_COLUMN, Geometry

__all__ = ["CROP_SAMPLES", "columns_of", "row_at", "rows_needed", "samples_of", "sound_due", "window_start"]

CROP_SAMPLES = 6 * HOP
"""The published procedure cuts so much from both ends of a clip: its sound begins there."""

_COLUMN = HOP * COLUMN_FRAMES


def row_at(time_us: int, origin_us: int, geometry: Geometry) -> int:
    """Return the row of the feature clock that a frame belongs to."""
    return math.floor(geometry.rows_per_s * (time_us - origin_us) / 1e6 + 0.5)


def samples_of(rows: int, geometry: Geometry) -> int:
    """Return how many samples a take of so many rows has."""
    if geometry.exact:
        return max(1, min(round(rows / geometry.rows_per_s * RATE) - CROP_SAMPLES, columns_of(rows, geometry) * _COLUMN))
    return rows * FEATURE_FRAMES * HOP


def columns_of(rows: int, geometry: Geometry) -> int:
    """Return how many columns a take of so many rows has."""
    if geometry.exact:
        whole = (round(rows / geometry.rows_per_s * RATE) - 2 * CROP_SAMPLES) // _COLUMN
        return max(geometry.window, whole)
    return -(-rows // ROWS_PER_COLUMN)


def window_start(column: int, window: int, geometry: Geometry, *, total: int | None = None, fast: bool = False) -> int:
    """Return where the window for a column begins. ``window``: where the one in use does, -1: none. ``total``: all columns."""
    start = max(window, 0)
    if geometry.exact:
        assert total is not None
        return centered_start(column, start, geometry.window, total)
    if fast and column - start >= geometry.window:
        return column
    moved = hopping_start(geometry.hop)(column, start, geometry.window, 0)
    return moved if total is None else max(start, min(moved, max(0, total - geometry.window)))


def rows_needed(column: int, start: int, geometry: Geometry, *, moved: bool) -> int:
    """Return how many rows must be final before a column is made; ``moved``: its window begins with it."""
    if not moved:
        return ROWS_PER_COLUMN * (column + 1)
    if geometry.lookahead is None:
        return ROWS_PER_COLUMN * (start + geometry.window)
    return ROWS_PER_COLUMN * min(start + geometry.window, column + max(geometry.lookahead, 1))


def sound_due(column: int, voiced: int, geometry: Geometry) -> bool:
    """Tell whether sound is made now that there are ``column`` columns: first of a whole window where it was waited for."""
    if geometry.exact:
        return False
    if voiced == 0 and geometry.lookahead is None:
        return column == geometry.window
    return column - voiced >= geometry.emit
