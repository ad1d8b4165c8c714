"""What training says about itself: one record per report, to the caller's function and to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """State of one training stage."""

    stage: str
    step: int
    """Steps done, 1..``steps``."""
    steps: int
    loss: float
    """Mean of the total loss since the last report."""
    map50: float | None = None
    """Validation mAP at IoU 0.5 where one was just made."""

    @property
    def note(self) -> str:
        """What else there is to say."""
        return "" if self.map50 is None else f"mAP50 {self.map50:.3f}"


def report(progress: Progress, callback: Callable[[Progress], None] | None) -> None:
    """Log ``progress`` and hand it to ``callback``."""
    found = "" if progress.map50 is None else f" map50={progress.map50:.3f}"
    logger.info("stage=%s step=%d/%d loss=%.4f%s", progress.stage, progress.step, progress.steps, progress.loss, found)
    if callback is not None:
        callback(progress)
