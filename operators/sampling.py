"""Which frames of a stream are kept: so many per second of event time, on a grid that begins with the stream's first frame."""

from __future__ import annotations

from operators.streams import NEVER_US

__all__ = ["next_keep"]


def next_keep(time_us: int, due_us: int, fps: float | None) -> int | None:
    """Return from when on the next frame is encoded if this one is; None if this one is skipped.

    Frames are kept on a grid of ``1 / fps`` seconds that begins with the stream's first frame (``due_us`` is ``NEVER_US``): the
    first frame in each cell. A microsecond of grace is for rounded times. After a gap the grid goes on, so nothing is made up
    for.
    """
    if fps is None:
        return time_us
    if time_us + 1 < due_us:
        return None
    step_us = round(1e6 / fps)
    origin_us = time_us if due_us == NEVER_US else due_us
    return origin_us + (max(time_us + 1 - origin_us, 0) // step_us + 1) * step_us
