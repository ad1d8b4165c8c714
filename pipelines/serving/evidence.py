"""What an answer rests on, as a few frames: of the columns by which operators that answer tell it."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pipelines.serving.live import Live
from pipelines.serving.pictures import jpeg

__all__ = ["data_url", "evidence", "plain_row"]

_FRAMES = 4
_HEIGHT = 240


def evidence(row: Mapping[str, Any] | None, *, most: int = _FRAMES) -> list[datetime]:
    """Return the event times of the frames that an answer rests on most, in the order of time."""
    if row is None:
        return []
    scores: dict[datetime, float] = {}
    for layer in row.get("retrieved") or []:  # per layer: frames with their scores
        # Scores of different layers are of different size; frames without any count by how new they are.
        known = [frame["score"] if frame["score"] is not None else frame["event_time"].timestamp() for frame in layer]
        middle, spread = (statistics.fmean(known), statistics.pstdev(known) or 1.0) if known else (0.0, 1.0)
        for frame, score in zip(layer, known, strict=True):
            at = frame["event_time"]
            scores[at] = scores.get(at, 0.0) + (score - middle) / spread
    for clip in row.get("selected") or []:
        at = clip["start"] + (clip["end"] - clip["start"]) / 2
        scores[at] = max(scores.get(at, 0.0), clip["score"] or 0.0)
    if row.get("match") is not None and row.get("as_of") is not None:  # a standing question: the frame where it rose
        scores[row["as_of"]] = float("inf")
    chosen = sorted(scores, key=lambda at: -scores[at])[:most]
    return sorted(chosen)


def data_url(live: Live, stream: str, at: datetime) -> str | None:
    """Return a frame as a ``data:`` URL; None where it has not been seen, or is kept no longer."""
    frame = live.past_frame(stream, round(at.timestamp() * 1e6))
    if frame is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(frame, max_height=_HEIGHT)).decode()


def plain_row(value: Any) -> Any:
    """Return a row as JSON values."""
    if isinstance(value, Mapping):
        return {str(name): plain_row(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_row(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value
